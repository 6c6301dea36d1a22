"""Renewals on demand, on the fake etcd in virtual time: whose answer is whose, and who has to wait for whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.message import Message

from election.errors import EtcdUnavailable, LeaseNotFound
from election.etcd.methods import LEASE_KEEP_ALIVE, Method
from election.etcd.renewer import Renewer
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake.clock import virtual
from tests.simulation.world import Machine, world

TTL_S = 6


async def granted(machine: Machine) -> int:
    return (await machine.client.lease_grant(TTL_S)).ID


def streams(machine: Machine) -> list[Any]:
    return [each for each in machine.transport._streams if each._method is LEASE_KEEP_ALIVE]


@virtual
async def test_nothing_is_renewed_that_nobody_asks_for() -> None:
    """A lease that was renewed once ends a TTL later, although the stream is there."""
    async with world().machine() as machine, Renewer(machine.client) as renewer:
        lease = await granted(machine)
        await asyncio.sleep(TTL_S - 1)
        assert (await renewer.renew(lease)).TTL == TTL_S
        await asyncio.sleep(TTL_S - 2)
        assert (await machine.client.lease_time_to_live(lease)).TTL == 1
        await asyncio.sleep(3)
        with pytest.raises(LeaseNotFound):
            await renewer.renew(lease)


@virtual
async def test_many_share_one_stream() -> None:
    """And each gets the answer to its own request; none is left when all is over."""
    async with world().machine() as machine:
        async with Renewer(machine.client) as renewer:
            leases = [await granted(machine) for _ in range(200)]
            for _ in range(3):
                answers = await asyncio.gather(*map(renewer.renew, leases))
                assert [answer.ID for answer in answers] == leases
                assert len(streams(machine)) == 1
        assert not streams(machine)


@virtual
async def test_an_answer_to_an_earlier_request_is_not_taken_for_that_to_a_later_one() -> None:
    """Who has given up a renewal, or asks twice at once, is not told that the later one was done before it was."""
    async with world().machine() as machine, Renewer(machine.client) as renewer:
        lease = await granted(machine)
        await renewer.renew(lease)
        sent: list[float] = []
        held = asyncio.Event()

        async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
            if isinstance(answer, rpc.LeaseKeepAliveResponse):
                sent.append(machine.clock.now_s())
                if len(sent) == 1:
                    await held.wait()

        machine.transport.after_call = hold
        first = asyncio.create_task(renewer.renew(lease))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(0.1)
        asked_at_s = machine.clock.now_s()
        second = asyncio.create_task(renewer.renew(lease))
        await asyncio.sleep(0.05)
        held.set()
        await second
        assert sent[-1] >= asked_at_s
        assert len(sent) == 2


@virtual
async def test_a_renewal_that_was_given_up_before_it_was_sent_leaves_no_trace() -> None:
    """It waits while another one is written; later ones of its lease share the stream as before."""
    async with world().machine() as machine, Renewer(machine.client) as renewer:
        one, other = await granted(machine), await granted(machine)
        await renewer.renew(one)
        held = asyncio.Event()

        async def hold(_: int, method: Method[Any, Any], request: Message) -> None:
            if method is LEASE_KEEP_ALIVE:
                await held.wait()

        machine.transport.before_call = hold
        writing = asyncio.create_task(renewer.renew(one))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(renewer.renew(other))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait({waiting})
        held.set()
        await writing
        opened = machine.client.open
        machine.client.open = None  # type: ignore[method-assign, assignment]
        assert (await renewer.renew(other)).TTL == TTL_S
        machine.client.open = opened  # type: ignore[method-assign]


@virtual
async def test_a_lease_that_has_expired_holds_up_nobody() -> None:
    """etcd answers nothing else on a stream while it waits for the end of such a lease."""
    async with world().machine() as machine, Renewer(machine.client) as renewer:
        gone = await granted(machine)
        await asyncio.sleep(TTL_S - 0.5)
        others = [await granted(machine) for _ in range(20)]
        await renewer.renew(others[0])
        await asyncio.sleep(0.6)  # etcd looks for what has expired twice a second
        began_s = machine.clock.now_s()
        blocked = asyncio.create_task(renewer.renew(gone, may_have_ended=True))
        await asyncio.sleep(0.01)
        await asyncio.gather(*map(renewer.renew, others))
        assert machine.clock.now_s() - began_s < 0.1
        assert not blocked.done()
        with pytest.raises(LeaseNotFound):
            await blocked


@virtual
async def test_a_member_that_fails_or_hangs_is_left_for_another() -> None:
    """Within a moment, for all who wait; and an etcd that cannot be reached at all is an error."""
    here = world()
    async with here.machine() as machine, Renewer(machine.client) as renewer:
        leases = [await granted(machine) for _ in range(20)]
        for fault in (here.etcd.pause, here.etcd.stop, here.etcd.isolate):
            await asyncio.gather(*map(renewer.renew, leases))
            fault(machine.client.member)
            began_s = machine.clock.now_s()
            await asyncio.gather(*map(renewer.renew, leases))
            assert machine.clock.now_s() - began_s < 2.5
            for member in range(3):
                here.etcd.resume(member)
        machine.transport.cut()
        with pytest.raises(EtcdUnavailable):
            await renewer.renew(leases[0])
        machine.transport.mend()
        for lease in [await granted(machine) for _ in range(3)]:
            await renewer.renew(lease)


@virtual
async def test_a_deposed_leader_confirms_nothing() -> None:
    """An answer from a raft term that is over renews nothing, and is not taken."""
    async with world().machine() as machine, Renewer(machine.client) as renewer:
        lease = await granted(machine)
        member = machine.client.member
        term = machine.client.raft_term

        async def depose(asked: int, method: Method[Any, Any], answer: Message) -> None:
            if isinstance(answer, rpc.LeaseKeepAliveResponse) and asked == member:
                answer.header.raft_term = term - 1
                answer.TTL = 4711

        machine.transport.after_call = depose
        assert (await renewer.renew(lease)).TTL == TTL_S
