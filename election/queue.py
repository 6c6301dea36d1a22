"""The queue of one election: its candidates, oldest first, as the watch shows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

from election.backoff import Backoff
from election.errors import EtcdError
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Snapshot, follow
from election.keys import Keyspace
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.pb.etcd.kv_pb2 import KeyValue
from election.published import Published
from election.records import Candidate
from election.token import Token

logger = logging.getLogger("election")

_SILENT_TTLS, _SILENT_S = 2, 10.0


class Queue:
    """Keeps the candidates of an election. Etcd's order is by create revision, and so is this one's."""

    def __init__(self, election: str) -> None:
        self._election = election
        self._candidates: dict[bytes, Candidate] = {}

    @classmethod
    def of(cls, election: str, kvs: Iterable[KeyValue]) -> Self:
        """The queue that a list shows."""
        queue = cls(election)
        queue.replace(kvs)
        return queue

    def replace(self, kvs: Iterable[KeyValue]) -> None:
        """Begins anew from a list."""
        self._candidates = {kv.key: Candidate.of(self._election, kv) for kv in kvs}

    def change(self, changes: Changes) -> None:
        """Applies what happened."""
        for event in changes.events:
            if event.type == KvEvent.DELETE:
                self._candidates.pop(event.kv.key, None)
            else:
                self._candidates[event.kv.key] = Candidate.of(self._election, event.kv)

    def clear(self) -> None:
        """Nothing is known any more."""
        self._candidates = {}

    def get(self, key: bytes) -> Candidate | None:
        """The candidate with this key."""
        return self._candidates.get(key)

    def is_oldest(self, key: bytes) -> bool:
        """Whether this key is there and none is older."""
        oldest = self.oldest
        return oldest is not None and oldest is self._candidates.get(key)

    @property
    def oldest(self) -> Candidate | None:
        """The candidate that leads, once it has proven it; None in an empty queue."""
        return min(self._candidates.values(), key=lambda candidate: candidate.created, default=None)

    @property
    def token(self) -> Token | None:
        """The token of the term under way; None without one, and for that of another program."""
        oldest = self.oldest
        return None if oldest is None else oldest.token

    def behind(self, created: int) -> Sequence[Candidate]:
        """Those who came after the candidate whose key has this create revision, oldest first."""
        return sorted(
            (candidate for candidate in self._candidates.values() if candidate.created > created),
            key=lambda candidate: candidate.created,
        )


@dataclass(frozen=True, slots=True)
class Look:
    """The queue is known as of `revision`. `is_set_back` says that etcd's history had been longer before."""

    revision: int
    is_set_back: bool = False


class QueueWatch:
    """Keeps a queue true while `run` runs: one watch for all attempts of a candidate.

    A new watch may lag 100 ms behind at first (etcd: server/storage/mvcc/watchable_store.go, syncWatchersLoop); one
    that lasts tells the candidate of its turn at once, also when it has only just queued.
    """

    def __init__(self, client: EtcdClient, keyspace: Keyspace, election: str, *, who: str) -> None:
        self.queue = Queue(election)
        self.looks: Published[Look | None] = Published(None)
        """The newest look, None before the first; `queue` is as of it."""
        self.heard_at_s = client.clock.now_s()
        """When the watch last gave a sign of life."""
        self._client = client
        self._prefix = keyspace.campaign(election)
        self._who = who
        self._wanted = asyncio.Event()
        self._forgotten = asyncio.Event()

    async def listed(self) -> None:
        """Waits for the first look; nothing is watched before somebody has called this."""
        self._wanted.set()
        await self.looks.until(lambda look: look is not None)

    def forget(self) -> None:
        """What was seen is of a history that etcd does not have any more: there is no look until a new list.

        The watch alone may never show that: a history that has caught up again has other events at the same revisions.
        """
        self.queue.clear()
        self.looks.set(None)
        self._forgotten.set()

    async def run(self, backoff: Backoff) -> None:
        """Follows the queue until cancelled, through whatever happens to etcd."""
        await self._wanted.wait()
        while True:
            self._forgotten.clear()
            following = asyncio.create_task(self._follow(backoff))
            tasks = {following, asyncio.create_task(self._forgotten.wait())}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            if not following.cancelled() and (error := following.exception()):
                logger.error("%s: following the queue has failed, and begins anew", self._who, exc_info=error)
            await self._client.clock.sleep_s(backoff.next_s())

    async def _follow(self, backoff: Backoff) -> None:
        try:
            async with aclosing(follow(self._client, self._prefix, backoff)) as items:
                async for item in items:
                    self._take(item)
        except EtcdError as error:
            logger.warning("%s: the queue cannot be watched: %s", self._who, error)

    def _take(self, item: object) -> None:
        self.heard_at_s = self._client.clock.now_s()
        if isinstance(item, Snapshot):
            before = self.looks.value
            self.queue.replace(item.kvs)
            self.looks.set(Look(item.revision, before is not None and item.revision < before.revision))
        elif isinstance(item, Changes) and self.looks.value is not None:
            self.queue.change(item)
            self.looks.set(Look(item.revision))


def longest_silence_s(ttl_s: float) -> float:
    """How long a leader goes on without a sign of life from its watch, which is opened elsewhere after some 4 s."""
    return max(_SILENT_TTLS * ttl_s, _SILENT_S)


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
