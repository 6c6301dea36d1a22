"""Watches a prefix, and goes on watching when members die, hang or compact.

No event is ever skipped or delivered twice: a watch resumes at the last delivered event's revision + 1, and never
at the revision of an answer's header, which may be ahead of the events (etcd #15220). When the revision to resume
at has been compacted, the reader is told to begin again from a list.

When something arrives says nothing of how fresh it is: a network or a pause of this process may have held it up, and
so may a member that lags behind. So etcd is read once a beat, and what has come as far as etcd was then is known to be
complete up to the moment when that read began.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from grpc import StatusCode

from election.backoff import Backoff
from election.errors import AccessDenied, Compacted, EtcdError, EtcdUnavailable, RolledBack
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.listing import list_all
from election.etcd.transport import RpcFailed, Stream
from election.keys import range_end
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

_Watch = Stream[rpc.WatchRequest, rpc.WatchResponse]
_SILENT_BEATS = 2
"""A stream that has not answered this many progress requests in a row is given up."""
_MOST_READS = 60
"""So many reads that are ahead of a stream are remembered."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under the prefix at one revision, oldest key first. What was known before is void.

    `set_back` says that etcd's history may have been: what was seen of it before need not have happened.
    """

    revision: int
    cluster_id: int
    kvs: tuple[kv.KeyValue, ...]
    as_of_s: float
    """When the list began: what had happened by then is in it. By the client's clock, as in what follows."""
    set_back: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """All events of one or more whole revisions, in order. `revision` is that of the last event."""

    revision: int
    events: tuple[kv.Event, ...]
    as_of_s: float
    """What had happened by then has been delivered with this, at the latest."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Nothing has happened up to `revision` that was not delivered.

    A watch must not resume there, since etcd before 3.4.25 and 3.5.8 could say one that was ahead of the events
    (#15220).
    """

    revision: int
    as_of_s: float
    """What had happened by then has been delivered."""


async def follow(client: EtcdClient, prefix: bytes, backoff: Backoff) -> AsyncGenerator[Snapshot | Changes | Heard]:
    """Lists a prefix, then watches it from the next revision; lists again when it has to.

    Once it has begun, nothing is yielded while etcd cannot be reached, and the attempts go on: readers that need
    fresh knowledge look at when they last got something. Cancellation ends the stream.

    Raises:
        EtcdUnavailable: etcd could not be reached for the first list.
        EtcdError: for what will not pass by itself, such as a missing permission.
    """
    begun = set_back = False
    while True:
        began_s = client.clock.now_s()
        try:
            listed = await list_all(client, prefix)
        except (EtcdUnavailable, Compacted):
            if not begun:
                raise
            await client.clock.sleep_s(backoff.next_s())
            continue
        begun = True
        backoff.reset()
        header = listed.header
        yield Snapshot(header.revision, header.cluster_id, tuple(listed.kvs), began_s, set_back)
        try:
            changes = watch(client, prefix, header.revision + 1, backoff, header.raft_term, began_s)
            async with aclosing(changes) as items:
                async for item in items:
                    yield item
        except Compacted:
            set_back = False
        except RolledBack:
            set_back = True
            await client.clock.sleep_s(backoff.next_s())


@dataclass(frozen=True, slots=True)
class _Read:
    """A linearizable read of etcd: from when until when, and the revision that it brought."""

    began_s: float
    ended_s: float
    revision: int


class _Known:
    """How far a stream has come, and until when everything is known by it.

    Each stream has one of its own: etcd may have been set back before the next one, and not come as far again.
    """

    def __init__(self, revision: int, as_of_s: float) -> None:
        self.revision = revision
        self.as_of_s = as_of_s
        self._reads: deque[_Read] = deque(maxlen=_MOST_READS)  # those that were further than the stream

    def reach(self, revision: int) -> None:
        """Everything up to a revision has been delivered."""
        self.revision = max(self.revision, revision)
        while self._reads and self._reads[0].revision <= self.revision:
            self.as_of_s = self._reads.popleft().began_s

    def note(self, read: _Read) -> bool:
        """Etcd was read; whether everything has been delivered up to where it was."""
        self._reads.append(read)
        self.reach(self.revision)
        return not self._reads

    def is_behind(self, answer: rpc.WatchResponse, since_s: float) -> bool:
        """Whether an answer without news is from a member that lags: a read had brought more by then."""
        if answer.events or answer.canceled or not self._reads:
            return False
        return self._reads[0].ended_s <= since_s and self._reads[0].revision > answer.header.revision


async def watch(
    client: EtcdClient,
    prefix: bytes,
    start_revision: int,
    backoff: Backoff,
    raft_term: int = 0,
    as_of_s: float = float("-inf"),
) -> AsyncGenerator[Changes | Heard]:
    """Yields every event under a prefix from a revision on, across the loss of members.

    Everything before that revision is known as of `as_of_s`.

    Raises:
        Compacted: when the next event's revision is gone.
        RolledBack: when etcd is read to be where it was before, or a new stream is answered from before `raft_term`, or
            from before the revision: etcd was restored, and what was known of it may never be contradicted by an event;
            or the member lags behind.
        EtcdError: for what will not pass by itself.
    """
    next_revision = start_revision
    doubted = False
    while True:
        try:
            member, stream = await client.open(methods.WATCH)
        except EtcdUnavailable:
            await client.clock.sleep_s(backoff.next_s())
            continue
        known = _Known(next_revision - 1, as_of_s)
        try:
            async with aclosing(_read(client, stream, prefix, next_revision, raft_term, known)) as items:
                async for item in items:
                    if isinstance(item, Changes):
                        next_revision = item.revision + 1
                    as_of_s = item.as_of_s
                    raft_term = max(raft_term, client.raft_term)
                    backoff.reset()
                    doubted = False
                    yield item
            client.fell_silent(member)
        except RpcFailed as failure:
            error = client.stream_error(failure, member, [prefix])
            if isinstance(error, AccessDenied) and not doubted and client.config.user is not None:
                doubted = True  # etcd 3.5.0 to 3.5.5 says so of a stale token, too
                client.drop_token()
            elif error is not None:
                raise error from None
        await client.clock.sleep_s(backoff.next_s())


async def _read(
    client: EtcdClient, stream: _Watch, prefix: bytes, start_revision: int, raft_term: int, known: _Known
) -> AsyncGenerator[Changes | Heard]:
    """Reads one stream until it ends or falls silent."""
    # From the revision before, which is known to be there: etcd since 3.5.22 and 3.6.2 answers no progress request
    # of a watch that begins at a coming revision (etcd #20229).
    create = rpc.WatchCreateRequest(
        key=prefix, range_end=range_end(prefix), start_revision=max(start_revision - 1, 1), fragment=True
    )
    fragments: list[kv.Event] = []
    async with aclosing(_answers(client, stream, prefix, rpc.WatchRequest(create_request=create), known)) as answers:
        async for answer in answers:
            if answer is None:
                yield Heard(known.revision, known.as_of_s)
                continue
            client.note(answer)
            if answer.canceled:
                raise _refusal(answer)
            if answer.created and (answer.header.revision < start_revision - 1 or answer.header.raft_term < raft_term):
                raise RolledBack(
                    f"etcd answers at revision {answer.header.revision} of raft term {answer.header.raft_term}, and "
                    f"revision {start_revision - 1} of term {raft_term} has been seen"
                )
            fragments += [event for event in answer.events if event.kv.mod_revision >= start_revision]
            if answer.fragment or answer.created:  # a new watch may still have to catch up
                continue
            if fragments:
                known.reach(fragments[-1].kv.mod_revision)
                yield Changes(fragments[-1].kv.mod_revision, tuple(fragments), known.as_of_s)
                fragments = []
            elif not answer.events:
                known.reach(answer.header.revision)
                yield Heard(answer.header.revision, known.as_of_s)


async def _answers(
    client: EtcdClient, stream: _Watch, prefix: bytes, create: rpc.WatchRequest, known: _Known
) -> AsyncGenerator[rpc.WatchResponse | None]:
    """Everything that comes, until the stream ends, stays silent though it was asked for a sign of life, or is behind.

    None stands for a read of etcd by which more is known, though nothing has come.

    A watch is asked how far it is no sooner than a beat after it was created: until it has caught up, which takes some
    100 ms, etcd before 3.4.25 and 3.5.8 says how far etcd is itself (#15220).

    A member whose disk hangs, or whom the others cannot hear, has a leader and gives signs of life, and never learns
    anything: what shows it is that etcd, when it was read a beat ago, was further.
    """
    beat_s = client.config.attempt_timeout_s
    now_s = asyncio.get_running_loop().time
    silent_beats, is_created = 0, False
    reading: asyncio.Task[rpc.WatchResponse | None] | None = None
    looking: asyncio.Task[_Read | None] | None = None
    try:
        await stream.write(create)
        beat_at_s = now_s() + beat_s
        while silent_beats <= _SILENT_BEATS:
            reading = reading or asyncio.create_task(stream.read())
            waited = {reading} if looking is None else {reading, looking}
            left_s = max(beat_at_s - now_s(), 0.0)
            await asyncio.wait(waited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                answer, reading, silent_beats = reading.result(), None, 0
                if answer is None or known.is_behind(answer, client.clock.now_s() - beat_s):
                    return
                if answer.created:
                    is_created, beat_at_s = True, now_s() + beat_s
                yield answer
            asks_progress = False
            if looking is not None and looking.done():
                read, looking = looking.result(), None
                if read is not None and known.note(read):
                    yield None
                else:
                    asks_progress = True
            if now_s() >= beat_at_s:
                beat_at_s, silent_beats = now_s() + beat_s, silent_beats + 1
                if is_created:
                    looking = looking or asyncio.create_task(_look(client, prefix, known.revision))
                    asks_progress = True
            if asks_progress:
                async with asyncio.timeout(beat_s):
                    await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
    except TimeoutError:
        return
    finally:
        stream.cancel()
        for task in (reading, looking):
            await _drop(task)


async def _look(client: EtcdClient, prefix: bytes, reached: int) -> _Read | None:
    """Reads where etcd is; None when it cannot be read."""
    began_s = client.clock.now_s()
    try:
        revision = (await client.get(prefix))[1].revision
    except EtcdError:
        return None
    if revision < reached:
        raise RolledBack(f"etcd is at revision {revision}, and {reached} has been seen")
    return _Read(began_s, client.clock.now_s(), revision)


async def _drop(task: asyncio.Task[Any] | None) -> None:
    """Ends a task, whatever it brings."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as lost


def _refusal(answer: rpc.WatchResponse) -> Compacted | RpcFailed:
    if answer.compact_revision:
        return Compacted(
            f"etcd has compacted its history up to revision {answer.compact_revision}",
            compact_revision=answer.compact_revision,
        )
    return RpcFailed(StatusCode.UNKNOWN, answer.cancel_reason or "the watch was canceled for no reason")
