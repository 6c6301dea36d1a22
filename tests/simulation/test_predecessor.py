"""A leader whose key goes too early is waited for: until it has said that it stopped, or its deadline is past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message

from election.etcd import methods, txn
from election.etcd.methods import Method
from election.leadership import Campaigning, Leading
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import Event
from tests.fake.clock import virtual
from tests.simulation.world import ELECTION, KEYS, Machine, Node, World, leads, standing, world

TTL_S = 10
"""The default of a candidate."""
SETTLED_S = 3.0
"""Longer than it takes until those who wait have asked how long the leader's lease lasts."""


@asynccontextmanager
async def settled(here: World, *names: str) -> AsyncGenerator[tuple[Machine, list[Node]]]:
    """The first leads, the others wait; and a stranger, who can reach etcd."""
    async with here.machine() as stranger, standing(here, names) as nodes:
        assert await leads(*nodes) is nodes[0]
        await asyncio.sleep(SETTLED_S)
        yield stranger, nodes


async def rob(stranger: Machine, node: Node, what: str) -> None:
    state = node.candidate.state
    assert isinstance(state, Campaigning | Leading)
    if what == "key":
        await stranger.client.delete(KEYS.candidate(ELECTION, state.lease))
    else:
        await stranger.client.lease_revoke(state.lease)


def now_s() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("what", ["key", "lease"])
@virtual
async def test_who_cannot_hear_that_it_was_robbed_is_waited_for(what: str) -> None:
    """It acts until its deadline, and nobody else before that; with a key alone, its lease is ended as well."""
    here = world()
    async with settled(here, "a", "b", "c") as (stranger, [a, b, c]):
        state = a.candidate.state
        assert isinstance(state, Leading)
        a.transport.cut()
        await rob(stranger, a, what)
        robbed_at_s = now_s()
        await asyncio.sleep(1)
        assert a.candidate.is_leader
        assert (await stranger.client.lease_time_to_live(state.lease)).TTL == -1
        async with asyncio.timeout(TTL_S + 2):
            assert await leads(b, c) is b
        assert now_s() - robbed_at_s > TTL_S - 1
    here.check_spans()


@virtual
async def test_all_are_robbed_by_etcd_itself_and_remember_who_led() -> None:
    """As by a member that stood still: those who waited lose their places, and what they know goes with them."""
    here = world()
    async with settled(here, "a", "b", "c") as (stranger, [a, b, c]):
        a.transport.cut()
        for node in (c, b, a):
            await rob(stranger, node, "lease")
        async with asyncio.timeout(TTL_S + 2):
            await leads(b, c)
    here.check_spans()


@pytest.mark.parametrize("what", ["key", "lease"])
@virtual
async def test_who_hears_of_it_says_that_it_has_stopped(what: str) -> None:
    """Then nobody waits any longer."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        await rob(stranger, a, what)
        async with asyncio.timeout(0.5):
            await leads(b)
    here.check_spans()


@virtual
async def test_the_work_of_who_was_robbed_is_waited_for_while_it_ends() -> None:
    """It says that it has stopped when its work is joined, and not when it has noticed."""
    here = world()
    async with here.machine() as stranger, here.node("a") as a, here.node("b") as b:

        async def slow(term: object) -> None:
            del term
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(4)

        standing_a = asyncio.create_task(a.candidate.lead(slow))
        await leads(a)
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(SETTLED_S)
        await rob(stranger, a, "lease")
        await asyncio.sleep(3.9)
        assert not b.candidate.is_leader
        async with asyncio.timeout(2):
            await leads(b)
        for node in (a, b):
            node.candidate.leave()
        await asyncio.gather(standing_a, standing_b)


@virtual
async def test_a_leader_whose_record_a_stranger_has_written_keeps_its_lease() -> None:
    """Its key is still there, and it leads on."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        state = a.candidate.state
        assert isinstance(state, Leading)
        await stranger.client.txn([], [txn.put(KEYS.candidate(ELECTION, state.lease), b"else", keep_lease=True)])
        await asyncio.sleep(2 * TTL_S)
        assert a.candidate.is_leader
        assert not b.candidate.is_leader
    here.check_spans()


@virtual
async def test_nobody_is_waited_for_whose_lease_has_ended_in_its_time() -> None:
    """A leader that has died costs no more than its TTL."""
    here = world()
    async with settled(here, "a", "b") as (_, [a, b]):
        a.transport.cut()
        async with asyncio.timeout(TTL_S + 1):
            await leads(b)
    here.check_spans()


@virtual
async def test_nobody_is_waited_for_who_was_not_seen() -> None:
    """Who comes when the key has gone knows of nobody."""
    here = world()
    async with settled(here, "a") as (stranger, [a]):
        a.transport.cut()
        await rob(stranger, a, "lease")
        async with standing(here, ["b"]) as [b], asyncio.timeout(1):
            await leads(b)


@virtual
async def test_who_leaves_says_that_it_has_stopped_before_its_key_goes() -> None:
    """Somebody may have come meanwhile, who would wait otherwise; and who hands over says so, too."""
    here = world()
    async with settled(here, "a", "b") as (_, [a, b]):
        handed_over, alone = (node.candidate.state for node in (a, b))
        assert isinstance(handed_over, Leading)
        assert isinstance(alone, Campaigning)
        for node in (a, b):
            await leads(node)
            node.candidate.leave()
    written = [event for _, events in here.etcd.store.events(1, here.etcd.store.revision) for event in events]
    *_, said, gone = written
    assert (said.kv.key, said.kv.value) == (KEYS.ended(ELECTION), f"{alone.lease:x}".encode())
    assert (gone.type, gone.kv.key) == (Event.DELETE, KEYS.candidate(ELECTION, alone.lease))
    told = [event.kv.value for event in written if event.kv.key == KEYS.ended(ELECTION)]
    assert told == [f"{state.lease:x}".encode() for state in (handed_over, alone)]


@virtual
async def test_what_was_said_is_found_though_others_have_said_it_since() -> None:
    """The term after it may be over, too, before somebody looks."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        said, later = KEYS.ended(ELECTION), asyncio.Event()

        async def hold(_: int, method: Method[Any, Any], request: Message) -> None:
            if isinstance(request, rpc.RangeRequest) and request.key == said:
                await later.wait()

        b.transport.before_call = hold
        await rob(stranger, a, "lease")
        while (await stranger.client.get(said))[0] is None:
            await asyncio.sleep(0.01)
        await stranger.client.put(said, b"another one's")
        later.set()
        async with asyncio.timeout(1):
            await leads(b)
    here.check_spans()


@virtual
async def test_who_is_robbed_and_leaves_says_that_it_has_stopped() -> None:
    """It does not stand again; those who wait hear of it all the same."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        await rob(stranger, a, "lease")
        a.candidate.leave()
        async with asyncio.timeout(1):
            await leads(b)
    here.check_spans()


@virtual
async def test_an_error_while_it_waits_is_told_and_keeps_nobody_from_leading(caplog: pytest.LogCaptureFixture) -> None:
    """It follows who leads anew."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        failed: list[str] = []

        async def fail(_: int, method: Method[Any, Any], request: Message) -> None:
            del request
            if method.path == methods.LEASE_TIME_TO_LIVE.path and not failed:
                failed.append(method.path)
                raise RuntimeError("a mistake")

        b.transport.before_call = fail
        await asyncio.sleep(SETTLED_S)
        assert "has failed, and begins anew" in caplog.text
        a.transport.cut()
        await rob(stranger, a, "lease")
        async with asyncio.timeout(TTL_S + 2):
            await leads(b)
    here.check_spans()
