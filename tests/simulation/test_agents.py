"""Agents on the fake etcd, in virtual time: how they live, get lost, come back and leave."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message

from election.agent_records import STATE_LIMIT, AgentRecord
from election.agents import Agent
from election.config import AgentConfig
from election.errors import AgentExists, AgentLost, ConfigError, EtcdError, LossReason, RecordTooLarge
from election.etcd.client import EtcdClient
from election.etcd.keepalive import KeepAlive
from election.etcd.methods import LEASE_GRANT, LEASE_REVOKE, TXN, Method
from election.kept import MOST_KEPT, MOST_KEPT_BYTES
from election.keys import REGISTRATION
from election.pb.etcd import rpc_pb2 as rpc
from election.registration import Registration
from election.roster import Roster
from tests.fake import statuses
from tests.fake.clock import virtual
from tests.fake.etcd import FakeEtcd
from tests.simulation.world import KEYS, Machine, World, hurt, world

TTL_S = 6
SEEDS = range(40)
FAULTS = ("cut", "cut off", "mend", "mend", "move", "stop", "pause", "resume", "resume")


def agent_on(machine: Machine, id: str = "w", *, roster: Roster | None = None, **settings: Any) -> Agent:
    takeover = settings.pop("takeover", False)
    config = AgentConfig(ttl_s=TTL_S, **settings)
    return Agent(
        machine.client, KEYS, id, config=config, roster=roster, takeover=takeover, rng=random.Random(f"rng of {id}")
    )


@asynccontextmanager
async def fleet(machine: Machine, number: int, **settings: Any) -> AsyncGenerator[list[Agent]]:
    """Agents that share a roster."""
    roster = Roster(machine.client, rng=random.Random(number))
    async with AsyncExitStack() as stack:
        agents = [agent_on(machine, f"w{i}", roster=roster, **settings) for i in range(number)]
        await asyncio.gather(*(stack.enter_async_context(agent) for agent in agents))
        yield agents


def alive(etcd: FakeEtcd, id: str = "w") -> int:
    """The incarnation that etcd has of an agent; 0 when there is none."""
    found = etcd.store.get(KEYS.alive(id))
    return found.create_revision if found else 0


def leases(etcd: FakeEtcd) -> int:
    return len(etcd.lessor.saved())


async def stored(client: EtcdClient, id: str = "w") -> dict[str, bytes]:
    """What an agent has stored, without its registration."""
    prefix = KEYS.states(id)
    found = {kv.key[len(prefix) :].decode(): kv.value for kv in (await client.list(prefix)).kvs}
    found.pop(REGISTRATION, None)
    return found


async def reap(machine: Machine, agent: Agent) -> None:
    """What a collector does to an agent that it takes for dead."""
    await machine.client.lease_revoke(agent.check().lease)
    states = KEYS.states(agent.id)
    await machine.client.delete(states, states[:-1] + b"0")


async def back(agent: Agent, old: Registration) -> Registration:
    """Waits until it has registered again."""
    async with asyncio.timeout(60):
        while (now := agent.registration) is None or now.incarnation <= old.incarnation:
            await asyncio.sleep(0.05)
    return now


def count(calls: list[str], method: Method[Any, Any]) -> int:
    return calls.count(method.path)


def calls_of(machine: Machine) -> list[str]:
    """The paths of the calls that are made from now on."""
    made: list[str] = []

    async def note(_: int, method: Method[Any, Any], request: Message) -> None:
        made.append(method.path)

    machine.transport.before_call = note
    return made


# --- the roster --------------------------------------------------------------------------------------------------


@virtual
async def test_agents_have_no_tasks_of_their_own() -> None:
    """Three hundred need as many as one, and one stream; nothing is left when the last one has left."""
    here = world()
    async with here.machine() as machine:
        before = len(asyncio.all_tasks())
        async with fleet(machine, 1):
            await asyncio.sleep(3 * TTL_S)
            needed = len(asyncio.all_tasks())
        assert len(asyncio.all_tasks()) == before
        async with fleet(machine, 300) as agents:
            await asyncio.sleep(3 * TTL_S)
            assert len(asyncio.all_tasks()) == needed
            assert len(machine.transport._streams) == 1
            for agent in agents:
                assert agent.incarnation == alive(here.etcd, agent.id)
        assert len(asyncio.all_tasks()) == before
        assert not machine.transport._streams
        assert leases(here.etcd) == 0


@virtual
async def test_a_roster_begins_again_after_its_last_agent_has_left() -> None:
    """Also while it is still about to end."""
    async with world().machine() as machine:
        roster = Roster(machine.client, rng=random.Random(0))
        for _ in range(3):
            first, second = agent_on(machine, "a", roster=roster), agent_on(machine, "b", roster=roster)
            await first.__aenter__()
            await asyncio.gather(first.__aexit__(None, None, None), second.__aenter__())
            await asyncio.sleep(5 * TTL_S)
            second.check()
            await second.__aexit__(None, None, None)


@virtual
async def test_the_keys_of_many_agents_are_looked_after_in_few_reads() -> None:
    """Once per TTL at least; an agent whose key somebody deletes registers again."""
    here = world()
    async with here.machine() as machine, fleet(machine, 300) as agents, here.machine() as other:
        calls = calls_of(machine)
        await asyncio.sleep(4 * TTL_S)
        assert 4 * 3 <= count(calls, TXN) <= 4 * 2 * TTL_S
        for agent in agents[::7]:
            await other.client.delete(agent.alive_key)
        await asyncio.sleep(TTL_S + 2)
        for agent in agents:
            assert agent.incarnation == alive(here.etcd, agent.id)
        assert leases(here.etcd) == 300


@virtual
async def test_an_old_read_that_does_not_know_an_agent_yet_means_nothing() -> None:
    """etcd's reads can be stale after a pause of a member."""
    async with world().machine() as machine, agent_on(machine) as agent:
        first = agent.check()

        async def age(_: int, method: Method[Any, Any], answer: Message) -> None:
            if isinstance(answer, rpc.TxnResponse):
                answer.header.revision = first.incarnation - 1
                answer.responses[0].response_range.ClearField("kvs")

        machine.transport.after_call = age
        await asyncio.sleep(5 * TTL_S)
        assert agent.check() == first


@virtual
async def test_many_lost_agents_come_back_a_few_at_once() -> None:
    """All two hundred, without two hundred calls at the same time."""
    here = world()
    async with here.machine() as machine, fleet(machine, 200) as agents:
        old = {agent.id: agent.check() for agent in agents}
        granting, most = 0, 0

        async def begin(_: int, method: Method[Any, Any], request: Message) -> None:
            nonlocal granting, most
            if method.path == LEASE_GRANT.path:
                granting += 1
                most = max(most, granting)
                await asyncio.sleep(0.05)
                granting -= 1

        machine.transport.cut()
        await asyncio.sleep(2 * TTL_S)
        assert not any(agent.registration for agent in agents)
        machine.transport.before_call = begin
        machine.transport.mend()
        for agent in agents:
            assert (await back(agent, old[agent.id])).incarnation == alive(here.etcd, agent.id)
        assert 32 <= most <= 64
        assert leases(here.etcd) == 200


@virtual
async def test_one_trouble_is_logged_once_for_all(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand agents that cannot reach etcd for minutes do not fill the disk."""
    async with world().machine() as machine, fleet(machine, 20) as agents:
        machine.transport.cut()
        await asyncio.sleep(100)
        machine.transport.mend()
        await asyncio.sleep(30)
        assert all(agent.registration for agent in agents)
        told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert 2 <= len(told) < 8, told


class OurBug(Exception):
    """What nobody expects."""


@virtual
async def test_an_unexpected_error_surfaces_to_every_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` raises at once, `registrations` ends, and leaving raises what happened, after it has left."""
    here = world()

    def fail(*_: object) -> None:
        raise OurBug

    async with here.machine() as machine:
        roster = Roster(machine.client, rng=random.Random(0))
        agents = [agent_on(machine, name, roster=roster) for name in "abc"]
        for agent in agents:
            await agent.__aenter__()
        told = agents[0].registrations()
        monkeypatch.setattr(KeepAlive, "_take", fail)
        assert await agents[1].lost is LossReason.CLOSED
        monkeypatch.undo()
        for agent in agents:
            with pytest.raises(AgentLost) as lost:
                agent.check()
            assert isinstance(lost.value.__cause__, OurBug)
        assert [each is None async for each in told] == [False, True]
        for agent in agents:
            with pytest.raises(RuntimeError) as raised:
                await agent.__aexit__(None, None, None)
            assert isinstance(raised.value.__cause__, OurBug)
        assert leases(here.etcd) == 0
        async with agent_on(machine, "a", roster=roster) as again:
            await asyncio.sleep(3 * TTL_S)
            again.check()


# --- losing and coming back --------------------------------------------------------------------------------------


@virtual
async def test_registrations_tells_each_life_and_each_loss() -> None:
    """And no renewals; it ends when the agent leaves."""
    async with world().machine() as machine, agent_on(machine) as agent, aclosing(agent.registrations()) as told:
        first = agent.check()
        assert await anext(told) == first
        await asyncio.sleep(3 * TTL_S)
        await machine.client.lease_revoke(first.lease)
        assert await agent.lost in (LossReason.EXPIRED, LossReason.KEY_DELETED)  # whichever is seen first
        assert await anext(told) is None
        second = await anext(told)
        assert second is not None
        assert second.incarnation > first.incarnation
        leaving = asyncio.create_task(agent.__aexit__(None, None, None))
        assert [each async for each in told] == [None]
        assert await agent.lost is LossReason.RESIGNED
        await leaving


@virtual
async def test_an_agent_that_is_not_to_register_again_stays_lost() -> None:
    """Its lease is given back, and there is nothing to wait for."""
    here = world()
    async with here.machine() as machine, agent_on(machine, register_again=False) as agent:
        told = agent.registrations()
        first = agent.check()
        await machine.client.delete(agent.alive_key)
        with pytest.raises(AgentLost):
            await agent.put("late", "x")
        assert [each async for each in told] == [first, None]
        assert await agent.lost is LossReason.KEY_DELETED
        with pytest.raises(AgentLost, match="stays lost"):
            agent.check()
        await asyncio.sleep(3 * TTL_S)
        assert agent.registration is None
        assert (alive(here.etcd), leases(here.etcd)) == (0, 0)


@virtual
async def test_a_paused_process_knows_its_deadline_before_it_knows_anything_else() -> None:
    """`check` compares the clock; what it told before does not count."""
    async with world().machine() as machine, agent_on(machine) as agent:
        first = agent.check()
        machine.clock.skip(TTL_S)
        assert agent.registration == first
        assert agent.remaining_s() == 0
        with pytest.raises(AgentLost):
            agent.check()
        assert (await back(agent, first)).incarnation > first.incarnation


@pytest.mark.parametrize("seed", SEEDS)
def test_who_believes_to_be_alive_is(seed: int) -> None:
    """Whatever happens to members and links, and to the machine's clock. A failing seed is in the test's name."""

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with here.machine(latency_s=0.005) as machine, fleet(machine, 20) as agents:
            calls = calls_of(machine)
            for _ in range(60):
                hurt(here, rng, machine, FAULTS)
                if rng.random() < 0.1:
                    machine.clock.skip(rng.uniform(0, TTL_S))
                for _ in range(rng.randrange(1, 20)):
                    await asyncio.sleep(0.1)
                    for agent in agents:
                        if agent.remaining_s() > 0:
                            assert agent.incarnation == alive(here.etcd, agent.id)
            for member in range(3):
                here.etcd.resume(member)
            machine.transport.mend()
            await asyncio.sleep(10 * TTL_S)
            for agent in agents:
                assert agent.incarnation == alive(here.etcd, agent.id)
            assert leases(here.etcd) == 20
            assert count(calls, LEASE_GRANT) > 0
        assert leases(here.etcd) == 0

    run()


# --- what is kept ------------------------------------------------------------------------------------------------


@virtual
async def test_what_is_kept_is_put_back_after_a_reap_and_nothing_else() -> None:
    """In the transaction that registers it, so that nobody sees the agent without it."""
    here = world()
    async with here.machine() as machine, agent_on(machine) as agent:
        await agent.put("kept", "1", keep=True)
        await agent.put("plain", "2")
        await agent.put("deleted", "3", keep=True)
        await agent.delete("deleted")
        await agent.put("overwritten", "4", keep=True)
        await agent.put("overwritten", "5")
        await agent.put("renewed", "6", keep=True)
        await agent.put("renewed", "7", keep=True)
        for _ in range(2):
            first = agent.check()
            await reap(machine, agent)
            second = await back(agent, first)
            assert await stored(machine.client) == {"kept": b"1", "renewed": b"7"}
            kept, _ = await machine.client.get(KEYS.state("w", "kept"))
            assert kept is not None
            assert kept.mod_revision == second.incarnation


@virtual
async def test_nothing_is_put_back_when_nothing_was_reaped() -> None:
    """Somebody may have taken an assignment away meanwhile."""
    async with world().machine() as machine, agent_on(machine) as agent:
        await agent.put("a", "1", keep=True)
        await agent.put("b", "2", keep=True)
        first = agent.check()
        await machine.client.lease_revoke(first.lease)
        await machine.client.delete(KEYS.state("w", "a"))
        await machine.client.put(KEYS.state("w", "b"), b"somebody else's")
        await back(agent, first)
        assert await stored(machine.client) == {"b": b"somebody else's"}


@virtual
async def test_a_value_whose_fate_is_not_known_is_not_kept() -> None:
    """Neither the old one nor the new one is brought back later."""
    async with world().machine() as machine, agent_on(machine) as agent:
        await agent.put("a", "1", keep=True)

        async def lose(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == TXN.path:
                machine.transport.after_call = None
                raise statuses.SOCKET_CLOSED.error()

        machine.transport.after_call = lose
        with pytest.raises(EtcdError) as failed:
            await agent.put("a", "2", keep=True)
        assert failed.value.indefinite
        first = agent.check()
        await reap(machine, agent)
        await back(agent, first)
        assert await stored(machine.client) == {}


@virtual
async def test_a_value_that_is_stored_while_the_agent_is_lost_is_told_as_lost() -> None:
    """Its answer comes after the loss: it may be reaped with the rest, and is not kept."""
    async with world().machine() as machine, here_other(machine) as other, agent_on(machine) as agent:
        first = agent.check()

        async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == TXN.path:
                machine.transport.after_call = None
                await reap(other, agent)
                await back(agent, first)

        machine.transport.after_call = hold
        with pytest.raises(AgentLost, match="put it again"):
            await agent.put("a", "1", keep=True)
        assert await stored(machine.client) == {}


@asynccontextmanager
async def here_other(machine: Machine) -> AsyncGenerator[Machine]:
    """Another machine of the same world."""
    async with World(machine.transport.etcd, 1).machine() as other:
        yield other


@virtual
async def test_no_more_is_kept_than_can_be_put_back() -> None:
    """By number and by size; also by puts side by side. What does fit is put back in one transaction."""
    async with world().machine() as machine, agent_on(machine) as agent:
        for number in range(MOST_KEPT):
            await agent.put(f"key{number}", "x", keep=True)
        calls = calls_of(machine)
        with pytest.raises(RecordTooLarge, match="put it without keep"):
            await agent.put("more", "x", keep=True)
        assert calls == []
        await agent.put("key7", "y", keep=True)
        first = agent.check()
        await reap(machine, agent)
        await back(agent, first)
        assert len(await stored(machine.client)) == MOST_KEPT
        for number in range(MOST_KEPT):
            await agent.delete(f"key{number}")

        fit = MOST_KEPT_BYTES // (STATE_LIMIT + 10)
        large = [agent.put(f"large{number}", b"x" * STATE_LIMIT, keep=True) for number in range(fit + 3)]
        done = await asyncio.gather(*large, return_exceptions=True)
        assert sorted(type(each).__name__ for each in done) == ["NoneType"] * fit + ["RecordTooLarge"] * 3
        first = agent.check()
        await reap(machine, agent)
        await back(agent, first)
        assert len(await stored(machine.client)) == fit


# --- taking over -------------------------------------------------------------------------------------------------


@virtual
async def test_a_takeover_ends_the_life_of_the_holder_once() -> None:
    """The old one may not take it back, although it would take over as well: they would take turns for ever."""
    here = world()
    async with here.machine() as one, here.machine() as two, agent_on(one, takeover=True) as old:
        await old.put("task", "x")
        first = old.check()
        async with agent_on(two, takeover=True) as new:
            second = new.check()
            assert second.incarnation > first.incarnation
            assert await new.items() == {"task": b"x"}
            assert leases(here.etcd) == 1
            with pytest.raises(AgentLost):
                await old.put("task", "y")
            await asyncio.sleep(10 * TTL_S)
            assert new.check() == second
            assert old.registration is None
            assert await new.items() == {"task": b"x"}
        await back(old, second)


@virtual
async def test_a_takeover_evicts_whom_it_has_seen_and_nobody_else() -> None:
    """One that comes between is not evicted, and is found by the registration."""
    here = world()
    async with here.machine() as one, here.machine() as two:
        old = agent_on(one)
        await old.__aenter__()

        async def come_between(_: int, method: Method[Any, Any], request: Message) -> None:
            if isinstance(request, rpc.TxnRequest) and b"delete" not in request.SerializeToString():
                deletes = [op for op in request.success if op.WhichOneof("request") == "request_delete_range"]
                if deletes:
                    two.transport.before_call = None
                    await old.__aexit__(None, None, None)
                    await old.__aenter__()

        two.transport.before_call = come_between
        with pytest.raises(AgentExists):
            await agent_on(two, takeover=True).__aenter__()
        assert old.incarnation == alive(here.etcd)
        await old.__aexit__(None, None, None)
        assert leases(here.etcd) == 0


@virtual
async def test_without_takeover_a_second_is_refused() -> None:
    """The holder lives on, and the lease of the one that was refused is given back."""
    here = world()
    async with here.machine() as one, here.machine() as two, agent_on(one) as old:
        first = old.check()
        with pytest.raises(AgentExists):
            await agent_on(two).__aenter__()
        assert (old.check(), alive(here.etcd), leases(here.etcd)) == (first, first.incarnation, 1)


@virtual
async def test_taking_over_from_nobody_is_just_registering() -> None:
    async with world().machine() as machine:
        calls = calls_of(machine)
        async with agent_on(machine, takeover=True):
            assert (count(calls, LEASE_GRANT), count(calls, TXN)) == (1, 1)


# --- leaving -----------------------------------------------------------------------------------------------------


@virtual
async def test_an_agent_that_leaves_says_so_and_its_state_stays() -> None:
    """In one transaction: nobody sees the liveness key gone and no word about it."""
    here = world()
    async with here.machine() as machine:
        async with agent_on(machine) as agent:
            await agent.put("task", "x")
            await machine.client.put(KEYS.draining("w"), b"{}")
            registration = agent.check()
            revision = here.etcd.store.revision
        assert (alive(here.etcd), leases(here.etcd)) == (0, 0)
        stays, _ = await machine.client.get(KEYS.state("w", REGISTRATION))
        assert stays is not None
        record = AgentRecord.decode("w", stays.value)
        assert record.left_at is not None
        assert record.registered_at is not None
        assert record.incarnation == registration.incarnation
        assert stays.mod_revision == revision + 1 == here.etcd.store.revision
        assert await stored(machine.client) == {"task": b"x"}
        assert (await machine.client.get(KEYS.draining("w")))[0] is not None


@virtual
async def test_an_agent_that_leaves_without_its_state_leaves_nothing() -> None:
    """The operator's mark goes as well."""
    here = world()
    async with here.machine() as machine:
        async with agent_on(machine, keep_state=False) as agent:
            await agent.put("task", "x")
            await machine.client.put(KEYS.draining("w"), b"{}")
            await machine.client.put(KEYS.state("w2", "task"), b"another agent's")
        left = (await machine.client.list(KEYS.agents)).kvs
        assert [kv.key for kv in left] == [KEYS.state("w2", "task")]
        assert leases(here.etcd) == 0


@virtual
async def test_who_leaves_late_does_nothing_to_its_successor() -> None:
    """It compares its own incarnation."""
    here = world()
    async with here.machine() as one, here.machine() as two:
        old = agent_on(one, keep_state=False)
        await old.__aenter__()
        async with agent_on(two, takeover=True) as new:
            await new.put("task", "x")
            await old.__aexit__(None, None, None)
            assert new.incarnation == alive(here.etcd)
            assert await new.items() == {"task": b"x"}


@pytest.mark.parametrize("answered", [True, False])
def test_leaving_while_etcd_is_away_raises_nothing(answered: bool) -> None:
    """It takes a while; what it cannot delete ends with the lease."""

    @virtual
    async def run() -> None:
        here = world()
        async with here.machine() as machine:
            async with agent_on(machine) as agent:
                await agent.put("task", "x")
                if not answered:
                    machine.transport.cut()
                else:
                    machine.transport.after_call = refuse_answers
            machine.transport.mend()
            await asyncio.sleep(2 * TTL_S)
            assert (alive(here.etcd), leases(here.etcd)) == (0, 0)
            assert await stored(machine.client) == {"task": b"x"}

    run()


async def refuse_answers(_: int, method: Method[Any, Any], answer: Message) -> None:
    if method.path in (TXN.path, LEASE_REVOKE.path):
        raise statuses.SOCKET_CLOSED.error()


@pytest.mark.parametrize("at", [LEASE_GRANT, TXN])
def test_a_registration_that_is_cancelled_leaves_nothing(at: Method[Any, Any]) -> None:
    """Whether etcd has the transaction or not; a lease whose grant was cancelled ends by itself."""

    @virtual
    async def run() -> None:
        here = world()
        async with here.machine() as machine:
            before = asyncio.all_tasks()

            async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
                if method.path == at.path:
                    await asyncio.sleep(0.5)

            machine.transport.after_call = hold
            entering = asyncio.create_task(agent_on(machine).__aenter__())
            await asyncio.sleep(0.2 if at is LEASE_GRANT else 0.3)
            assert leases(here.etcd) == 1
            entering.cancel()
            await asyncio.wait({entering})
            assert entering.cancelled()
            assert alive(here.etcd) == 0
            if at is TXN:
                assert leases(here.etcd) == 0
            await asyncio.sleep(2 * TTL_S)
            assert leases(here.etcd) == 0
            assert asyncio.all_tasks() == before

    run()


@virtual
async def test_a_leave_that_is_cancelled_gives_the_lease_back() -> None:
    """Nobody has to wait for its TTL."""
    here = world()
    async with here.machine() as machine:
        agent = agent_on(machine)
        await agent.__aenter__()

        async def hold(_: int, method: Method[Any, Any], request: Message) -> None:
            if method.path == TXN.path:
                await asyncio.sleep(3)

        machine.transport.before_call = hold
        leaving = asyncio.create_task(agent.__aexit__(None, None, None))
        await asyncio.sleep(1)
        leaving.cancel()
        await asyncio.wait({leaving})
        assert leaving.cancelled()
        assert (alive(here.etcd), leases(here.etcd)) == (0, 0)
        assert not machine.transport._streams


@virtual
async def test_an_agent_that_leaves_while_it_comes_back_does_not_come_back() -> None:
    """Its way back is ended before it has left; the roster goes on for another one."""
    here = world()
    async with here.machine() as machine:
        roster = Roster(machine.client, rng=random.Random(0))

        async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path in (LEASE_GRANT.path, TXN.path):
                await asyncio.sleep(0.1)

        async with agent_on(machine, "other", roster=roster):
            for delay_s in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3):
                agent = agent_on(machine, roster=roster)
                await agent.__aenter__()
                registration = agent.check()
                machine.transport.after_call = hold
                await machine.client.lease_revoke(registration.lease)
                await agent.lost
                await asyncio.sleep(delay_s)
                await agent.__aexit__(None, None, None)
                machine.transport.after_call = None
                await asyncio.sleep(2 * TTL_S)
                assert (alive(here.etcd), leases(here.etcd)) == (0, 1)
                assert agent.registration is None


# --- what is refused ---------------------------------------------------------------------------------------------

LONG = "x" * 200


@pytest.mark.parametrize("id", ["", "a/b", LONG, "a\nb", "\x00", "-a", "ä"])
def test_a_bad_id_is_refused_in_one_line(id: str) -> None:
    """Before anything is sent, and control characters are not printed."""

    @virtual
    async def run() -> None:
        async with world().machine() as machine:
            with pytest.raises(ConfigError) as refused:
                agent_on(machine, id)
            assert str(refused.value).isprintable()
            assert len(str(refused.value)) < 200

    run()


Put = Callable[[Agent], Any]


@pytest.mark.parametrize(
    "put",
    [
        lambda agent: agent.put("", "x"),
        lambda agent: agent.put("a/b", "x"),
        lambda agent: agent.put(LONG, "x"),
        lambda agent: agent.put("a\x07b", "x"),
        lambda agent: agent.put(REGISTRATION, "x"),
        lambda agent: agent.delete(REGISTRATION),
        lambda agent: agent.put("a", b"x" * (STATE_LIMIT + 1)),
        lambda agent: agent.put("a", "\u00e4" * (STATE_LIMIT // 2 + 1)),
        lambda agent: agent.put("a/b", "x", keep=True),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_line(put: Put) -> None:
    """Before anything is sent."""

    @virtual
    async def run() -> None:
        async with world().machine() as machine, agent_on(machine) as agent:
            calls = calls_of(machine)
            with pytest.raises(ConfigError) as refused:
                await put(agent)
            assert str(refused.value).isprintable()
            assert calls == []

    run()


@virtual
async def test_a_record_without_room_for_what_is_added_when_it_leaves_is_refused() -> None:
    """At once, rather than when it leaves."""
    async with world().machine() as machine:
        sizes = range(3_900, 4_100)
        refused = []
        for size in sizes:
            try:
                agent = Agent(machine.client, KEYS, "w", address="x" * size)
            except RecordTooLarge:
                refused.append(size)
                continue
            if size + 1 not in sizes or size % 20 == 0:
                async with agent:
                    pass
        assert refused
        assert refused == list(range(refused[0], sizes.stop))
        async with Agent(machine.client, KEYS, "w", address="x" * (refused[0] - 1)):
            pass
        found, _ = await machine.client.get(KEYS.state("w", REGISTRATION))
        assert found is not None
        assert AgentRecord.decode("w", found.value).left_at is not None
