"""The real agents and collectors on the fake etcd, in virtual time: what is collected, and what never is."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from google.protobuf.message import Message

from election.agent_records import AgentRecord, Tombstone
from election.agent_restore import restore
from election.agents import Agent
from election.collector import (
    BreakerClosed,
    BreakerOpened,
    Foreign,
    Reaped,
    ReapFailed,
    Recovered,
    Suspected,
    WouldReap,
)
from election.config import BreakerConfig
from election.errors import AgentExists, AgentLost, EtcdError
from election.etcd.client import EtcdClient
from election.etcd.methods import TXN, Method, Req, Resp
from election.etcd.transport import Metadata, Stream
from election.keys import COLLECTOR_ELECTION, REGISTRATION, range_end
from election.pb.etcd import rpc_pb2 as rpc
from election.records import CANDIDATE_LIMIT
from tests.fake.clock import virtual
from tests.fake.transport import FakeTransport
from tests.simulation.fleet import (
    GRACE_S,
    TTL_S,
    agent_on,
    collector_on,
    is_reap,
    leave_state,
    stored,
    tombstones,
    vanish,
    with_state,
    working,
)
from tests.simulation.world import KEYS, Machine, World, hurt, world

SEEDS = range(40)
FAULTS = ("cut off", "mend", "mend", "move", "stop", "resume", "compact")


async def die(machine: Machine, agent: Agent) -> None:
    """The agent's machine is gone, as far as etcd can see."""
    assert agent.registration is not None
    machine.transport.cut(0, 1, 2)


@virtual
async def test_a_dead_agent_is_collected_once_after_its_grace() -> None:
    """Its state goes, and a tombstone tells what it was, although two collectors run."""
    here = world()
    async with working(here, "c1") as one, here.machine() as other, here.machine() as host:
        waiting = asyncio.create_task(collector_on(other, "c2").run())
        async with agent_on(host) as agent:
            await agent.put("task", "x")
            incarnation = agent.incarnation
            await die(host, agent)
            await asyncio.sleep(TTL_S + GRACE_S - 2)
            assert await stored(one.client) != {}
            await asyncio.sleep(4)
            assert await stored(one.client) == {}
            [tombstone] = await tombstones(one.client)
            assert (tombstone.incarnation, tombstone.collector) == (incarnation, "c1")
            assert [(entry.key, entry.value) for entry in tombstone.collected] == [("task", b"x")]
            assert len(one.of(Reaped)) == 1
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting


@virtual
async def test_an_agent_that_is_back_within_its_grace_keeps_its_state() -> None:
    """As a new incarnation."""
    here = world()
    async with working(here) as machine, here.machine() as host, agent_on(host) as agent:
        await agent.put("task", "x")
        first = agent.incarnation
        await die(host, agent)
        await asyncio.sleep(TTL_S + 2)
        host.transport.mend()
        await asyncio.sleep(20)
        assert agent.incarnation > first
        assert (await agent.items()) == {"task": b"x"}
        assert await tombstones(machine.client) == []
        assert machine.of(Reaped) == []


Meanwhile = Callable[[EtcdClient], Awaitable[object]]


async def reap_while(here: World, meanwhile: Meanwhile) -> tuple[dict[str, bytes], list[Tombstone]]:
    """Lets an agent die, and does something just before etcd gets the first transaction that would reap it."""
    async with working(here, reconcile_s=1.0) as machine, here.machine() as other:
        await other.client.put(KEYS.state("w", "a"), b"1")
        await other.client.put(KEYS.state("w", "b"), b"2")
        done = False

        async def before(_: int, __: Method[Any, Any], request: Message) -> None:
            nonlocal done
            if not done and is_reap(request):
                done = True
                await meanwhile(other.client)

        machine.machine.transport.before_call = before
        await asyncio.sleep(GRACE_S + 2)
        assert done
        return await stored(other.client), await tombstones(other.client)


@virtual
async def test_an_agent_that_comes_back_in_the_same_moment_survives() -> None:
    """The transaction compares that the liveness key is absent."""
    alive: Meanwhile = lambda client: client.put(KEYS.alive("w"), b"{}")  # noqa: E731
    assert await reap_while(world(), alive) == ({"a": b"1", "b": b"2"}, [])


@virtual
async def test_a_collector_that_was_deposed_can_do_nothing() -> None:
    """The transaction compares its own leader key."""

    async def depose(client: EtcdClient) -> None:
        for kv in (await client.list(KEYS.campaign(COLLECTOR_ELECTION))).kvs:
            await client.delete(kv.key)

    kept, buried = await reap_while(world(), depose)
    assert (kept, buried) == ({"a": b"1", "b": b"2"}, [])


@pytest.mark.parametrize("change", ["changed", "added", "deleted"])
def test_state_that_changed_since_it_was_read_is_not_reaped_as_it_was(change: str) -> None:
    """It is read again, so that the tombstone has what was there."""

    @virtual
    async def run() -> None:
        changes: dict[str, Meanwhile] = {
            "changed": lambda client: client.put(KEYS.state("w", "a"), b"new"),
            "added": lambda client: client.put(KEYS.state("w", "c"), b"new"),
            "deleted": lambda client: client.delete(KEYS.state("w", "a")),
        }
        expected = {
            "changed": {"a": b"new", "b": b"2"},
            "added": {"a": b"1", "b": b"2", "c": b"new"},
            "deleted": {"b": b"2"},
        }
        kept, [tombstone] = await reap_while(world(), changes[change])
        assert kept == {}
        assert {entry.key: entry.value for entry in tombstone.collected} == expected[change]

    run()


@virtual
async def test_an_agent_whose_registration_is_deleted_meanwhile_is_not_reaped_as_that_incarnation() -> None:
    """What the tombstone says of it was there at that moment, too."""
    here = world()
    async with working(here) as machine, here.machine() as host, agent_on(host) as agent:
        await agent.put("task", "x")
        deleted = False

        async def before(_: int, __: Method[Any, Any], request: Message) -> None:
            nonlocal deleted
            if not deleted and is_reap(request):
                deleted = True
                await machine.client.delete(KEYS.state("w", REGISTRATION))

        machine.machine.transport.before_call = before
        await die(host, agent)
        await asyncio.sleep(TTL_S + 2 * GRACE_S + 3)
        assert deleted
        assert [tombstone.incarnation for tombstone in await tombstones(machine.client)] == [0]


@virtual
async def test_who_came_back_and_left_before_it_was_read_has_a_grace_of_its_own() -> None:
    """What is read is of another incarnation than the one whose grace is over."""
    here = world()
    async with working(here) as one, here.machine() as host:
        async with agent_on(host) as agent:
            await agent.put("task", "x")
        left_at_s = asyncio.get_running_loop().time()
        incarnation = 0

        async def return_briefly(_: int, __: Method[Any, Any], request: Message) -> None:
            nonlocal incarnation
            reads = isinstance(request, rpc.TxnRequest) and not request.compare
            if reads and not incarnation and asyncio.get_running_loop().time() > left_at_s + GRACE_S - 1:
                async with agent_on(host) as agent:
                    incarnation = agent.incarnation

        one.machine.transport.before_call = return_briefly
        await asyncio.sleep(GRACE_S + 2)
        assert incarnation
        assert await tombstones(host.client) == []
        await asyncio.sleep(GRACE_S)
        assert [tombstone.incarnation for tombstone in await tombstones(host.client)] == [incarnation]


@virtual
async def test_no_lease_is_left_behind_by_a_reap_that_etcd_refused() -> None:
    """A tombstone's lease goes with a tombstone that was not written."""
    here = world()

    async def revive(client: EtcdClient) -> None:
        await client.put(KEYS.alive("w"), b"{}")

    await reap_while(here, revive)
    async with here.machine() as machine:
        assert list((await machine.client.leases()).leases) == []


@virtual
async def test_a_reap_whose_answer_was_lost_is_told_once_and_keeps_its_tombstone() -> None:
    """It is resolved by reading back."""
    here = world()
    async with working(here, reconcile_s=1.0) as machine, here.machine() as other:
        await other.client.put(KEYS.state("w", "a"), b"1")

        async def lose(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == TXN.path and isinstance(answer, rpc.TxnResponse) and len(answer.responses) == 2:
                machine.machine.transport.after_call = None
                await asyncio.sleep(60)

        machine.machine.transport.after_call = lose
        await asyncio.sleep(GRACE_S + 20)
        assert await stored(other.client) == {}
        assert len(await tombstones(other.client)) == 1
        assert len(machine.of(Reaped)) == 1


@virtual
async def test_state_without_a_registration_is_collected_after_the_same_grace() -> None:
    """Somebody stored it and never lived; its incarnation is 0."""
    here = world()
    async with working(here, reconcile_s=1.0) as machine:
        await machine.client.put(KEYS.state("ghost", "a"), b"1")
        await asyncio.sleep(GRACE_S + 2)
        assert await stored(machine.client, "ghost") == {}
        assert [tombstone.incarnation for tombstone in await tombstones(machine.client, "ghost")] == [0]


class Deaf(FakeTransport):
    """Its watches lose every answer with events while `deaf` is set."""

    deaf = False

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        stream = super().stream(member, method, metadata=metadata)
        read = stream.read

        async def hear() -> Resp | None:
            while True:
                answer = await read()
                if not (self.deaf and isinstance(answer, rpc.WatchResponse) and answer.events):
                    return answer

        stream.read = hear  # type: ignore[method-assign]
        return stream


@virtual
async def test_an_event_that_never_came_is_made_up_for_by_the_next_reconcile() -> None:
    """No event is relied on alone."""
    here = world()
    transport = Deaf(here.etcd)
    async with working(here, transport=transport, reconcile_s=20) as machine, here.machine() as other:
        await asyncio.sleep(1)
        transport.deaf = True
        await other.client.put(KEYS.state("w", "a"), b"1")
        await asyncio.sleep(1)
        transport.deaf = False
        await asyncio.sleep(GRACE_S + 5)
        assert await stored(machine.client) != {}
        await asyncio.sleep(20)
        assert await stored(machine.client) == {}


@virtual
async def test_a_state_too_large_for_one_transaction_is_collected_in_parts() -> None:
    """Each key is in one tombstone, and the last part ends the agent."""
    here = world()
    async with working(here) as machine, here.machine() as host, agent_on(host) as agent:
        for number in range(30):
            await agent.put(f"k{number:02}", b"x" * 60_000)
        for number in range(150):
            await agent.put(f"small-{number}", b"y")
        incarnation = agent.incarnation
        await die(host, agent)
        await asyncio.sleep(TTL_S + GRACE_S + 5)
        assert await stored(machine.client) == {}
        parts = await tombstones(machine.client)
        assert [(part.incarnation, part.part) for part in parts] == [(incarnation, n) for n in range(len(parts))]
        names = [entry.key for part in parts for entry in part.collected]
        assert len(names) == len(set(names)) == 180
        assert [event.tombstone for event in machine.of(Reaped)] == parts


@virtual
async def test_a_value_too_large_for_a_tombstone_stays_and_is_reported() -> None:
    """Better too much kept than something lost; the rest of the state is collected."""
    here = world()
    async with working(here, reconcile_s=1.0) as machine:
        await machine.client.put(KEYS.state("w", "big"), b"x" * 1_000_000)
        await machine.client.put(KEYS.state("w", "small"), b"x")
        await asyncio.sleep(GRACE_S + 3)
        assert list(await stored(machine.client)) == ["big"]
        assert any("too large" in event.error for event in machine.of(ReapFailed))


@pytest.mark.parametrize("value", [b"\x01" * 60_000, "\u4e2d".encode() * 20_000, b"\xff" * 60_000])
def test_a_state_of_360_kb_is_collected_whatever_is_in_it(value: bytes) -> None:
    """What JSON would have to escape is kept in base64."""

    @virtual
    async def run() -> None:
        here = world()
        async with working(here, reconcile_s=1.0) as machine:
            for number in range(6):
                await machine.client.put(KEYS.state("w", f"k{number}"), value)
            await asyncio.sleep(GRACE_S + 1)
            [tombstone] = await tombstones(machine.client)
            assert [entry.value for entry in tombstone.collected] == [value] * 6

    run()


@virtual
async def test_an_agent_whose_liveness_key_somebody_deletes_registers_again() -> None:
    """Its lease lives on, and nobody would see it; it looks once in a TTL."""
    here = world()
    async with here.machine() as host, agent_on(host) as agent:
        first = agent.incarnation
        await host.client.delete(KEYS.alive("w"))
        await asyncio.sleep(2 * TTL_S)
        assert agent.incarnation > first
        found, _ = await host.client.get(KEYS.alive("w"))
        assert found is not None
        assert found.create_revision == agent.incarnation
        assert len((await host.client.leases()).leases) == 1


@virtual
async def test_a_registration_of_a_stranger_that_is_too_large_holds_up_nobody() -> None:
    """Other programs write what they like; it is collected in parts as any other, and can be restored."""
    here = world()
    async with working(here) as one, here.machine() as other:
        record = AgentRecord("w", labels={"a": "x" * CANDIDATE_LIMIT})
        await leave_state(other.client, ["w", "v"], keys=150, alive=True)
        await other.client.put(KEYS.state("w", REGISTRATION), json.dumps(record.document()).encode())
        await vanish(other.client, ["w", "v"])
        await asyncio.sleep(GRACE_S + 5)
        assert await with_state(other.client) == set()
        assert one.collector.candidate.loss is None
        assert (await tombstones(other.client))[0].agent_record == record
        assert len((await restore(other.client, KEYS, "w")).written) == 151


@virtual
async def test_foreign_keys_are_nobodys_state() -> None:
    """What does not parse is left alone."""
    here = world()
    async with working(here) as machine:
        foreign = [KEYS.agents + b"alive/a/b", KEYS.agents + b"other/x", KEYS.agents + b"state/-bad/x"]
        for key in foreign:
            await machine.client.put(key, b"\xff")
        await asyncio.sleep(GRACE_S + 5)
        for key in foreign:
            assert (await machine.client.get(key))[0] is not None


@virtual
async def test_what_a_reaped_agent_writes_is_refused() -> None:
    """It cannot bring its state back."""
    here = world()
    async with working(here) as machine, here.machine() as host, agent_on(host) as agent:
        registration = agent.check()
        await machine.client.lease_revoke(registration.lease)
        with pytest.raises(AgentLost):
            await agent.put("task", "x")
        assert "task" not in await stored(machine.client)


@virtual
async def test_two_with_one_id_are_not_both_alive() -> None:
    """The second is refused, and its lease is given back."""
    here = world()
    async with here.machine() as one, here.machine() as other, agent_on(one):
        with pytest.raises(AgentExists):
            async with agent_on(other):
                pass
        assert len((await one.client.leases()).leases) == 1


@virtual
async def test_an_agent_stops_by_its_deadline_when_etcd_is_out_of_reach() -> None:
    """By the clock, at the moment of the call."""
    here = world()
    async with here.machine() as host, agent_on(host) as agent:
        agent.check()
        host.clock.skip(TTL_S)
        with pytest.raises(AgentLost):
            agent.check()


@virtual
async def test_an_agent_that_leaves_takes_its_liveness_with_it_and_leaves_its_state() -> None:
    """For the collector, which hands it over."""
    here = world()
    async with working(here) as machine, here.machine() as host:
        async with agent_on(host) as agent:
            await agent.put("task", "x")
        assert (await machine.client.get(KEYS.alive("w")))[0] is None
        assert (await stored(machine.client)).keys() == {"task", REGISTRATION}
        await asyncio.sleep(GRACE_S + 1)
        assert len(await tombstones(machine.client)) == 1


MANY = [f"w{number:03}" for number in range(300)]


@virtual
async def test_many_are_collected_together_and_one_that_is_back_holds_up_nobody() -> None:
    """In few transactions; those that changed meanwhile are read again."""
    here = world()
    async with working(here) as machine, here.machine() as other:
        await leave_state(machine.client, MANY, alive=True, keys=5)
        reaping = 0

        async def before(_: int, __: Method[Any, Any], request: Message) -> None:
            nonlocal reaping
            if is_reap(request):
                reaping += 1
                if reaping == 1:  # nothing is reaped yet
                    await other.client.put(KEYS.alive(MANY[40]), b"{}")
                    await other.client.put(KEYS.state(MANY[41], "k0"), b"new")

        machine.machine.transport.before_call = before
        await machine.client.delete(KEYS.alive_prefix, range_end(KEYS.alive_prefix))
        await asyncio.sleep(GRACE_S + 5)
        assert await with_state(machine.client) == {MANY[40]}
        assert len(await stored(machine.client, MANY[40])) == 5
        assert [event.agent for event in machine.of(Recovered)] == [MANY[40]]
        assert sorted(event.tombstone.agent for event in machine.of(Reaped)) == sorted({*MANY} - {MANY[40]})
        [changed] = await tombstones(machine.client, MANY[41])
        assert {entry.key: entry.value for entry in changed.collected}["k0"] == b"new"
        assert reaping <= 10


@virtual
async def test_tombstones_share_leases_and_none_is_left_without_one() -> None:
    """A lease for each would cost more than what it is there for."""
    here = world()
    async with working(here) as machine:
        await leave_state(machine.client, MANY)
        await machine.client.put(KEYS.alive("x"), b"{}")
    async with working(here, "d") as machine:
        await asyncio.sleep(GRACE_S + 5)
        kvs = (await machine.client.list(KEYS.reaped_prefix)).kvs
        assert len(kvs) == len(MANY)
        assert len({kv.lease for kv in kvs}) == 1
    async with here.machine() as other:
        assert {lease.ID for lease in (await other.client.leases()).leases} == {kvs[0].lease}


@virtual
async def test_a_collector_that_is_cancelled_while_it_reaps_takes_no_tombstone_with_it() -> None:
    """etcd has done it, and the answer finds nobody."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, ["w"])
        running = asyncio.create_task(collector_on(machine, "c").run())

        async def after(_: int, __: Method[Any, Any], answer: Message) -> None:
            if isinstance(answer, rpc.TxnResponse) and not await stored(here_too.client):
                running.cancel()
                await asyncio.sleep(5)

        async with here.machine() as here_too:
            machine.transport.after_call = after
            with pytest.raises(asyncio.CancelledError):
                await running
            assert len(await tombstones(here_too.client)) == 1


@virtual
async def test_a_lease_of_tombstones_that_is_gone_is_replaced() -> None:
    """Whoever took it."""
    here = world()
    async with working(here) as machine:
        for agent in ("a", "b"):
            await leave_state(machine.client, [agent], alive=True)
            await vanish(machine.client, [agent])
            await asyncio.sleep(GRACE_S + 3)
            assert await stored(machine.client, agent) == {}
            [kv] = (await machine.client.list(KEYS.tombstones(agent))).kvs
            await machine.client.lease_revoke(kv.lease)


@virtual
async def test_collectors_that_die_in_the_middle_of_a_sweep_leave_the_rest_to_the_next() -> None:
    """Everything is collected once, whoever does it."""
    here = world()
    async with here.machine() as other:
        await leave_state(other.client, MANY, keys=2)
        for name in ("c1", "c2"):
            async with working(here, name, grace_s=1, rate_per_s=50) as dying:
                while len(dying.of(Reaped)) < 60:
                    await asyncio.sleep(0.01)
                dying.machine.transport.cut(0, 1, 2)
                await asyncio.sleep(10)
        left = await with_state(other.client)
        assert 0 < len(left) < len(MANY) - 100
        async with working(here, "c3", grace_s=1):
            await asyncio.sleep(10)
        assert await with_state(other.client) == set()
        for agent in MANY:
            [tombstone] = await tombstones(other.client, agent)
            assert len(tombstone.collected) == 2


@virtual
async def test_state_of_one_id_that_never_registers_has_a_tombstone_each_time() -> None:
    """The incarnation of both is 0, so the second is another part."""
    here = world()
    async with working(here, reconcile_s=1.0) as machine:
        for value in (b"first", b"second"):
            await machine.client.put(KEYS.state("ghost", "a"), value)
            await asyncio.sleep(GRACE_S + 3)
        found = await tombstones(machine.client, "ghost")
        assert [(tombstone.part, tombstone.collected[0].value) for tombstone in found] == [
            (0, b"first"),
            (1, b"second"),
        ]


@virtual
async def test_an_agent_that_is_back_before_its_last_part_keeps_the_rest() -> None:
    """Each key is in a tombstone or in its state; and what it keeps is put back, since something was collected."""
    here = world()
    async with working(here) as machine, here.machine() as host, agent_on(host) as agent:
        for number in range(150):
            await agent.put(f"k{number:03}", b"x")
        await agent.put("a-kept", b"kept", keep=True)
        reaping = 0

        async def before(_: int, __: Method[Any, Any], request: Message) -> None:
            nonlocal reaping
            if is_reap(request):
                reaping += 1
                if reaping == 2:
                    host.transport.mend()
                    await asyncio.sleep(10)

        machine.machine.transport.before_call = before
        await die(host, agent)
        await asyncio.sleep(TTL_S + GRACE_S + 20)
        [tombstone] = await tombstones(machine.client)
        collected = {entry.key for entry in tombstone.collected}
        kept = await agent.items()
        assert kept.pop("a-kept") == b"kept"
        collected.remove("a-kept")
        assert len(collected) >= 90
        assert collected | kept.keys() == {f"k{number:03}" for number in range(150)}
        assert not collected & kept.keys()
        agent.check()


@virtual
async def test_what_operators_and_strangers_left_at_an_agent_goes_with_it_or_stays() -> None:
    """The mark that it drains goes; a key that is not of its state stays, and is told."""
    here = world()
    strange = KEYS.states("w") + b"not/ours"
    async with working(here, reconcile_s=5) as machine:
        await leave_state(machine.client, ["w"], alive=True, keys=3)
        await machine.client.put(KEYS.draining("w"), b"{}")
        await machine.client.put(strange, b"1")
        await vanish(machine.client, ["w"])
        await asyncio.sleep(GRACE_S + 10)
        assert await stored(machine.client) == {"not/ours": b"1"}
        assert (await machine.client.get(KEYS.draining("w")))[0] is None
        assert machine.of(Foreign) == [Foreign((strange.decode(),))]
        assert len(await tombstones(machine.client)) == 1


@virtual
async def test_a_rate_bounds_how_fast_agents_are_reaped() -> None:
    """Whatever is due."""
    here = world()
    async with working(here, rate_per_s=5) as machine:
        await leave_state(machine.client, MANY, alive=True)
        await vanish(machine.client, MANY)
        await asyncio.sleep(GRACE_S + 20)
        assert 90 <= len(machine.of(Reaped)) <= 110


@virtual
async def test_a_dry_run_says_what_would_go_and_writes_nothing() -> None:
    """Not even a candidate's key; of an agent that is back it says nothing."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, ["a", "b", "c"], keys=150)
        await machine.client.put(KEYS.alive("c"), b"{}")
        _, header = await machine.client.get(b"x")
        collector = collector_on(machine, "dry")
        events = collector.events()
        rehearsing = asyncio.create_task(collector.rehearse(once=True))
        await asyncio.sleep(GRACE_S - 1)
        await machine.client.put(KEYS.alive("b"), b"{}")
        await rehearsing
        told = [await anext(events) for _ in range(5)]
        assert told[0] is None
        assert [event.agent for event in told if isinstance(event, Suspected)] == ["a", "b"]
        [would] = [event.tombstone for event in told if isinstance(event, WouldReap)]
        assert (would.agent, len(would.collected)) == ("a", 150)
        assert (await machine.client.get(b"x"))[1].revision == header.revision + 1


@asynccontextmanager
async def rehearsing(machine: Machine, **settings: Any) -> AsyncGenerator[list[Any]]:
    """A dry run; yields what it tells."""
    collector, told = collector_on(machine, "c", **settings), []
    events = collector.events()

    async def listen() -> None:
        async for event in events:
            told.append(event)  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    running = asyncio.create_task(collector.rehearse())
    await asyncio.sleep(1)
    yield told
    collector.leave()
    await running
    listening.cancel()


@virtual
async def test_a_dry_run_says_nothing_of_what_somebody_else_has_collected() -> None:
    """There would be nothing to reap."""
    async with world().machine() as machine:
        await leave_state(machine.client, ["w"])
        async with rehearsing(machine) as told:
            await machine.client.delete(KEYS.state("w", "k0"))
            await asyncio.sleep(GRACE_S + 2)
            assert not any(isinstance(event, WouldReap) for event in told)


@pytest.mark.parametrize("back", [8, 10])
def test_the_breaker_of_a_dry_run_closes_again(back: int) -> None:
    """In its own eyes only, whoever it is that has come back; then it says who would be reaped."""

    @virtual
    async def run() -> None:
        fleet = [f"w{number}" for number in range(10)]
        async with world().machine() as machine:
            await leave_state(machine.client, fleet, alive=True)
            async with rehearsing(machine, breaker=BreakerConfig(agents=3, share=0.5)) as told:
                await vanish(machine.client, fleet)
                await asyncio.sleep(GRACE_S + 2)
                await leave_state(machine.client, fleet[-back:], alive=True)
                await asyncio.sleep(GRACE_S + 2)
                kinds = [type(event) for event in told if isinstance(event, BreakerOpened | BreakerClosed | WouldReap)]
                assert kinds == [BreakerOpened, BreakerClosed] + [WouldReap] * (10 - back)

    run()


@virtual
async def test_who_leaves_before_a_dry_run_has_begun_ends_it() -> None:
    """A signal can come at any moment."""
    async with world().machine() as machine:
        collector = collector_on(machine, "c")
        running = asyncio.create_task(collector.rehearse())
        await asyncio.sleep(0)
        collector.leave()
        async with asyncio.timeout(10):
            await running


@virtual
async def test_once_goes_on_where_its_term_is_lost() -> None:
    """It has not done what it was to do."""
    here = world()
    async with here.machine() as machine, here.machine() as other:
        await leave_state(other.client, ["v", "w"])
        collector = collector_on(machine, "c")
        running = asyncio.create_task(collector.run(once=True))
        await asyncio.sleep(2)
        for kv in (await other.client.list(KEYS.campaign(COLLECTOR_ELECTION))).kvs:
            await other.client.delete(kv.key)
        await asyncio.sleep(2)
        assert not running.done()
        await running
        assert await with_state(other.client) == set()


@virtual
async def test_once_returns_when_all_who_were_missing_are_reaped() -> None:
    """Or cannot be; who vanishes later is left to the next run."""
    here = world()
    async with here.machine() as machine:
        await leave_state(machine.client, ["a", "b"])
        await leave_state(machine.client, ["c"], alive=True)
        await machine.client.put(KEYS.state("a", "big"), b"x" * 1_000_000)
        running = asyncio.create_task(collector_on(machine, "once").run(once=True))
        await asyncio.sleep(GRACE_S - 1)
        await vanish(machine.client, ["c"])
        async with asyncio.timeout(GRACE_S):
            await running
        assert await with_state(machine.client) == {"a", "c"}
        assert list((await machine.client.list(KEYS.campaigns)).kvs) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_random_fleets_lose_no_living_agents_state(seed: int) -> None:
    """Agents die, are cut off, come back and leave, and collectors and members are hurt; then all is well.

    A failing seed is in the test's name.
    """

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(here.machine(latency_s=0.005)) for _ in range(5)]
            watchers = [await stack.enter_async_context(here.machine()) for _ in range(2)]
            agents = [await stack.enter_async_context(agent_on(host, f"w{i}")) for i, host in enumerate(hosts)]
            collectors = [collector_on(machine, f"c{i}", reconcile_s=15) for i, machine in enumerate(watchers)]
            running = [asyncio.create_task(collector.run()) for collector in collectors]
            kept: dict[str, tuple[int, str]] = {}
            for turn in range(40):
                await asyncio.sleep(rng.uniform(0, 3))
                await live(rng.choice(agents), str(turn), kept)
                hurt(here, rng, rng.choice([*hosts, *watchers]), FAULTS)
            for member in range(3):
                here.etcd.resume(member)
            for machine in (*hosts, *watchers):
                machine.transport.mend()
            await asyncio.sleep(60)
            for agent in agents:
                incarnation, value = kept.get(agent.id, (0, ""))
                if agent.incarnation == incarnation:
                    assert await agent.get("turn") == value.encode()
            for collector in collectors:
                collector.leave()
            await asyncio.gather(*running)

    run()


async def live(agent: Agent, value: str, kept: dict[str, tuple[int, str]]) -> None:
    """Checks that what this incarnation stored before is still there, and stores something new."""
    try:
        incarnation = agent.incarnation
        before = kept.get(agent.id)
        found = await agent.get("turn")
        if before and before[0] == incarnation == agent.incarnation:
            assert found == before[1].encode(), f"{agent.id} lost its state while it was alive"
        kept.pop(agent.id, None)
        await agent.put("turn", value)
        kept[agent.id] = (incarnation, value)
    except (AgentLost, EtcdError):
        return
