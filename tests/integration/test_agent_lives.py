"""The lives of agents on a real cluster: processes that are paused, networks that are cut, members that are killed."""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest

from election import (
    Agent,
    AgentConfig,
    AgentExists,
    AgentLost,
    CandidateConfig,
    CollectorConfig,
    LossReason,
    Store,
    connect,
)
from election.agent_records import AgentRecord
from election.clock import BootClock
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.drill.relay import Relay
from election.etcd.keepalive import _TURN_S, KeepAlive
from election.etcd.lease import grant
from election.keys import REGISTRATION
from election.registration import Registration

pytestmark = pytest.mark.etcd

CONFIG = AgentConfig(ttl_s=4, retry_max_s=1.0)
CLOCK = BootClock()
T = TypeVar("T")


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    """A store of the shared cluster."""
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


async def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def eventually(look: Callable[[], Awaitable[T | None]], timeout_s: float = 30.0) -> T:
    async with asyncio.timeout(timeout_s):
        while (found := await look()) is None:
            await asyncio.sleep(0.02)
    return found


async def alive(store: Store, id: str) -> int:
    """The incarnation that etcd has of an agent; 0 when there is none."""
    found, _ = await store.client.get(store.keyspace.alive(id))
    return found.create_revision if found else 0


async def stored(store: Store, id: str) -> dict[str, bytes]:
    """What an agent has stored, without its registration."""
    prefix = store.keyspace.states(id)
    found = {kv.key[len(prefix) :].decode(): kv.value for kv in (await store.client.list(prefix)).kvs}
    found.pop(REGISTRATION, None)
    return found


async def back(agent: Agent, old: Registration) -> Registration:
    """Waits until it has registered again."""
    await until(lambda: (now := agent.registration) is not None and now.incarnation > old.incarnation)
    return agent.check()


# --- processes ---------------------------------------------------------------------------------------------------

PROCESS = """
import asyncio, json, sys

from election import AgentConfig, AgentExists, AgentLost, connect


def say(**what):
    print(json.dumps(what), flush=True)


async def main():
    ttl_s = int(sys.argv[3])
    async with connect(sys.argv[1], namespace=sys.argv[2]) as store:
        now_s = store.client.clock.now_s
        try:
            async with store.agent("process", config=AgentConfig(ttl_s=ttl_s, retry_max_s=1.0)) as agent:
                await agent.put("task", "from the process")
                was, asleep_s = None, 0.0
                while True:
                    try:
                        incarnation = agent.incarnation
                        if incarnation == was and asleep_s >= ttl_s:
                            say(wrong="it believes to be alive after a sleep of a whole TTL")
                    except AgentLost:
                        incarnation = 0
                    if incarnation != was:
                        say(incarnation=incarnation)
                    was, began_s = incarnation, now_s()
                    await asyncio.sleep(0.005)
                    asleep_s = now_s() - began_s
        except AgentExists as error:
            say(refused=str(error))


asyncio.run(main())
"""


class Process:
    """A process that is the agent `process`, and says what it believes whenever that changes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 30))
        return said

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def agent_process(store: Store) -> AsyncIterator[Process]:
    arguments = [",".join(store.config.endpoints), store.keyspace.namespace, str(CONFIG.ttl_s)]
    command = bound_to_this_process([sys.executable, "-c", PROCESS, *arguments])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_second_process_with_the_id_is_refused(store: Store) -> None:
    """In one line that says what to do; the first one is not disturbed."""
    async with agent_process(store) as first, agent_process(store) as second:
        said = [await first.says(), await second.says()]
        [incarnation] = [each["incarnation"] for each in said if "incarnation" in each]
        [refusal] = [each["refused"] for each in said if "refused" in each]
        assert "'process' is alive elsewhere" in refusal
        assert "\n" not in refusal
        assert await alive(store, "process") == incarnation


async def test_a_process_that_is_stopped_for_longer_than_its_ttl_knows_it_when_it_wakes(store: Store) -> None:
    """Before anything else has told it; then it registers again, and has its state."""
    async with agent_process(store) as process:
        first = (await process.says())["incarnation"]
        process.signal(signal.SIGSTOP)

        async def gone() -> bool | None:
            return True if await alive(store, "process") == 0 else None

        await eventually(gone)
        process.signal(signal.SIGCONT)
        assert await process.says() == {"incarnation": 0}
        again = (await process.says())["incarnation"]
        assert again > first
        assert await stored(store, "process") == {"task": b"from the process"}


async def test_a_process_that_hangs_can_be_taken_over(store: Store) -> None:
    """Nobody waits for its TTL; when it wakes up it is lost, and does not take the id back."""
    async with agent_process(store) as process:
        first = (await process.says())["incarnation"]
        process.signal(signal.SIGSTOP)
        with pytest.raises(AgentExists):
            await store.agent("process", config=CONFIG).__aenter__()
        async with store.agent("process", config=CONFIG, takeover=True) as agent:
            second = agent.check()
            assert second.incarnation > first
            assert await agent.items() == {"task": b"from the process"}
            await asyncio.sleep(CONFIG.ttl_s)
            process.signal(signal.SIGCONT)
            assert await process.says() == {"incarnation": 0}
            await asyncio.sleep(2 * CONFIG.ttl_s)
            assert agent.check() == second
        assert (await process.says())["incarnation"] > second.incarnation


# --- networks ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_relays(cluster: EtcdCluster, namespace: str) -> AsyncGenerator[tuple[Store, list[Relay]]]:
    """A store that reaches each member by a relay."""
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(endpoint)) for endpoint in cluster.endpoints]
        made = connect([relay.address for relay in relays], namespace=namespace)
        yield await stack.enter_async_context(made), relays


@pytest.mark.parametrize("keep_looking", [True, False])
async def test_who_is_cut_off_stops_before_etcd_ends_its_lease(
    etcd_cluster: EtcdCluster, store: Store, namespace: str, keep_looking: bool
) -> None:
    """By its own deadline; and when it can reach etcd again it registers again, unless it is not to."""
    config = AgentConfig(ttl_s=4, retry_max_s=1.0, register_again=keep_looking)
    async with behind_relays(etcd_cluster, namespace) as (far, relays):
        async with far.agent("w", config=config) as agent:
            first = agent.check()
            for relay in relays:
                relay.link.cut()
            await until(lambda: agent.remaining_s() == 0)
            with pytest.raises(AgentLost):
                agent.check()
            assert await alive(store, "w") == first.incarnation
            assert await asyncio.wait_for(agent.lost, 10) is LossReason.EXPIRED
            for relay in relays:
                relay.mend()
            if keep_looking:
                again = await back(agent, first)
                assert await alive(store, "w") == again.incarnation
            else:
                await asyncio.sleep(2 * config.ttl_s)
                with pytest.raises(AgentLost, match="stays lost"):
                    agent.check()
        assert await alive(store, "w") == 0


async def test_one_hung_connection_costs_no_agent_its_life(
    etcd_cluster: EtcdCluster, store: Store, namespace: str
) -> None:
    """The stream is silent, and is replaced by one to another member; each of the three in turn."""
    async with behind_relays(etcd_cluster, namespace) as (far, relays), AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(far.agent(f"w{i}", config=CONFIG)) for i in range(20)]
        lives = [agent.check() for agent in agents]
        for relay in relays:
            relay.link.cut()
            ends_at_s = CLOCK.now_s() + 1.5 * CONFIG.ttl_s
            while CLOCK.now_s() < ends_at_s:
                assert [agent.check() for agent in agents] == lives
                await asyncio.sleep(0.02)
            relay.mend()
            await asyncio.sleep(1)


# --- members -----------------------------------------------------------------------------------------------------


async def test_three_hundred_agents_outlive_the_member_that_serves_their_stream(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """It is etcd's leader, and it is killed; nobody is lost, and nobody has a stream of its own."""
    config = AgentConfig(ttl_s=10)
    async with connect(fresh_cluster.endpoints, namespace=namespace) as store, AsyncExitStack() as stack:
        before = len(asyncio.all_tasks())
        agents = [store.agent(f"w{i}", config=config) for i in range(300)]
        for at in range(0, 300, 50):
            await asyncio.gather(*(stack.enter_async_context(agent) for agent in agents[at : at + 50]))
        lives = [agent.check() for agent in agents]
        await asyncio.sleep(config.ttl_s / 2)
        assert len(asyncio.all_tasks()) - before < 12
        leader = await fresh_cluster.leader()
        assert store.config.endpoints[store.client.member] == leader.endpoint, "the stream is elsewhere"
        leader.kill()
        ends_at_s = CLOCK.now_s() + 2 * config.ttl_s
        while CLOCK.now_s() < ends_at_s:
            assert [agent.check() for agent in agents] == lives
            await asyncio.sleep(0.1)
        for agent in agents[::30]:
            assert await alive(store, agent.id) == agent.incarnation


async def test_a_lease_that_has_expired_blocks_nobody_else(store: Store) -> None:
    """A renewal of it hangs in etcd until it is revoked, and the stream with it, as if the clock here were slow."""
    keepalive = KeepAlive(store.client, random.Random(0))
    lost: list[int] = []

    async def listen() -> None:
        while True:
            lost.extend(kept.id for kept in await keepalive.lost())

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(keepalive.run()), group.create_task(listen())]
        others = [keepalive.add(await grant(store.client, ttl_s=6, margin_s=1.0, renew_s=0.5)) for _ in range(20)]
        for delay_s in (0.01, 0.1, 0.3):
            stuck = keepalive.add(await grant(store.client, ttl_s=3, margin_s=1.0, renew_s=1.0))
            granted_at_s, stuck.deadline_s = CLOCK.now_s(), float("inf")
            keepalive._renew_in(stuck, math.ceil((granted_at_s + 3 + delay_s) / _TURN_S))  # not a turn too early
            while stuck.id not in lost:
                assert CLOCK.now_s() < min(kept.deadline_s for kept in others)
                assert CLOCK.now_s() < granted_at_s + 10
                await asyncio.sleep(0.01)
        assert len(lost) == 3
        for task in running:
            task.cancel()


# --- what is left, and what comes back ---------------------------------------------------------------------------


@asynccontextmanager
async def collecting(store: Store, grace_s: float) -> AsyncGenerator[None]:
    """A collector that works."""
    config = CollectorConfig(grace_s=grace_s, reconcile_s=1, breaker=None)
    collector = store.collector(id="c", config=config, candidate_config=CandidateConfig(ttl_s=3))
    running = asyncio.create_task(collector.run())
    try:
        await until(lambda: collector.candidate.is_leader)
        yield
    finally:
        collector.leave()
        await asyncio.wait_for(running, 30)


async def test_an_agent_that_was_reaped_has_what_it_kept_when_it_comes_back(
    etcd_cluster: EtcdCluster, store: Store, namespace: str
) -> None:
    """In the revision in which it comes back; what it did not keep is in the tombstone alone."""
    async with (
        behind_relays(etcd_cluster, namespace) as (far, relays),
        collecting(store, grace_s=0.5),
        far.agent("w", config=CONFIG) as agent,
    ):
        await agent.put("kept", "1", keep=True)
        await agent.put("plain", "2")
        first = agent.check()
        for relay in relays:
            relay.link.cut()

        async def reaped() -> bool | None:
            return (await stored(store, "w")) == {} or None

        await eventually(reaped)
        for relay in relays:
            relay.mend()
        second = await back(agent, first)
        assert await stored(store, "w") == {"kept": b"1"}
        found, _ = await store.client.get(store.keyspace.state("w", "kept"))
        assert found is not None
        assert found.mod_revision == second.incarnation


async def test_an_agent_that_was_not_reaped_changes_nothing_when_it_comes_back(store: Store) -> None:
    """What somebody has taken away meanwhile stays away."""
    async with store.agent("w", config=CONFIG) as agent:
        await agent.put("a", "1", keep=True)
        await agent.put("b", "2", keep=True)
        first = agent.check()
        await store.client.delete(store.keyspace.state("w", "a"))
        await store.client.put(store.keyspace.state("w", "b"), b"somebody else's")
        await store.client.lease_revoke(first.lease)
        await back(agent, first)
        assert await stored(store, "w") == {"b": b"somebody else's"}


@pytest.mark.parametrize("keep_state", [True, False])
async def test_an_agent_that_leaves_says_so_in_one_transaction(store: Store, keep_state: bool) -> None:
    """With its state left to the collectors, or deleted with the operator's mark; its lease is gone either way."""
    keys = store.keyspace
    config = AgentConfig(ttl_s=4, keep_state=keep_state)
    async with store.agent("w", address="here:1", config=config) as agent:
        for number in range(200):
            await agent.put(f"key{number}", "x")
        await store.client.put(keys.draining("w"), b"{}")
        registration = agent.check()
        _, before = await store.client.get(agent.alive_key)
    left = {kv.key: kv for kv in (await store.client.list(keys.agents)).kvs}
    assert registration.lease not in {each.ID for each in (await store.client.leases()).leases}
    if not keep_state:
        assert left == {}
        return
    assert len(left) == 202
    assert keys.draining("w") in left
    record = AgentRecord.decode("w", left[keys.state("w", REGISTRATION)].value)
    assert (record.incarnation, record.address) == (registration.incarnation, "here:1")
    assert record.left_at is not None
    assert left[keys.state("w", REGISTRATION)].mod_revision == before.revision + 1
    assert await alive(store, "w") == 0
