"""Writes down every revision of an etcd from the first one on, whatever happens to its members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import groupby

from election.drill.history import Change, Journal, Revision, Stored
from election.errors import EtcdError
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed, Stream
from election.keys import range_end
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

_SILENT_S = 2.0
_RETRY_S = 0.1


class HistoryLost(Exception):
    """etcd refused the watch, or left something out: this drill proves nothing."""


class Observer:
    """Watches all keys, or those with a prefix, with raw watch calls, and none of the code that is to be proved.

    `revision` is the last one that was written down, so all before it may be compacted; `stored` is what etcd held
    then.
    """

    def __init__(self, client: EtcdClient, journal: Journal, prefix: bytes = b"") -> None:
        self.revision = 1  # an etcd without any key is at revision 1
        self.stored: dict[bytes, Stored] = {}
        self.changed = asyncio.Event()
        self._range = (prefix, range_end(prefix)) if prefix else (b"\0", b"\0")
        self._is_whole = not prefix
        self._client = client
        self._journal = journal

    async def begin(self) -> None:
        """Writes down all that etcd holds, as one revision, to go on from there. For an etcd that is not new."""
        answer = await self._client.range(rpc.RangeRequest(key=self._range[0], range_end=self._range[1]))
        changes = tuple(Change(each.key, None, _stored(each)) for each in answer.kvs)
        self.revision = answer.header.revision
        self.stored = {change.key: change.after for change in changes if change.after is not None}
        self._journal.write(Revision(self.revision, self._client.clock.now_s(), changes))

    async def run(self) -> None:
        """Watches until cancelled; raises HistoryLost."""
        while True:
            try:
                member, stream = await self._client.open(methods.WATCH)
            except EtcdError:  # it wants a token, and cannot be asked for one
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                # From the last one again: etcd since 3.5.22 and 3.6.2 answers no progress request of a watch that
                # begins at a coming revision (etcd #20229).
                create = rpc.WatchCreateRequest(
                    key=self._range[0],
                    range_end=self._range[1],
                    start_revision=self.revision,
                    prev_kv=True,
                    fragment=True,
                )
                await stream.write(rpc.WatchRequest(create_request=create))
                async with aclosing(_answers(stream)) as answers:
                    async for events in answers:
                        self._note([event for event in events if event.kv.mod_revision > self.revision])
            except (RpcFailed, TimeoutError):
                pass
            finally:
                stream.cancel()
            self._client.avoid(member)
            self._client.drop_token()  # a watch is refused with a token that has ended, and nobody says so
            await asyncio.sleep(_RETRY_S)

    async def reach(self, revision: int, timeout_s: float = 20.0) -> None:
        """Waits until a revision was written down."""
        async with asyncio.timeout(timeout_s):
            while self.revision < revision:
                self.changed.clear()
                await self.changed.wait()

    def _note(self, events: list[kv.Event]) -> None:
        now_s = self._client.clock.now_s()
        revisions = [
            Revision(number, now_s, tuple(map(_change, changes)))
            for number, changes in groupby(events, key=lambda event: event.kv.mod_revision)
        ]
        for revision in revisions:
            if self._is_whole and revision.number != self.revision + 1:
                raise HistoryLost(f"revision {revision.number} came after {self.revision}")
            self.revision = revision.number
            for change in revision.changes:
                if change.after is None:
                    self.stored.pop(change.key, None)
                else:
                    self.stored[change.key] = change.after
        self._journal.write(*revisions)
        self.changed.set()


async def _answers(stream: Stream[rpc.WatchRequest, rpc.WatchResponse]) -> AsyncGenerator[list[kv.Event]]:
    """The events of one stream, in whole revisions; ends with the stream, or raises when it breaks or falls silent."""
    events: list[kv.Event] = []
    reading = asyncio.create_task(stream.read())
    silent = False
    try:
        while True:
            await asyncio.wait({reading}, timeout=_SILENT_S / 2)
            if not reading.done():
                if silent:
                    raise TimeoutError
                silent = True
                async with asyncio.timeout(_SILENT_S):
                    await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                continue
            silent = False
            if (answer := reading.result()) is None:
                return
            reading = asyncio.create_task(stream.read())
            if answer.compact_revision:
                raise HistoryLost(f"etcd has compacted up to {answer.compact_revision}, which was not yet seen")
            if answer.canceled:
                return
            events += answer.events
            if events and not answer.fragment:
                yield events
                events = []
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # looked at, so that asyncio does not report it as lost


def _change(event: kv.Event) -> Change:
    before = _stored(event.prev_kv) if event.HasField("prev_kv") else None
    return Change(event.kv.key, before, None if event.type == kv.Event.DELETE else _stored(event.kv))


def _stored(found: kv.KeyValue) -> Stored:
    return Stored(found.value, found.create_revision, found.mod_revision, found.lease)
