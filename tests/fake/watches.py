"""etcd's watches (server/storage/mvcc/watchable_store.go, server/etcdserver/api/v3rpc/watch.go).

A watcher that begins at a revision to come is *synced*: it gets the events of each revision as it is made. One that
begins in the past is not, until etcd's catch-up, a tenth of a second later, has sent it everything in one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake.store import Interval, Store

CATCH_UP_S = 0.1
_ALL_WATCHERS = -1


@dataclass(slots=True)
class _Watcher:
    id: int
    interval: Interval
    start_revision: int
    next_revision: int
    filters: frozenset[int]
    prev_kv: bool
    synced: bool

    def wants(self, event: kv.Event) -> bool:
        unwanted = rpc.WatchCreateRequest.NOPUT if event.type == kv.Event.PUT else rpc.WatchCreateRequest.NODELETE
        return unwanted not in self.filters and self.interval.holds(event.kv.key)


class WatchSession:
    """The member's end of one watch stream. `applied` tells the revision up to which the member knows the store."""

    def __init__(
        self,
        store: Store,
        header: Callable[[int], rpc.ResponseHeader],
        applied: Callable[[], int],
        send: Callable[[rpc.WatchResponse], None],
    ) -> None:
        self._store = store
        self._header = header
        self._applied = applied
        self._send = send
        self._watchers: dict[int, _Watcher] = {}
        self._published = applied()

    def handle(self, request: rpc.WatchRequest) -> None:
        """Serves one message of the client."""
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request)
            case "cancel_request":
                self._cancel(request.cancel_request.watch_id)
            case "progress_request":
                self._report_progress()

    def publish(self) -> None:
        """Sends what the member has learned of since the last call, revision by revision."""
        for revision, events in self._store.events(self._published + 1, self._applied()):
            self._published = revision
            for watcher in list(self._watchers.values()):
                if watcher.synced and revision >= watcher.next_revision:
                    self._send_events(watcher, events, revision)
                    watcher.next_revision = revision + 1

    def _create(self, request: rpc.WatchCreateRequest) -> None:
        revision = self._published
        key = request.key or b"\0"
        watch_id = request.watch_id or next(i for i in range(len(self._watchers) + 1) if i not in self._watchers)
        refusal = ""
        if request.range_end not in (b"", b"\0") and key >= request.range_end:
            refusal = "mvcc: watcher range is empty"
        elif watch_id in self._watchers:
            refusal = "mvcc: duplicate watch ID provided on the WatchStream"
        if refusal:
            self._send(
                rpc.WatchResponse(
                    header=self._header(revision), watch_id=-1, created=True, canceled=True, cancel_reason=refusal
                )
            )
            return
        start = request.start_revision or revision + 1
        watcher = _Watcher(
            id=watch_id,
            interval=Interval(key, request.range_end),
            start_revision=request.start_revision,
            next_revision=start,
            filters=frozenset(request.filters),
            prev_kv=request.prev_kv,
            synced=start > revision,
        )
        self._watchers[watch_id] = watcher
        self._send(rpc.WatchResponse(header=self._header(revision), watch_id=watch_id, created=True))
        if not watcher.synced:
            asyncio.get_running_loop().call_later(CATCH_UP_S, self._catch_up, watcher)

    def _catch_up(self, watcher: _Watcher) -> None:
        if self._watchers.get(watcher.id) is not watcher:
            return
        self.publish()
        if watcher.next_revision < self._store.compacted:
            del self._watchers[watcher.id]
            self._send(
                rpc.WatchResponse(
                    header=self._header(0),
                    watch_id=watcher.id,
                    canceled=True,
                    compact_revision=self._store.compacted,
                )
            )
            return
        past = self._store.events(watcher.next_revision, self._published)
        self._send_events(watcher, tuple(event for _, events in past for event in events), self._published)
        watcher.next_revision = self._published + 1
        watcher.synced = True

    def _cancel(self, watch_id: int) -> None:
        if self._watchers.pop(watch_id, None) is not None:
            self._send(rpc.WatchResponse(header=self._header(self._published), watch_id=watch_id, canceled=True))

    def _report_progress(self) -> None:
        """Answers for all watchers of the stream at once, or not at all while one of them is behind.

        One that begins at a revision which is still to come counts as behind (etcd #20229; earlier versions answer).
        """
        ready = (watcher.synced and watcher.start_revision <= self._published for watcher in self._watchers.values())
        if self._watchers and all(ready):
            self._send(rpc.WatchResponse(header=self._header(self._published), watch_id=_ALL_WATCHERS))

    def _send_events(self, watcher: _Watcher, events: tuple[kv.Event, ...], revision: int) -> None:
        wanted = [event for event in events if watcher.wants(event)]
        if not wanted:
            return
        answer = rpc.WatchResponse(header=self._header(revision), watch_id=watcher.id, events=wanted)
        if watcher.prev_kv:
            for event in answer.events:
                if (before := self._store.before(event)) is not None:
                    event.prev_kv.CopyFrom(before)
        self._send(answer)
