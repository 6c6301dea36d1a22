"""A leader whose key goes too early is waited for: until it has said that it stopped, or its deadline is past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from election.keys import range_end
from election.leadership import Campaigning, Leading
from election.pb.etcd.kv_pb2 import Event
from election.records import Candidate as Queued
from election.records import CandidateRecord
from tests.fake.clock import virtual
from tests.fake.store import Interval
from tests.simulation.world import ELECTION, KEYS, Machine, Node, World, leads, standing, world

TTL_S = 10
"""The default of a candidate."""
SETTLED_S = 3.0
"""Longer than it takes until those who wait have asked how long the leader's lease lasts."""
PREFIX = KEYS.campaign(ELECTION)


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
    """It stands again, and then nobody waits any longer."""
    here = world()
    async with settled(here, "a", "b") as (stranger, [a, b]):
        await rob(stranger, a, what)
        async with asyncio.timeout(2):
            await leads(b)
        listed = await stranger.client.list(PREFIX)
        state = b.candidate.state
        assert isinstance(state, Leading)
        assert [Queued.of(ELECTION, kv).id for kv in listed.kvs] == ["b", "a"]
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
async def test_who_leaves_without_a_successor_says_so_before() -> None:
    """Somebody may have come meanwhile, who would wait otherwise."""
    here = world()
    async with settled(here, "a") as (_, [a]):
        state = a.candidate.state
        assert isinstance(state, Leading)
        a.candidate.leave()
    interval = Interval(PREFIX, range_end(PREFIX))
    assert not here.etcd.store.select(interval)
    *_, said, gone = [event for _, events in here.etcd.store.events(1, here.etcd.store.revision) for event in events]
    record = CandidateRecord.decode(said.kv.value)
    assert record is not None
    assert record.ended == state.lease
    assert gone.type == Event.DELETE
    assert gone.kv.key == said.kv.key
