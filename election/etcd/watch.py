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

from election.backoff import Backoff
from election.errors import Compacted, EtcdError, EtcdUnavailable
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed, Stream
from election.keys import range_end
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

_Watch = Stream[rpc.WatchRequest, rpc.WatchResponse]
_SILENT_BEATS = 2
"""A stream that has not answered this many progress requests in a row is given up."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under the prefix at one revision, oldest key first. What was known before is void."""

    revision: int
    cluster_id: int
    kvs: tuple[kv.KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """All events of one or more whole revisions, in order. `revision` is that of the last event."""

    revision: int
    events: tuple[kv.Event, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """The watch is alive: everything that had happened when this was sent has been delivered.

    It carries no revision: etcd before 3.4.25 and 3.5.8 could send one that was ahead of the events (#15220).
    """


async def follow(client: EtcdClient, prefix: bytes, backoff: Backoff) -> AsyncGenerator[Snapshot | Changes | Heard]:
    """Lists a prefix, then watches it from the next revision; lists again when it has to.

    Once it has begun, nothing is yielded while etcd cannot be reached, and the attempts go on: readers that need
    fresh knowledge look at when they last got something. Cancellation ends the stream.

    Raises:
        EtcdUnavailable: etcd could not be reached for the first list.
        EtcdError: for what will not pass by itself, such as a missing permission.
    """
    begun = False
    while True:
        try:
            listed = await client.list(prefix)
        except EtcdUnavailable:
            if not begun:
                raise
            await client.clock.sleep_s(backoff.next_s())
            continue
        begun = True
        backoff.reset()
        yield Snapshot(listed.header.revision, listed.header.cluster_id, tuple(listed.kvs))
        try:
            async with aclosing(watch(client, prefix, listed.header.revision + 1, backoff)) as items:
                async for item in items:
                    yield item
        except Compacted:
            continue


async def watch(
    client: EtcdClient, prefix: bytes, start_revision: int, backoff: Backoff
) -> AsyncGenerator[Changes | Heard]:
    """Yields every event under a prefix from a revision on, across the loss of members.

    Raises:
        Compacted: when the next event's revision is gone.
        EtcdError: for what will not pass by itself.
    """
    next_revision = start_revision
    while True:
        try:
            member, stream = await client.open(methods.WATCH)
        except EtcdUnavailable:
            await client.clock.sleep_s(backoff.next_s())
            continue
        try:
            async with aclosing(_read(client, stream, prefix, next_revision)) as items:
                async for item in items:
                    if isinstance(item, Changes):
                        next_revision = item.revision + 1
                    backoff.reset()
                    yield item
            client.avoid(member)
        except RpcFailed as failure:
            if error := client.stream_error(failure, member):
                raise error from None
        await client.clock.sleep_s(backoff.next_s())


async def _read(
    client: EtcdClient, stream: _Watch, prefix: bytes, start_revision: int
) -> AsyncGenerator[Changes | Heard]:
    """Reads one stream until it ends or falls silent; a silent one is asked for a sign of life first."""
    create = rpc.WatchCreateRequest(
        key=prefix, range_end=range_end(prefix), start_revision=start_revision, fragment=True
    )
    fragments: list[kv.Event] = []
    silent_beats = 0
    reading: asyncio.Task[rpc.WatchResponse | None] | None = None
    try:
        await stream.write(rpc.WatchRequest(create_request=create))
        while True:
            if reading is None:
                reading = asyncio.create_task(stream.read())
            await asyncio.wait({reading}, timeout=client.config.attempt_timeout_s)
            if not reading.done():
                silent_beats += 1
                if silent_beats > _SILENT_BEATS:
                    return
                async with asyncio.timeout(client.config.attempt_timeout_s):
                    await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                continue
            answer, reading, silent_beats = reading.result(), None, 0
            if answer is None:
                return
            client.note(answer)
            if answer.canceled:
                raise _refusal(answer)
            fragments += answer.events
            if answer.fragment or answer.created:  # a new watch may still have to catch up
                continue
            if fragments:
                yield Changes(fragments[-1].kv.mod_revision, tuple(fragments))
                fragments = []
            else:
                yield Heard()
    except TimeoutError:
        return
    finally:
        stream.cancel()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # looked at, so that asyncio does not report it as lost


def _refusal(answer: rpc.WatchResponse) -> EtcdError:
    if answer.compact_revision:
        return Compacted(
            f"etcd has compacted its history up to revision {answer.compact_revision}",
            compact_revision=answer.compact_revision,
        )
    return EtcdError(f"etcd refused the watch: {answer.cancel_reason or 'it gives no reason'}")
