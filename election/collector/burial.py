"""Plans the part that one dead agent has in a transaction: what is compared, what is deleted, what is kept of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from election.agent_records import StateEntry, Tombstone
from election.collector.remains import Remains
from election.collector.suspects import Suspect
from election.errors import EtcdError
from election.etcd import txn
from election.keys import Keyspace, TombstoneKey
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import KeyValue
from election.token import Token

_TOMBSTONE_BYTES = 1200 * 1024
"""etcd takes requests of 1.5 MiB, the comparisons included."""

_ENTRY_BYTES = 100
"""What an entry costs in a tombstone besides its name and value."""

_TOGETHER_BYTES = 1000 * 1024
_OPERATION_BYTES = 300
"""The most that a comparison or a deletion takes, with names of 128 characters."""

_OPERATIONS = 126
"""etcd's 128, less the two transactions around those of the agents."""


class TooMuch(Exception):
    """The state does not fit in with those of others: it has to be read and reaped alone."""


@dataclass(frozen=True, slots=True)
class Burial:
    """What is done for one suspect; `whole` when nothing of its state is left then."""

    suspect: Suspect
    tombstone: Tombstone
    compare: Sequence[rpc.Compare]
    changes: Sequence[rpc.RequestOp]
    value: bytes
    whole: bool

    @property
    def operations(self) -> int:
        """How many of etcd's 128 it needs in its own transaction."""
        return max(len(self.compare), len(self.changes) + 1)

    @property
    def size(self) -> int:
        """Roughly, and rather more than less, its bytes on the wire."""
        return len(self.value) + self.operations * 2 * _OPERATION_BYTES


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans burials in the name of a collector, under the token of its term."""

    keyspace: Keyspace
    collector: str
    token: Token
    retention_s: int

    def plan(self, remains: Remains, now: datetime) -> Burial | None:
        """What to do for a suspect; None when it has no state.

        Raises:
            TooMuch: it has to be reaped alone, and in parts maybe.
            EtcdError: a value is too large for any transaction.
        """
        suspect = remains.suspect
        if not remains.values and remains.registration is None and not remains.more:
            return None
        chosen = list(_fitting(remains.values))
        whole = len(chosen) == len(remains.values) and not remains.more
        if not whole and not suspect.alone:
            raise TooMuch
        if not whole and not chosen:
            raise EtcdError(f"a value of {suspect.agent!r} is too large to be kept in a tombstone: its state stays")
        return self._burial(remains, self.tombstone(remains, chosen, now), chosen, whole=whole)

    def tombstone(self, remains: Remains, chosen: Iterable[KeyValue], now: datetime) -> Tombstone:
        """What is kept of those of its values."""
        incarnation = remains.incarnation
        return Tombstone(
            agent=remains.suspect.agent,
            incarnation=incarnation,
            reaped_at=now,
            collector=self.collector,
            token=self.token,
            collected=tuple(StateEntry.of(remains.prefix, kv) for kv in chosen),
            part=_next_part(remains.parts, incarnation),
            keep_until=now + timedelta(seconds=self.retention_s),
            agent_record=remains.record,
        )

    def _burial(self, remains: Remains, tombstone: Tombstone, chosen: Sequence[KeyValue], *, whole: bool) -> Burial:
        suspect, registration = remains.suspect, remains.registration
        compare = [
            txn.absent(self.keyspace.alive(suspect.agent)),
            *([txn.present(self.keyspace.reap_request(suspect.agent))] if suspect.ordered else []),
            txn.nothing_newer(remains.prefix, remains.revision),
            *(txn.modified_at(kv.key, kv.mod_revision) for kv in chosen),
        ]
        if registration is not None:
            compare.append(txn.modified_at(registration.key, registration.mod_revision))
        if registration is None or registration.mod_revision != tombstone.incarnation:
            # Only an incarnation that was just written has certainly no tombstone yet.
            compare.append(txn.absent(self.key(tombstone)))
        changes = self._deletes(remains, chosen, whole=whole)
        if not whole and registration is not None and tombstone.agent_record is not None:
            # Should the agent come back before the next part is taken, it learns by this that something was.
            changes.append(txn.put(registration.key, tombstone.agent_record.encode_as(tombstone.incarnation)))
        return Burial(suspect, tombstone, compare, changes, tombstone.encode(), whole)

    def _deletes(self, remains: Remains, chosen: Sequence[KeyValue], *, whole: bool) -> list[rpc.RequestOp]:
        """Deletes what is compared, and with the last of it what others have noted of the agent."""
        if not whole:
            return [txn.delete(kv.key) for kv in chosen]
        agent = remains.suspect.agent
        if not remains.foreign:  # one operation is cheaper; it deletes exactly what is compared
            deletes = [txn.delete_prefix(remains.prefix)]
        else:
            deletes = [txn.delete(kv.key) for kv in (*chosen, remains.registration) if kv is not None]
        deletes.append(txn.delete(self.keyspace.draining(agent)))
        if remains.suspect.ordered:
            deletes.append(txn.delete(self.keyspace.reap_request(agent)))
        return deletes

    def key(self, tombstone: Tombstone) -> bytes:
        """Where a tombstone is kept."""
        return self.keyspace.tombstone(tombstone.agent, tombstone.incarnation, tombstone.part)


def packed(burials: Iterable[Burial]) -> Iterator[list[Burial]]:
    """The burials in groups that each fit into one transaction; those of suspects who are alone by themselves."""
    group: list[Burial] = []
    deepest = size = 0
    for burial in burials:
        deeper, larger = max(deepest, burial.operations), size + burial.size
        full = len(group) + 1 + deeper > _OPERATIONS or larger > _TOGETHER_BYTES
        if group and (full or burial.suspect.alone or group[-1].suspect.alone):
            yield group
            group, deeper, larger = [], burial.operations, burial.size
        group.append(burial)
        deepest, size = deeper, larger
    if group:
        yield group


def _fitting(kvs: Iterable[KeyValue]) -> Iterator[KeyValue]:
    """As many as one tombstone holds, in order; one that fits into none is left out."""
    size = 0
    for kv in kvs:
        larger = size + len(kv.key) + len(kv.value) * 4 // 3 + _ENTRY_BYTES
        if larger <= _TOMBSTONE_BYTES:
            size = larger
            yield kv


def _next_part(kept: frozenset[TombstoneKey], incarnation: int) -> int:
    return max((key.part + 1 for key in kept if key.incarnation == incarnation), default=0)
