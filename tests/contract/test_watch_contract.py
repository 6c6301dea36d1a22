"""What the project relies on of etcd's watches."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from election.errors import Compacted
from election.etcd.txn import delete, delete_prefix, put
from election.etcd.watch import Changes, Heard, Snapshot, follow, watch
from election.keys import range_end
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import Subject, WatchStream, answered, backoff, contract


def create(etcd: Subject, start_revision: int = 0, **options: bool | int) -> rpc.WatchCreateRequest:
    request = rpc.WatchCreateRequest(
        key=etcd.prefix, range_end=range_end(etcd.prefix), start_revision=start_revision
    )  # fmt: skip
    for option, value in options.items():
        setattr(request, option, value)
    return request


def shown(event: kv.Event) -> str:
    return ("-" if event.type == kv.Event.DELETE else "+") + chr(event.kv.key[-1])


async def events(stream: WatchStream, count: int) -> list[kv.Event]:
    """The next events of a stream, however many answers they come in."""
    found: list[kv.Event] = []
    while len(found) < count:
        answer = await answered(stream)
        assert not answer.canceled
        found += answer.events
    return found


async def changes(etcd: Subject, start_revision: int, count: int) -> list[kv.Event]:
    """The next events of the client's watch."""
    found: list[kv.Event] = []
    async with aclosing(watch(etcd.client, etcd.prefix, start_revision, backoff())) as items:
        while len(found) < count:
            item = await anext(items)
            if isinstance(item, Changes):
                assert item.revision == item.events[-1].kv.mod_revision
                found += item.events
    return found


@contract
async def test_a_watch_from_the_past_begins_there(etcd: Subject) -> None:
    await etcd.put("a", b"too early")
    first = await etcd.put("a", b"1")
    await etcd.put("b", b"2")
    await etcd.client.delete(etcd.key("a"))
    seen = await changes(etcd, first, 3)
    assert [shown(event) for event in seen] == ["+a", "+b", "-a"]
    assert [event.kv.mod_revision - first for event in seen] == [0, 1, 2]
    assert [event.kv.value for event in seen] == [b"1", b"2", b""]


@contract
async def test_a_watch_from_the_future_begins_there(etcd: Subject) -> None:
    before = await etcd.put("a")
    async with etcd.watching(create(etcd, before + 3)) as stream:
        assert (await answered(stream)).created
        for name in ("b", "c", "d"):
            await etcd.put(name)
        assert [event.kv.mod_revision for event in await events(stream, 1)] == [before + 3]


@contract
async def test_a_watch_without_a_revision_begins_now(etcd: Subject) -> None:
    put = await etcd.put("a")
    for member in range(3):  # "now" is the watched member's own, which may lag behind the one that took the put
        while (await etcd.client.status(member)).header.revision < put:
            await asyncio.sleep(0.01)
    async with etcd.watching(create(etcd)) as stream:
        created = await answered(stream)
        assert (created.created, created.canceled, list(created.events)) == (True, False, [])
        revision = await etcd.put("b")
        [event] = await events(stream, 1)
        assert (shown(event), event.kv.mod_revision, event.kv.version) == ("+b", revision, 1)


@contract
async def test_the_events_of_a_revision_come_in_the_order_of_the_transaction(etcd: Subject) -> None:
    for name in ("x/b", "x/a"):
        before = await etcd.put(name)
    await etcd.client.txn([], [put(etcd.key("z"), b""), delete_prefix(etcd.key("x/")), put(etcd.key("y"), b"")])
    seen = await changes(etcd, before + 1, 4)
    assert [shown(event) for event in seen] == ["+z", "-a", "-b", "+y"]
    assert {event.kv.mod_revision for event in seen} == {before + 1}


@contract
async def test_a_live_watch_gets_a_revision_as_one(etcd: Subject) -> None:
    async with etcd.watching(create(etcd)) as stream:
        await answered(stream)
        await etcd.client.txn([], [put(etcd.key("b"), b""), put(etcd.key("a"), b"")])
        answer = await answered(stream)
        assert [shown(event) for event in answer.events] == ["+b", "+a"]


@contract
async def test_a_delete_carries_the_key_and_its_revision_only(etcd: Subject) -> None:
    lease = await etcd.grant()
    before = await etcd.put("k", b"value", lease=lease)
    await etcd.client.delete(etcd.key("k"))
    [event] = await changes(etcd, before + 1, 1)
    assert event == kv.Event(type=kv.Event.DELETE, kv=kv.KeyValue(key=etcd.key("k"), mod_revision=before + 1))


@contract
async def test_a_watch_stays_within_its_prefix(etcd: Subject) -> None:
    before = await etcd.put("p")
    for name in ("p", "p/a", "p0", "p/b", "o"):
        await etcd.put(name)
    async with aclosing(watch(etcd.client, etcd.key("p/"), before + 1, backoff())) as items:
        names: list[bytes] = []
        while len(names) < 2:
            item = await anext(items)
            if isinstance(item, Changes):
                names += [event.kv.key.removeprefix(etcd.prefix) for event in item.events]
    assert names == [b"p/a", b"p/b"]


@contract
async def test_a_watch_may_ask_for_what_was_before_and_leave_events_out(etcd: Subject) -> None:
    before = await etcd.put("k", b"1")
    await etcd.put("k", b"2")
    await etcd.client.delete(etcd.key("k"))
    await etcd.put("k", b"3")
    async with etcd.watching(create(etcd, before + 1, prev_kv=True)) as stream:
        seen = await events(stream, 3)
        assert [event.prev_kv.value for event in seen] == [b"1", b"2", b""]
        assert not seen[2].HasField("prev_kv")
    only_deletes = create(etcd, before)
    only_deletes.filters.append(rpc.WatchCreateRequest.NOPUT)
    async with etcd.watching(only_deletes) as stream:
        assert [shown(event) for event in await events(stream, 1)] == ["-k"]


@contract
async def test_a_stream_may_have_several_watches(etcd: Subject) -> None:
    only_a = rpc.WatchCreateRequest(key=etcd.key("a"), watch_id=7)
    async with etcd.watching(only_a, create(etcd)) as stream:
        created = [await answered(stream) for _ in range(2)]
        assert [answer.created for answer in created] == [True, True]
        assert created[0].watch_id == 7
        everything = created[1].watch_id
        await etcd.put("a")
        both = [await answered(stream) for _ in range(2)]
        assert {answer.watch_id for answer in both} == {7, everything}
        await stream.write(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=7)))
        cancelled = await answered(stream)
        assert (cancelled.watch_id, cancelled.canceled, cancelled.compact_revision) == (7, True, 0)
        await etcd.put("a")
        assert (await answered(stream)).watch_id == everything


@contract
async def test_a_watch_that_cannot_be_is_refused(etcd: Subject) -> None:
    empty = rpc.WatchCreateRequest(key=etcd.key("b"), range_end=etcd.key("a"))
    twice = rpc.WatchCreateRequest(key=etcd.key("a"), watch_id=7)
    async with etcd.watching(empty, twice, twice) as stream:
        refused = await answered(stream)
        assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
        assert refused.cancel_reason
        assert not (await answered(stream)).canceled
        assert (await answered(stream)).canceled


@contract
async def test_a_progress_request_is_answered_for_the_whole_stream(etcd: Subject) -> None:
    async with etcd.watching(create(etcd)) as stream:
        await answered(stream)
        revision = await etcd.put("a")
        await events(stream, 1)
        await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        answer = await answered(stream)
        assert (answer.watch_id, list(answer.events), answer.canceled) == (-1, [], False)
        assert answer.header.revision >= revision


@contract
async def test_a_progress_request_is_answered_for_a_watch_that_has_seen_nothing(etcd: Subject) -> None:
    before = await etcd.put("a")
    async with etcd.watching(create(etcd, before)) as stream:
        await answered(stream)
        await events(stream, 1)
        for _ in range(2):
            await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            assert (await answered(stream)).watch_id == -1


@contract
async def test_a_watch_without_events_says_that_it_is_alive(etcd: Subject) -> None:
    before = await etcd.put("a")
    async with (
        asyncio.timeout(5.0),
        etcd.impatient_client(0.2) as client,
        aclosing(watch(client, etcd.prefix, before + 1, backoff())) as items,
    ):
        assert isinstance(await anext(items), Heard)
        assert isinstance(await anext(items), Heard)
        await etcd.put("b")
        changed = await anext(item async for item in items if isinstance(item, Changes))
    assert [shown(event) for event in changed.events] == ["+b"]


@contract
async def test_a_watch_from_before_the_compaction_says_so(etcd: Subject) -> None:
    first = await etcd.put("a")
    for _ in range(3):
        last = await etcd.put("a")
    await etcd.client.compact(last)
    with pytest.raises(Compacted) as refused:
        await changes(etcd, first, 1)
    assert refused.value.compact_revision == last
    async with etcd.watching(create(etcd, last)) as stream:
        assert [event.kv.mod_revision for event in await events(stream, 1)] == [last]
    await etcd.put("a")
    assert [event.kv.mod_revision for event in await changes(etcd, last + 1, 1)] == [last + 1]


@contract
async def test_following_begins_with_a_list_and_misses_nothing(etcd: Subject) -> None:
    await etcd.put("b")
    await etcd.put("a")
    async with aclosing(follow(etcd.client, etcd.prefix, backoff())) as items:
        listed = await anext(items)
        assert isinstance(listed, Snapshot)
        assert [found.key[-1:] for found in listed.kvs] == [b"b", b"a"]
        await etcd.client.txn([], [put(etcd.key("c"), b""), delete(etcd.key("b"))])
        changed = await anext(item async for item in items if isinstance(item, Changes))
    assert [shown(event) for event in changed.events] == ["+c", "-b"]
    assert changed.revision > listed.revision
