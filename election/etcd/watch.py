"""Watches a prefix, and goes on watching when members die, hang or compact.

No event is ever skipped or delivered twice: a watch resumes at the last delivered event's revision + 1, and never
at the revision of an answer's header, which may be ahead of the events (etcd #15220). When the revision to resume
at has been compacted, the reader is told to begin again from a list.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under the prefix at one revision, oldest key first. What was known before is void.

    `set_back` says that etcd's history may have been: what was seen of it before need not have happened.
    """

    revision: int
    cluster_id: int
    kvs: tuple[kv.KeyValue, ...]
    set_back: bool = False

    @classmethod
    def of(cls, listed: rpc.RangeResponse, *, set_back: bool = False) -> Snapshot:
        """What a list has brought."""
        return cls(listed.header.revision, listed.header.cluster_id, tuple(listed.kvs), set_back)


@dataclass(frozen=True, slots=True)
class Changes:
    """All events of one or more whole revisions, in order. `revision` is that of the last event."""

    revision: int
    events: tuple[kv.Event, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """The watch is alive: everything that had happened when this was sent has been delivered.

    `revision` is where etcd said it was. A watch must not resume there, since etcd before 3.4.25 and 3.5.8 could send
    one that was ahead of the events (#15220).
    """

    revision: int


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
        try:
            listed = await list_all(client, prefix)
        except (EtcdUnavailable, Compacted):
            if not begun:
                raise
            await client.clock.sleep_s(backoff.next_s())
            continue
        begun = True
        backoff.reset()
        yield Snapshot.of(listed, set_back=set_back)
        try:
            header = listed.header
            async with aclosing(watch(client, prefix, header.revision + 1, backoff, header.raft_term)) as items:
                async for item in items:
                    yield item
        except Compacted:
            set_back = False
        except RolledBack:
            set_back = True
            await client.clock.sleep_s(backoff.next_s())


async def watch(
    client: EtcdClient, prefix: bytes, start_revision: int, backoff: Backoff, raft_term: int = 0
) -> AsyncGenerator[Changes | Heard]:
    """Yields every event under a prefix from a revision on, across the loss of members.

    Raises:
        Compacted: when the next event's revision is gone.
        RolledBack: when a new stream is answered from before `raft_term`, or from before the revision: etcd was
            restored, and what was known of it may never be contradicted by an event; or the member lags behind.
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
        try:
            async with aclosing(_read(client, stream, prefix, next_revision, raft_term)) as items:
                async for item in items:
                    if isinstance(item, Changes):
                        next_revision = item.revision + 1
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
    client: EtcdClient, stream: _Watch, prefix: bytes, start_revision: int, raft_term: int
) -> AsyncGenerator[Changes | Heard]:
    """Reads one stream until it ends or falls silent."""
    # From the revision before, which is known to be there: etcd since 3.5.22 and 3.6.2 answers no progress request
    # of a watch that begins at a coming revision (etcd #20229).
    create = rpc.WatchCreateRequest(
        key=prefix, range_end=range_end(prefix), start_revision=max(start_revision - 1, 1), fragment=True
    )
    fragments: list[kv.Event] = []
    async with aclosing(_answers(client, stream, prefix, rpc.WatchRequest(create_request=create))) as answers:
        async for answer in answers:
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
                yield Changes(fragments[-1].kv.mod_revision, tuple(fragments))
                fragments = []
            elif not answer.events:
                yield Heard(answer.header.revision)


async def _answers(
    client: EtcdClient, stream: _Watch, prefix: bytes, create: rpc.WatchRequest
) -> AsyncGenerator[rpc.WatchResponse]:
    """Everything that comes, until the stream ends, stays silent though it was asked for a sign of life, or is behind.

    A member whose disk hangs, or whom the others cannot hear, has a leader and gives signs of life, and never learns
    anything: what shows it is that etcd, when it is read, has been further for a beat or more.
    """
    beat_s = client.config.attempt_timeout_s
    silent_beats = 0
    reached = due = 0  # the revisions at which etcd was a beat ago, and two beats ago
    reading: asyncio.Task[rpc.WatchResponse | None] | None = None
    asking: asyncio.Task[int] | None = None
    try:
        await stream.write(create)
        while silent_beats <= _SILENT_BEATS:
            reading = reading or asyncio.create_task(stream.read())
            await asyncio.wait({reading}, timeout=beat_s)
            if not reading.done():
                silent_beats += 1
                if asking is None or asking.done():
                    due, reached = reached, asking.result() if asking else 0
                    asking = asyncio.create_task(_revision(client, prefix))
                async with asyncio.timeout(beat_s):
                    await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                continue
            answer, reading, silent_beats = reading.result(), None, 0
            if answer is None:
                return
            if answer.header.revision < due and not (answer.events or answer.canceled):
                return  # the member is behind
            yield answer
    except TimeoutError:
        return
    finally:
        stream.cancel()
        for task in (reading, asking):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # looked at, so that asyncio does not report it as lost


async def _revision(client: EtcdClient, prefix: bytes) -> int:
    """The revision of etcd by a linearizable read; 0 when it cannot be read."""
    try:
        return (await client.get(prefix))[1].revision
    except EtcdError:
        return 0


def _refusal(answer: rpc.WatchResponse) -> Compacted | RpcFailed:
    if answer.compact_revision:
        return Compacted(
            f"etcd has compacted its history up to revision {answer.compact_revision}",
            compact_revision=answer.compact_revision,
        )
    return RpcFailed(StatusCode.UNKNOWN, answer.cancel_reason or "the watch was canceled for no reason")
