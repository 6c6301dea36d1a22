"""The breaker, on the fake etcd in virtual time: when the world looks wrong, nothing is reaped."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from election.agent_control import ask_to_reap
from election.agent_records import ReapRequest
from election.breaker import BreakerReason, close_breaker, hold_breaker, read_breaker
from election.collector import BreakerClosed, BreakerOpened, Reaped
from election.config import BreakerConfig
from election.errors import ConfigError
from election.etcd.methods import TXN, Method
from election.etcd.transport import RpcFailed
from election.keys import COLLECTOR_ELECTION
from tests.fake.clock import virtual
from tests.simulation.fleet import (
    GRACE_S,
    Working,
    agent_on,
    collector_on,
    is_reap,
    leave_state,
    stored,
    vanish,
    with_state,
    working,
)
from tests.simulation.world import KEYS, world

BREAKER = BreakerConfig(agents=3, share=0.5, hold_s=120)
FLEET = [f"w{number}" for number in range(10)]
HALF = FLEET[:5]


def reasons(here: Working) -> list[tuple[bool, BreakerReason | None]]:
    """What was told of the breaker."""
    return [
        (event.breaker.open, event.breaker.reason)
        for event in here.told
        if isinstance(event, BreakerOpened | BreakerClosed)
    ]


@virtual
async def test_when_half_of_the_agents_vanish_nothing_is_reaped_until_they_are_back() -> None:
    """It closes by itself, and who does not come back is reaped a grace later."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        await vanish(here.client, HALF)
        await asyncio.sleep(60)
        assert await with_state(here.client) == set(FLEET)
        breaker = await read_breaker(here.client, KEYS)
        assert (breaker.open, breaker.reason, breaker.missing, breaker.known) == (
            True, BreakerReason.VANISHED, 5, 10
        )  # fmt: skip
        assert reasons(here) == [(True, BreakerReason.VANISHED)]
        await leave_state(here.client, HALF[:4], alive=True)
        await asyncio.sleep(GRACE_S - 1)
        assert reasons(here) == [(True, BreakerReason.VANISHED), (False, BreakerReason.RECOVERED)]
        assert await with_state(here.client) == set(FLEET)
        await asyncio.sleep(2)
        assert await with_state(here.client) == set(FLEET) - {HALF[4]}


@virtual
async def test_an_operator_who_closes_it_has_the_rest_reaped() -> None:
    """At once, and they do not open it again."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        await vanish(here.client, HALF)
        await asyncio.sleep(30)
        await close_breaker(here.client, KEYS, by="op")
        await asyncio.sleep(1)
        assert await with_state(here.client) == set(FLEET) - set(HALF)
        assert reasons(here) == [(True, BreakerReason.VANISHED), (False, BreakerReason.OPERATOR)]


@virtual
async def test_it_closes_when_its_hold_ends() -> None:
    """Then they are dead."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        await vanish(here.client, HALF)
        await asyncio.sleep(BREAKER.hold_s - 5)
        assert await with_state(here.client) == set(FLEET)
        await asyncio.sleep(10)
        assert await with_state(here.client) == set(FLEET) - set(HALF)
        assert reasons(here) == [(True, BreakerReason.VANISHED), (False, BreakerReason.HOLD_ENDED)]


@virtual
async def test_a_wall_clock_that_jumps_ends_no_hold() -> None:
    """The hold is measured by a clock that does not."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        await vanish(here.client, HALF)
        await asyncio.sleep(20)
        here.machine.clock.jump_wall(3600)
        await asyncio.sleep(20)
        assert await with_state(here.client) == set(FLEET)


@virtual
async def test_the_next_collector_whose_wall_clock_is_ahead_keeps_it_open_for_a_grace_at_least() -> None:
    """So that agents and operators have that long."""
    here = world()
    async with working(here, "c1", breaker=BREAKER) as one:
        await leave_state(one.client, FLEET, alive=True)
        await vanish(one.client, HALF)
        await asyncio.sleep(20)
        one.machine.transport.cut(0, 1, 2)
        async with here.machine() as other:
            other.clock.jump_wall(3600)
            ahead = collector_on(other, "c2", breaker=BREAKER)
            running = asyncio.create_task(ahead.run())
            while not ahead.candidate.is_leader:
                await asyncio.sleep(0.05)
            await asyncio.sleep(GRACE_S - 1)
            assert await with_state(other.client) == set(FLEET)
            ahead.leave()
            await running
        one.machine.transport.mend()


@virtual
async def test_a_fleet_that_etcd_needs_longer_than_a_grace_to_expire_vanishes_at_once_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those who were reaped meanwhile count, too."""
    monkeypatch.setattr("election.collector.warden._EXPIRED_PER_S", 1.0)
    async with working(world(), breaker=BREAKER, grace_s=2.0) as here:
        await leave_state(here.client, FLEET, alive=True)
        for agent in FLEET[:7]:
            await vanish(here.client, [agent])
            await asyncio.sleep(1.2)
        assert reasons(here) == [(True, BreakerReason.VANISHED)]
        assert len(await with_state(here.client)) >= 5


@virtual
async def test_the_next_collector_keeps_it_open_and_open_for_no_longer() -> None:
    """It is in etcd, not in the collector."""
    here = world()
    async with working(here, "c1", breaker=BREAKER) as one, here.machine() as other:
        await leave_state(one.client, FLEET, alive=True)
        await vanish(one.client, HALF)
        await asyncio.sleep(60)
        first = await read_breaker(one.client, KEYS)
        next_one = collector_on(other, "c2", breaker=BREAKER)
        running = asyncio.create_task(next_one.run())
        one.machine.transport.cut(0, 1, 2)
        await asyncio.sleep(30)
        assert next_one.candidate.is_leader
        assert await read_breaker(other.client, KEYS) == first
        assert await with_state(other.client) == set(FLEET)
        await asyncio.sleep(40)
        assert await with_state(other.client) == set(FLEET) - set(HALF)
        one.machine.transport.mend()
        next_one.leave()
        await running


@virtual
async def test_who_was_given_up_is_given_up_for_the_next_collector_as_well() -> None:
    """It looks up in etcd's history who was gone when the operator closed the breaker."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, FLEET, alive=True)
        await vanish(machine.client, HALF)
        await close_breaker(machine.client, KEYS, by="op")
        await vanish(machine.client, FLEET[9:])
        async with working(here, breaker=BREAKER) as later:
            await asyncio.sleep(GRACE_S + 1)
            assert await with_state(later.client) == set(FLEET[5:9])
            assert reasons(later) == []


@virtual
async def test_who_was_given_up_once_is_not_given_up_for_ever() -> None:
    """An agent that has registered since, and is gone again, counts."""
    here = world()
    async with here.machine() as machine, here.machine() as host:
        await leave_state(machine.client, FLEET[4:], alive=True)
        await close_breaker(machine.client, KEYS, by="op")
        async with AsyncExitStack() as stack:
            for name in FLEET[:4]:
                await stack.enter_async_context(agent_on(host, name))
            host.transport.cut(0, 1, 2)
            await asyncio.sleep(20)
            await vanish(machine.client, FLEET[8:])
            async with working(here, breaker=BREAKER) as later:
                await asyncio.sleep(60)
                assert await with_state(later.client) == set(FLEET)
                assert reasons(later) == [(True, BreakerReason.VANISHED)]


@virtual
async def test_a_new_collector_takes_all_who_are_missing_for_vanished_just_now() -> None:
    """It cannot know better: an etcd that was restored has lost the leases and kept the state."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, FLEET)
        async with working(here, breaker=BREAKER) as later:
            await asyncio.sleep(60)
            assert await with_state(later.client) == set(FLEET)
            assert reasons(later) == [(True, BreakerReason.NONE_ALIVE)]


@virtual
async def test_nobody_is_reaped_right_after_etcd_has_changed_its_leader() -> None:
    """For one grace."""
    here = world()
    async with working(here, breaker=BREAKER) as one:
        await leave_state(one.client, FLEET, alive=True)
        await asyncio.sleep(5)
        await vanish(one.client, FLEET[:1])
        await asyncio.sleep(GRACE_S - 2)
        here.etcd.change_leader()
        await asyncio.sleep(GRACE_S - 1)
        assert await with_state(one.client) == set(FLEET)
        await asyncio.sleep(5)
        assert await with_state(one.client) == set(FLEET[1:])
        assert reasons(one) == [(True, BreakerReason.ETCD_LEADER_CHANGED), (False, BreakerReason.SETTLED)]


@virtual
async def test_agents_that_leave_by_themselves_do_not_open_it() -> None:
    """A fleet that is scaled down is fine."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET[:4], alive=True)
        for agent in FLEET[:3]:
            await here.client.put(KEYS.state(agent, "registration"), b'{"left_at":"2026-01-01T00:00:00.000Z"}')
        await vanish(here.client, FLEET[:3])
        await asyncio.sleep(GRACE_S + 1)
        assert await with_state(here.client) == {FLEET[3]}
        assert reasons(here) == []


@virtual
async def test_what_an_operator_holds_is_held_from_the_moment_it_is_written() -> None:
    """The reap compares the breaker's key, so a collector that has not heard of the hold can do nothing."""
    async with working(world()) as here:
        await leave_state(here.client, ["w"], alive=True)
        held = 0

        async def before(_: int, __: Method[Message, Message], request: Message) -> None:
            nonlocal held
            if not held and is_reap(request):
                held = 1
                held = (await hold_breaker(here.client, KEYS, by="op")).revision

        here.machine.transport.before_call = before
        await vanish(here.client, ["w"])
        await asyncio.sleep(30)
        assert held
        assert await stored(here.client) != {}
        assert reasons(here) == [(True, BreakerReason.OPERATOR)]
        await close_breaker(here.client, KEYS, by="op")
        await asyncio.sleep(1)
        assert await stored(here.client) == {}


@virtual
async def test_a_hold_for_a_time_ends_by_itself() -> None:
    """When the operator said so."""
    async with working(world()) as here:
        await leave_state(here.client, ["w"])
        await hold_breaker(here.client, KEYS, by="op", hold_s=90)
        await asyncio.sleep(85)
        assert await stored(here.client) != {}
        await asyncio.sleep(70)
        assert await stored(here.client) == {}


@pytest.mark.parametrize("value", [b"", b"open", b'{"v":2,"open":false}', b'{"v":1,"open":false,"reason":"tired"}'])
def test_a_breaker_that_cannot_be_read_is_open(value: bytes) -> None:
    """Until an operator closes it; deleting the key closes it, too."""

    @virtual
    async def run() -> None:
        async with working(world()) as here:
            await here.client.put(KEYS.breaker, value)
            await leave_state(here.client, ["a", "b"], alive=True)
            await vanish(here.client, ["a"])
            await asyncio.sleep(60)
            assert await with_state(here.client) == {"a", "b"}
            assert reasons(here) == [(True, BreakerReason.UNREADABLE)]
            await here.client.delete(KEYS.breaker)
            await asyncio.sleep(1)
            assert await with_state(here.client) == {"b"}

    run()


@virtual
async def test_an_order_goes_through_an_open_breaker_for_the_incarnation_that_it_names() -> None:
    """An operator who names one agent has looked at it."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        await vanish(here.client, HALF)
        await asyncio.sleep(20)
        for agent, incarnation in ((HALF[0], 0), (HALF[1], 7)):
            await here.client.put(KEYS.reap_request(agent), ReapRequest(agent, incarnation, by="op").encode())
        await here.client.put(KEYS.reap_request(HALF[2]), b"please")
        await here.client.put(KEYS.reap_request(FLEET[9]), ReapRequest(FLEET[9], 0, by="op").encode())
        await asyncio.sleep(2)
        assert await with_state(here.client) == set(FLEET) - {HALF[0]}
        assert [event.tombstone.agent for event in here.of(Reaped)] == [HALF[0]]
        assert (await here.client.get(KEYS.reap_request(HALF[0])))[0] is None


@virtual
async def test_an_order_ends_the_grace() -> None:
    """Also one that was given before the collector began."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, ["a", "b"])
        await machine.client.put(KEYS.reap_request("a"), ReapRequest("a", 0, by="op").encode())
        async with working(here, grace_s=1_000) as later:
            await asyncio.sleep(1)
            assert await with_state(later.client) == {"b"}
            await later.client.put(KEYS.reap_request("b"), ReapRequest("b", 0, by="op").encode())
            await asyncio.sleep(1)
            assert await with_state(later.client) == set()


@virtual
async def test_an_order_for_state_that_no_reconcile_has_found_yet_is_carried_out() -> None:
    """Such as state that an operator has just put back."""
    async with working(world(), grace_s=1_000) as here:
        await asyncio.sleep(1)
        await leave_state(here.client, ["a"])
        await here.client.put(KEYS.reap_request("a"), ReapRequest("a", 0, by="op").encode())
        await asyncio.sleep(1)
        assert await with_state(here.client) == set()


@pytest.mark.parametrize("hold_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_hold_for_no_time_is_refused(hold_s: float) -> None:
    """Before anything is written."""

    @virtual
    async def run() -> None:
        async with world().machine() as machine:
            with pytest.raises(ConfigError, match="cannot be held"):
                await hold_breaker(machine.client, KEYS, by="op", hold_s=hold_s)
            assert not (await read_breaker(machine.client, KEYS)).open

    run()


@virtual
async def test_a_collector_that_was_deposed_writes_no_breaker() -> None:
    """What it writes there is fenced as well."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        deposed = False

        async def before(_: int, method: Method[Message, Message], request: Message) -> None:
            nonlocal deposed
            if method.path == TXN.path and not deposed and b"vanished" in request.SerializeToString():
                deposed = True
                await here.client.put(KEYS.candidate(COLLECTOR_ELECTION, 1), b"somebody else")
                for kv in (await here.client.list(KEYS.campaign(COLLECTOR_ELECTION))).kvs[:1]:
                    await here.client.delete(kv.key)

        here.machine.transport.before_call = before
        await vanish(here.client, HALF)
        await asyncio.sleep(0.5)
        assert deposed
        assert not (await read_breaker(here.client, KEYS)).open


@virtual
async def test_many_who_vanish_one_by_one_are_counted_as_fast_as_they_do() -> None:
    """However long it takes to look at what each has left: nobody is reaped before it is known how many are gone."""
    here = world()
    fleet = [f"w{number}" for number in range(300)]
    async with working(here, breaker=BREAKER) as one, here.machine() as other:
        await leave_state(other.client, fleet, alive=True)

        async def slow(_: int, method: Method[Any, Any], __: Message) -> None:
            if method is TXN:
                await asyncio.sleep(0.1)

        one.machine.transport.before_call = slow
        await asyncio.gather(*(vanish(other.client, [agent]) for agent in fleet))
        await asyncio.sleep(60)
        assert one.of(Reaped) == []
        assert await with_state(other.client) == set(fleet)


@virtual
async def test_an_order_that_was_withdrawn_is_not_carried_out() -> None:
    """Also where the collector has heard of it, and could not reap at the time: the breaker holds again."""
    here = world()
    async with working(here, breaker=BREAKER) as one, here.machine() as other:
        await hold_breaker(other.client, KEYS, by="op")
        await leave_state(other.client, ["w"], alive=True)
        await vanish(other.client, ["w"])
        await asyncio.sleep(GRACE_S + 3)
        refused = True

        async def refuse(_: int, __: Method[Any, Any], request: Message) -> None:
            if refused and is_reap(request):
                raise RpcFailed(StatusCode.UNAVAILABLE, "etcdserver: too many requests")

        one.machine.transport.before_call = refuse
        asked = await ask_to_reap(other.client, KEYS, "w", by="op")
        await asyncio.sleep(2)
        await other.client.lease_revoke(asked.lease)
        await asyncio.sleep(2)
        refused = False
        await asyncio.sleep(30)
        assert await with_state(other.client) == {"w"}


@virtual
async def test_it_opens_also_where_the_grace_is_so_short_that_each_is_reaped_before_the_next_vanishes() -> None:
    """Those who were reaped within the last second count as well."""
    async with working(world(), breaker=BREAKER, grace_s=0.0) as here:
        await leave_state(here.client, FLEET, alive=True)
        for agent in FLEET:
            await vanish(here.client, [agent])
            await asyncio.sleep(0.08)
        await asyncio.sleep(1)
        assert await with_state(here.client) >= set(FLEET[6:])
        assert reasons(here) == [(True, BreakerReason.VANISHED)]


@virtual
async def test_while_it_cannot_be_opened_nothing_is_reaped() -> None:
    """However long that takes, and although those who vanished did not vanish just now any more."""
    async with working(world(), breaker=BREAKER) as here:
        await leave_state(here.client, FLEET, alive=True)
        refused = True

        async def refuse(_: int, __: Method[Any, Any], request: Message) -> None:
            if refused and b'"v": 1, "open": true' in request.SerializeToString():
                raise RpcFailed(StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

        here.machine.transport.before_call = refuse
        await vanish(here.client, HALF)
        await asyncio.sleep(2 * BREAKER.hold_s)
        assert await with_state(here.client) == set(FLEET)
        refused = False
        await asyncio.sleep(10)
        assert await with_state(here.client) == set(FLEET)
        assert reasons(here) == [(True, BreakerReason.VANISHED)]
