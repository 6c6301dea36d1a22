"""The queue of one election: its candidates, oldest first, as the watch shows it."""

from __future__ import annotations

from collections.abc import Sequence

from election.etcd.watch import Changes, Snapshot
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.records import Candidate


class Queue:
    """Keeps the candidates of an election. Etcd's order is by create revision, and so is this one's."""

    def __init__(self, election: str) -> None:
        self._election = election
        self._candidates: dict[bytes, Candidate] = {}

    def replace(self, snapshot: Snapshot) -> None:
        """Begins anew from a list."""
        self._candidates = {kv.key: Candidate.of(self._election, kv) for kv in snapshot.kvs}

    def change(self, changes: Changes) -> None:
        """Applies what happened."""
        for event in changes.events:
            if event.type == KvEvent.DELETE:
                self._candidates.pop(event.kv.key, None)
            else:
                self._candidates[event.kv.key] = Candidate.of(self._election, event.kv)

    def get(self, key: bytes) -> Candidate | None:
        """The candidate with this key."""
        return self._candidates.get(key)

    def is_oldest(self, key: bytes) -> bool:
        """Whether this key is there and none is older."""
        own = self._candidates.get(key)
        return own is not None and own.token == min(candidate.token for candidate in self._candidates.values())

    def behind(self, token: int) -> Sequence[Candidate]:
        """Those who came after the candidate with this token, oldest first."""
        return sorted(
            (candidate for candidate in self._candidates.values() if candidate.token > token),
            key=lambda candidate: candidate.token,
        )


def succession(waiting: Sequence[Candidate], to: str | None) -> tuple[Candidate, ...]:
    """Those whose keys a handover touches: the successor last, before it those who are passed over.

    Empty when there is nobody to hand over to: nobody waits, the one named does not, or another program's key would
    have to be passed over or given the leadership.
    """
    if to is None:
        heirs = waiting[:1]
    else:
        place = next((place for place, each in enumerate(waiting) if each.id == to and not each.foreign), None)
        heirs = () if place is None else waiting[: place + 1]
    return () if any(each.foreign for each in heirs) else tuple(heirs)
