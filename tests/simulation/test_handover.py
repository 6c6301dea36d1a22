"""Handing over: one transaction that ends a term and proves the next one."""

from __future__ import annotations

import asyncio

import pytest

from election.errors import ElectionError, LossReason, NotLeader
from election.keys import range_end
from election.leadership import Campaigning, Leading
from election.pb.etcd import rpc_pb2 as rpc
from election.queue import succession
from election.records import Candidate as Queued
from election.term import Term
from tests.fake.clock import virtual
from tests.simulation.world import ELECTION, KEYS, Node, leads, standing, world


def own_key(node: Node) -> bytes:
    state = node.candidate.state
    assert isinstance(state, Campaigning | Leading)
    return KEYS.candidate(ELECTION, state.lease)


@virtual
async def test_leaving_proves_the_next_in_line_in_the_same_revision() -> None:
    """The successor is proven where the leader's key is deleted: there is no moment without a leader."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
        before = (await b.client.list(KEYS.campaigns)).header.revision
        a.candidate.leave()
        await leads(b)
        prefix = KEYS.campaign(ELECTION)
        then = await b.client.range(rpc.RangeRequest(key=prefix, range_end=range_end(prefix), revision=before + 1))
        [successor] = [Queued.of(ELECTION, kv) for kv in then.kvs]
        assert successor.id == "b"
        assert successor.elected_at is not None
        assert KEYS.candidate(ELECTION, successor.lease) == own_key(b)
    here.check_spans()


@virtual
async def test_handing_over_to_the_next_in_line_and_standing_again() -> None:
    """The term ends with its reason, and its holder waits at the end of the queue."""
    here = world()
    async with standing(here, ["a", "b", "c"]) as [a, b, c]:
        await leads(a)
        state = a.candidate.state
        assert isinstance(state, Leading)
        a.candidate.hand_over()
        assert await leads(a, b, c) is b
        assert a.candidate.loss is not None
        assert (a.candidate.loss.token, a.candidate.loss.reason) == (state.token, LossReason.TRANSFERRED)
        await asyncio.sleep(2)
        b.candidate.hand_over()
        assert await leads(a, b, c) is c
        await asyncio.sleep(2)
        c.candidate.hand_over()
        assert await leads(a, b, c) is a
    here.check_spans()


@virtual
async def test_handing_over_to_somebody_further_back() -> None:
    """Those in between lose their places, queue anew, and lead later."""
    here = world()
    async with standing(here, ["a", "b", "c", "d"]) as [a, b, c, d]:
        await leads(a)
        a.candidate.hand_over("d")
        assert await leads(a, b, c, d) is d
        await asyncio.sleep(3)
        assert all(isinstance(node.candidate.state, Campaigning) for node in (a, b, c))
        d.candidate.leave()
        assert await leads(a, b, c) in (a, b, c)
    here.check_spans()


@virtual
async def test_a_successor_that_goes_while_the_work_is_joined_is_not_waited_for() -> None:
    """The transaction is refused, and made anew for whoever is next."""
    here = world()

    async def slow(term: Term) -> None:
        try:
            await here.work(term)
        finally:
            await asyncio.sleep(1)

    async with here.node("a") as a:
        standing_a = asyncio.create_task(a.candidate.lead(slow))
        await leads(a)
        async with standing(here, ["b", "c"]) as [b, c]:
            a.candidate.hand_over()
            a.transport.after_call = None
            await asyncio.sleep(0.5)
            await c.client.delete(own_key(b))
            assert await leads(b, c) is c
            a.candidate.leave()
            await standing_a
    here.check_spans()


@virtual
async def test_a_strangers_key_is_never_passed_over_nor_given_anything() -> None:
    """The request is refused, and the term goes on; on leaving, the stranger leads by being the oldest."""
    here = world()
    async with here.node("a") as a, here.machine() as stranger:
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        lease = (await stranger.client.lease_grant(60)).ID
        foreign = KEYS.candidate(ELECTION, lease)
        await stranger.client.put(foreign, b"alice", lease=lease)
        async with standing(here, ["b"]) as [b]:
            for to in (None, "b", "alice"):
                with pytest.raises(ElectionError, match="does not wait"):
                    a.candidate.hand_over(to)
            assert a.candidate.is_leader
            a.candidate.leave()
            await standing_a
            await asyncio.sleep(2)
            found, _ = await stranger.client.get(foreign)
            assert found is not None
            assert found.value == b"alice"
            assert not b.candidate.is_leader
            await stranger.client.lease_revoke(lease)
            await leads(b)


@virtual
async def test_nobody_to_hand_over_to() -> None:
    """Is an error, and the term goes on; who does not lead cannot hand over."""
    here = world()
    async with standing(here, ["a"]) as [a]:
        await leads(a)
        with pytest.raises(ElectionError, match="a candidate of ours does not wait"):
            a.candidate.hand_over()
        with pytest.raises(ElectionError, match="candidate 'z' does not wait"):
            a.candidate.hand_over("z")
        assert a.candidate.is_leader
    with pytest.raises(NotLeader):
        a.candidate.hand_over()


@virtual
async def test_a_handover_whose_answer_is_lost_hands_over_once() -> None:
    """The key is gone for its old holder, whatever it was told."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)

        async def lose(_: int, method: object, answer: object) -> None:
            if isinstance(answer, rpc.TxnResponse):
                await asyncio.sleep(60)

        a.transport.after_call = lose
        a.candidate.leave()
        async with asyncio.timeout(1):
            await leads(b)
    here.check_spans()


def test_who_succeeds() -> None:
    """The next one, or those up to the one named; nobody when a stranger is among them."""

    def queued(token: int, name: str, *, foreign: bool = False) -> Queued:
        return Queued(ELECTION, f"k{token}", token, 1, name, foreign=foreign)

    a, b, stranger, c = queued(1, "a"), queued(2, "b"), queued(3, "s", foreign=True), queued(4, "c")
    assert succession([], None) == ()
    assert list(succession([a, b, stranger, c], None)) == [a]
    assert list(succession([a, b, stranger, c], "b")) == [a, b]
    assert succession([a, b, stranger, c], "c") == ()
    assert succession([a, b, stranger, c], "s") == ()
    assert succession([stranger, a], None) == ()
