"""Agents and collectors on a real cluster: what the dead leave is collected once, and what the living have is not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from election import (
    Agent,
    AgentConfig,
    AgentExists,
    AgentLost,
    CandidateConfig,
    Collector,
    CollectorConfig,
    Deposed,
    Store,
    Term,
    View,
    connect,
)
from election.agent_records import AgentState, StateEntry, Tombstone
from election.breaker import Breaker
from election.clock import BootClock
from election.collector import CollectorEvent, Foreign, Reaped, ReapFailed, Recovered, Suspected
from election.collector.burial import Planner
from election.collector.reaper import reap
from election.collector.remains import Remains, read
from election.collector.retention import Retention
from election.collector.suspects import Suspect
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.etcd import txn
from election.keys import COLLECTOR_ELECTION, REGISTRATION, TombstoneKey
from election.leadership import Leading
from election.pb.etcd.kv_pb2 import KeyValue
from election.reader import AgentEvent, AgentEventKind
from election.registration import Registration
from election.token import Token

pytestmark = pytest.mark.etcd

AGENT = AgentConfig(ttl_s=3)
LEADER = CandidateConfig(ttl_s=3, retry_max_s=1.0)
COLLECTOR = CollectorConfig(grace_s=1, reconcile_s=2, retention_s=3600, breaker=None)
CLOCK = BootClock()

T = TypeVar("T")


# --- what is in etcd, and what the parts say -------------------------------------------------------------------


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    """A store of the shared cluster."""
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


@pytest.fixture
async def other(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    """A second store of the same namespace, with a connection of its own."""
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


async def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def eventually(look: Callable[[], Awaitable[T | None]], timeout_s: float = 20.0) -> T:
    async with asyncio.timeout(timeout_s):
        while (found := await look()) is None:
            await asyncio.sleep(0.02)
    return found


async def stored(store: Store, agent: str) -> dict[str, KeyValue]:
    """The whole state of an agent, its registration too."""
    prefix = store.keyspace.states(agent)
    return {kv.key[len(prefix) :].decode(): kv for kv in (await store.client.list(prefix)).kvs}


async def tombstones(store: Store, agent: str) -> list[tuple[Tombstone, int]]:
    """All tombstones of an agent with their leases, the oldest first."""
    found = []
    for kv in (await store.client.list(store.keyspace.tombstones(agent))).kvs:
        key = store.keyspace.parse(kv.key)
        assert isinstance(key, TombstoneKey)
        found.append((Tombstone.decode(agent, key.incarnation, kv.value), kv.lease))
    return found


async def tombstone(store: Store, agent: str, timeout_s: float = 20.0) -> Tombstone:
    """Waits for the tombstone of an agent, of which there must be one only."""

    async def look() -> Tombstone | None:
        found = await tombstones(store, agent)
        assert len(found) < 2
        return found[0][0] if found else None

    return await eventually(look, timeout_s)


async def leave_state(store: Store, agent: str, **values: str) -> dict[str, bytes]:
    """Stores state in the name of an agent that never lives."""
    for key, value in values.items():
        await store.client.put(store.keyspace.state(agent, key), value.encode())
    return {key: value.encode() for key, value in values.items()}


def collected(tombstone: Tombstone) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in tombstone.collected}


async def die(store: Store, agent: Agent) -> Registration:
    """As if its machine were gone and its TTL over: it renews nothing any more, and its lease has ended."""
    registration = agent.check()
    await agent._roster.leave(agent)
    await store.client.lease_revoke(registration.lease)
    return registration


@dataclass
class Running:
    """A collector that runs, and what it has told."""

    collector: Collector
    task: asyncio.Task[None]
    events: list[CollectorEvent] = field(default_factory=list)

    def reaped(self) -> list[str]:
        return [event.tombstone.agent for event in self.events if isinstance(event, Reaped)]

    async def has_reaped(self, agent: str) -> None:
        """Waits until it tells that it has."""
        await until(lambda: agent in self.reaped())

    def told(self, event: CollectorEvent) -> bool:
        return event in self.events

    async def leads(self) -> Token:
        """Waits until it leads; returns its token."""
        await until(lambda: self.collector.candidate.is_leader)
        state = self.collector.candidate.state
        assert isinstance(state, Leading)
        return state.token


@asynccontextmanager
async def collecting(store: Store, id: str, config: CollectorConfig = COLLECTOR) -> AsyncIterator[Running]:
    """A collector that runs, and leaves at the end."""
    collector = store.collector(id=id, config=config, candidate_config=LEADER)
    running = Running(collector, asyncio.create_task(collector.run()))
    told = collector.events()

    async def read() -> None:
        async with aclosing(told):
            async for event in told:
                if event is not None:
                    running.events.append(event)

    reading = asyncio.create_task(read())
    try:
        yield running
    finally:
        collector.leave()
        await asyncio.wait({running.task}, timeout=30)
        reading.cancel()
        await asyncio.wait({reading})
    if not running.task.cancelled():
        await running.task


@asynccontextmanager
async def two_collectors(store: Store, other: Store) -> AsyncIterator[tuple[Running, Running]]:
    """Two that run: `c1`, which leads, and `c2`."""
    async with collecting(store, "c1") as first:
        await first.leads()
        async with collecting(other, "c2") as second:
            yield first, second


async def leases(store: Store) -> set[int]:
    return {each.ID for each in (await store.client.leases()).leases}


@pytest.fixture
async def no_lease_is_left(store: Store) -> AsyncIterator[None]:
    """At the end there are no leases of this test but those of tombstones."""
    before = await leases(store)
    yield
    kept = {kv.lease for kv in (await store.client.list(store.keyspace.reaped_prefix)).kvs}
    assert await leases(store) - before <= kept


# --- agents -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_lease_is_left")
async def test_an_agent_stores_what_it_knows_under_its_incarnation(store: Store, other: Store) -> None:
    """Its incarnation is the revision at which it registered; a second one of the same id is refused."""
    async with store.agent("w1", address="here:1", config=AGENT) as agent:
        alive, _ = await other.client.get(store.keyspace.alive("w1"))
        registered, _ = await other.client.get(store.keyspace.state("w1", REGISTRATION))
        assert alive is not None
        assert registered is not None
        assert agent.incarnation == alive.create_revision == registered.mod_revision
        assert (alive.lease, registered.lease) == (agent.check().lease, 0)
        assert (await other.client.lease_time_to_live(alive.lease)).grantedTTL == AGENT.ttl_s

        await agent.put("status", "busy")
        await agent.put("task.7", b"\x00\xff")
        assert await agent.get("status") == b"busy"
        assert await agent.get("nothing") is None
        assert await agent.items() == {"status": b"busy", "task.7": b"\x00\xff"}
        await agent.delete("status")
        assert await agent.items() == {"task.7": b"\x00\xff"}

        second = other.agent("w1", config=AGENT)
        with pytest.raises(AgentExists):
            await second.__aenter__()
        async with other.agent("w2", config=AGENT) as neighbour:
            assert neighbour.incarnation > agent.incarnation
            assert await neighbour.items() == {}

        # Its lease is renewed: it lives on after its TTL.
        first = agent.check()
        ends_at_s = CLOCK.now_s() + 2 * AGENT.ttl_s
        await until(lambda: agent.check() == first and CLOCK.now_s() > ends_at_s)
    assert (await store.client.get(store.keyspace.alive("w1")))[0] is None
    assert (await stored(store, "w1")).keys() == {REGISTRATION, "task.7"}


@pytest.mark.usefixtures("no_lease_is_left")
async def test_an_agent_without_its_lease_or_key_writes_nothing_and_registers_again(store: Store) -> None:
    """What it writes for the incarnation that is over is refused by etcd, also when it has not noticed yet."""

    async def lost_and_back(agent: Agent, old: Registration) -> None:
        with pytest.raises(AgentLost):
            await agent.put("late", "x")
        await until(lambda: (now := agent.registration) is not None and now.incarnation > old.incarnation)
        again = agent.check()
        assert again.lease != old.lease
        late = [txn.put(store.keyspace.state("w1", "late"), b"x")]
        alive = store.keyspace.alive("w1")
        assert not (await store.client.txn([txn.created_at(alive, old.incarnation)], late)).succeeded
        assert await agent.items() == {"kept": b"1"}
        await agent.put("kept", "2")
        assert await agent.items() == {"kept": b"2"}
        await agent.put("kept", "1")

    async with store.agent("w1", config=AGENT) as agent:
        await agent.put("kept", "1")
        first = agent.check()
        await store.client.lease_revoke(first.lease)
        await lost_and_back(agent, first)
        second = agent.check()
        await store.client.delete(store.keyspace.alive("w1"))
        await lost_and_back(agent, second)


# --- what the dead leave ----------------------------------------------------------------------------------------


AGENT_PROCESS = """
import asyncio, json, sys

from election import AgentConfig, connect


async def main():
    async with connect(sys.argv[1], namespace=sys.argv[2]) as store:
        async with store.agent("process", config=AgentConfig(ttl_s=int(sys.argv[3]))) as agent:
            await agent.put("task", "from the process")
            print(json.dumps({"incarnation": agent.incarnation}), flush=True)
            await asyncio.Event().wait()


asyncio.run(main())
"""


@asynccontextmanager
async def agent_process(store: Store) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A process that is the agent `process`, and its incarnation."""
    arguments = [",".join(store.config.endpoints), store.keyspace.namespace, str(AGENT.ttl_s)]
    command = bound_to_this_process([sys.executable, "-c", AGENT_PROCESS, *arguments])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        yield process, said["incarnation"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.usefixtures("no_lease_is_left")
async def test_what_dead_agents_leave_is_collected_once(store: Store, other: Store) -> None:
    """Of two collectors one reaps, in time; the tombstone has what was there, and an end; who lives loses nothing."""
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(store.agent(f"w{n}", config=AGENT)) for n in range(5)]
        for number, agent in enumerate(agents):
            await agent.put("task", f"task {number}")
            await agent.put("bytes", bytes([0xFF, number]))
        dying = agents[:3]
        killed, incarnation = await stack.enter_async_context(agent_process(store))
        first, second = await stack.enter_async_context(two_collectors(store, other))
        token = await first.leads()
        living = {agent.id: await stored(store, agent.id) for agent in agents[3:]}

        died_at_s = CLOCK.now_s()
        killed.send_signal(signal.SIGKILL)
        dead = {agent.id: await die(store, agent) for agent in dying}
        for number, (name, registration) in enumerate(dead.items()):
            reaped = await tombstone(store, name)
            assert (reaped.agent, reaped.incarnation) == (name, registration.incarnation)
            assert (reaped.collector, reaped.token) == ("c1", token)
            assert reaped.reaped_at is not None
            assert collected(reaped) == {"task": b"task %d" % number, "bytes": bytes([0xFF, number])}
        assert CLOCK.now_s() - died_at_s >= COLLECTOR.grace_s
        reaped = await tombstone(store, "process")
        assert CLOCK.now_s() - died_at_s < AGENT.ttl_s + COLLECTOR.grace_s + 2
        assert (reaped.incarnation, collected(reaped)) == (incarnation, {"task": b"from the process"})

        await until(lambda: len(first.reaped()) == 4)
        assert sorted(first.reaped()) == ["process", "w0", "w1", "w2"]
        for name in first.reaped():
            assert await stored(store, name) == {}
            [(_, lease)] = await tombstones(store, name)
            kept_for_s = (await store.client.lease_time_to_live(lease)).grantedTTL
            assert COLLECTOR.retention_s <= kept_for_s <= COLLECTOR.retention_s * 1.1
            assert first.told(Suspected(name, COLLECTOR.grace_s))
        assert second.events == []
        assert {agent.id: await stored(store, agent.id) for agent in agents[3:]} == living


@pytest.mark.usefixtures("no_lease_is_left")
async def test_an_agent_that_is_back_within_the_grace_keeps_its_state(store: Store) -> None:
    """State whose agent never lived is collected meanwhile, after the same grace, as incarnation 0."""
    grace = CollectorConfig(grace_s=4, reconcile_s=1, retention_s=3600)
    async with collecting(store, "c1", grace) as running, store.agent("back", config=AGENT) as agent:
        await running.leads()
        await agent.put("task", "1")
        before, registration = await stored(store, "back"), agent.check()
        left = await leave_state(store, "ghost", task="2")
        while not running.told(Suspected("back", 4)):  # it may be back before the collector has looked
            await store.client.lease_revoke(agent.check().lease)
            with suppress(TimeoutError):
                await until(lambda: running.told(Suspected("back", 4)), 1.0)
        await until(lambda: running.told(Suspected("ghost", 4)))
        await until(lambda: running.told(Recovered("back")))

        reaped = await tombstone(store, "ghost")
        assert (reaped.incarnation, collected(reaped)) == (0, left)
        await running.has_reaped("ghost")
        assert running.reaped() == ["ghost"]
        after = await stored(store, "back")
        assert after["task"] == before["task"]
        assert after[REGISTRATION].mod_revision == agent.incarnation > registration.incarnation
        assert await tombstones(store, "back") == []


@pytest.mark.usefixtures("no_lease_is_left")
async def test_collectors_that_come_and_go_never_touch_the_living(store: Store) -> None:
    """Five collectors without any grace, one after another; each has looked, since it has collected something."""
    eager = CollectorConfig(grace_s=0, reconcile_s=1, retention_s=3600)
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(store.agent(f"w{n}", config=AGENT)) for n in range(10)]
        for agent in agents:
            await agent.put("task", agent.id)
        before = {agent.id: await stored(store, agent.id) for agent in agents}
        tokens = []
        for number in range(5):
            await leave_state(store, f"ghost{number}", task="x")
            async with collecting(store, f"c{number}", eager) as running:
                tokens.append(await running.leads())
                await running.has_reaped(f"ghost{number}")
            assert running.reaped() == [f"ghost{number}"]
        assert tokens == sorted(set(tokens))
        assert {agent.id: await stored(store, agent.id) for agent in agents} == before
        for agent in agents:
            agent.check()
            assert await tombstones(store, agent.id) == []


@pytest.mark.usefixtures("no_lease_is_left")
async def test_the_next_collector_finishes_what_the_first_has_noticed(store: Store, other: Store) -> None:
    """The first one ends between noticing and reaping."""
    async with two_collectors(store, other) as (first, second):
        token = await first.leads()
        left = await leave_state(store, "ghost", task="x")
        await until(lambda: first.told(Suspected("ghost", COLLECTOR.grace_s)))
        first.task.cancel()
        reaped = await tombstone(store, "ghost")
        assert (reaped.collector, collected(reaped)) == ("c2", left)
        assert reaped.token == await second.leads() > token
        await second.has_reaped("ghost")
        assert (first.reaped(), second.reaped()) == ([], ["ghost"])


async def test_a_collector_that_ends_while_it_reaps_leaves_one_tombstone(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd has carried out the transaction, and the answer finds nobody: state and tombstone are as if it had."""
    carry_out = store.client.txn
    carried_out = asyncio.Event()

    async def ends_with_it(compare: Any, success: Any, *rest: Any, **options: Any) -> Any:
        answer = await carry_out(compare, success, *rest, **options)
        if compare and any("agents/reaped" in str(each) for each in success):
            carried_out.set()
            await asyncio.Event().wait()
        return answer

    async with two_collectors(store, other) as (first, second):
        monkeypatch.setattr(store.client, "txn", ends_with_it)
        left = await leave_state(store, "ghost", task="x")
        await asyncio.wait_for(carried_out.wait(), 20)
        monkeypatch.undo()
        first.task.cancel()
        await second.leads()
        await leave_state(store, "next", task="y")
        assert collected(await tombstone(store, "next")) == {"task": b"y"}
        reaped = await tombstone(store, "ghost")
        assert (reaped.collector, collected(reaped)) == ("c1", left)
        assert await stored(store, "ghost") == {}
        await second.has_reaped("next")


async def test_a_collector_that_is_killed_in_the_middle_of_its_sweep_is_finished_by_the_next(store: Store) -> None:
    """Nothing is collected twice, and nothing is lost: each agent has one tombstone with all that it had."""
    names = [f"w{number:04}" for number in range(1_000)]
    put = [txn.put(store.keyspace.state(name, key), name.encode()) for name in names for key in ("a", "b")]
    for first in range(0, len(put), 100):
        await store.client.txn([], put[first : first + 100])
    async with collector_process(store, "c1") as (process, lines):
        seen = 0
        async for line in lines:
            seen += json.loads(line)["event"] == "reaped"
            if seen == 100:
                break
        process.kill()
        await process.wait()
    left = await store.client.list(store.keyspace.state_prefix)
    assert 0 < len(left.kvs) < len(put) - 100
    async with collecting(store, "c2"):

        async def everything() -> bool | None:
            return None if (await store.client.list(store.keyspace.state_prefix)).kvs else True

        await eventually(everything, 60)
    for name in names:
        [(reaped, _)] = await tombstones(store, name)
        assert collected(reaped) == {"a": name.encode(), "b": name.encode()}


@asynccontextmanager
async def collector_process(
    store: Store, id: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """`election collect`, and what it prints."""
    arguments = ["--id", id, "--grace", "0", "--no-breaker", "-o", "json"]
    where = ["--endpoints", ",".join(store.config.endpoints), "--namespace", store.keyspace.namespace]
    command = bound_to_this_process([sys.executable, "-m", "election.cli", "collect", *arguments, *where])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.usefixtures("no_lease_is_left")
async def test_a_deposed_collector_deletes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction compares its own leader key; so it does no harm, however late it comes."""
    terms: asyncio.Queue[Term] = asyncio.Queue()
    retention = Retention(store.client, COLLECTOR.retention_s)

    async def hold(term: Term) -> None:
        await terms.put(term)
        await asyncio.Event().wait()

    async def reap_ghost(term: Term) -> None:
        suspect = Suspect("ghost", incarnation=0, gone_at=0, since_s=0, due_at_s=0)
        planner = Planner(store.keyspace, "c1", term.token, COLLECTOR.retention_s)
        [remains] = await read(store.client, store.keyspace, [suspect])
        burial = planner.plan(remains, CLOCK.wall())
        assert burial is not None
        await reap(store.client, term, planner, [burial], retention=retention, breaker=Breaker())

    await leave_state(store, "ghost", task="x")
    before = await stored(store, "ghost")
    collector = store.collector(id="c1", config=COLLECTOR, candidate_config=LEADER)
    leading = asyncio.create_task(collector.candidate.lead(hold))
    try:
        term = await asyncio.wait_for(terms.get(), 20)
        assert term.election == COLLECTOR_ELECTION
        await store.client.delete(term.key)
        monkeypatch.setattr(Term, "check", lambda self: None)  # it was held up between its check and the transaction
        with pytest.raises(Deposed):
            await reap_ghost(term)
        assert await stored(store, "ghost") == before
        assert await tombstones(store, "ghost") == []
        # Under a new token the same calls collect it.
        await reap_ghost(await asyncio.wait_for(terms.get(), 20))
        assert collected(await tombstone(store, "ghost")) == {"task": b"x"}
    finally:
        collector.leave()
        await asyncio.wait_for(leading, 30)


@pytest.mark.usefixtures("no_lease_is_left")
async def test_what_changes_while_it_is_reaped_is_read_again(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is changed, added or deleted between the read and the transaction; and an agent that comes back."""
    keys, client = store.keyspace, other.client
    async with AsyncExitStack() as stack:

        async def come_back() -> None:
            await stack.enter_async_context(other.agent("back", config=AGENT))

        meddle: dict[str, Callable[[], Awaitable[object]]] = {
            "added": lambda: client.put(keys.state("added", "new"), b"3"),
            "back": come_back,
            "changed": lambda: client.put(keys.state("changed", "one"), b"3"),
            "deleted": lambda: client.delete(keys.state("deleted", "one")),
        }
        meddled = asyncio.Event()

        async def read_and_meddle(*arguments: Any) -> list[Remains]:
            found = await read(*arguments)
            for remains in found:
                if remains.suspect.agent in meddle:
                    await meddle.pop(remains.suspect.agent)()
            if not meddle:
                meddled.set()
            return found

        for agent in meddle:
            await leave_state(store, agent, one="1", two="2")
        await leave_state(store, "untouched", one="1")
        monkeypatch.setattr("election.collector.batches.read", read_and_meddle)
        running = await stack.enter_async_context(collecting(store, "c1"))
        await asyncio.wait_for(meddled.wait(), 20)
        assert collected(await tombstone(other, "untouched")) == {"one": b"1"}
        assert collected(await tombstone(other, "added")) == {"one": b"1", "two": b"2", "new": b"3"}
        assert collected(await tombstone(other, "changed")) == {"one": b"3", "two": b"2"}
        assert collected(await tombstone(other, "deleted")) == {"two": b"2"}
        await until(lambda: running.told(Recovered("back")))
        assert (await stored(other, "back")).keys() == {REGISTRATION, "one", "two"}
        assert await tombstones(other, "back") == []


@pytest.mark.usefixtures("no_lease_is_left")
async def test_a_state_that_is_too_large_for_one_transaction_is_collected_in_parts(store: Store) -> None:
    """Too many bytes, and too many keys; each key is in one part, and others are collected meanwhile."""
    async with store.agent("a-large", config=AGENT) as agent:
        for number in range(22):
            await agent.put(f"part{number}", b"x" * 64 * 1024)
        for number in range(130):
            await agent.put(f"key{number}", b"y")
        before = await agent.items()
    await leave_state(store, "small", task="x")
    async with collecting(store, "c1"):
        await tombstone(store, "small")

        async def all_of_it() -> list[tuple[Tombstone, int]] | None:
            return None if await stored(store, "a-large") else await tombstones(store, "a-large")

        parts = [part for part, _ in await eventually(all_of_it)]
    assert len(parts) > 2
    assert sum(len(part.collected) for part in parts) == len(before)
    assert {key: value for part in parts for key, value in collected(part).items()} == before


# --- what others write, and what readers see --------------------------------------------------------------------


@pytest.mark.usefixtures("no_lease_is_left")
async def test_what_strangers_write_breaks_nothing(store: Store) -> None:
    """Keys that are not ours stay; values that are not ours are taken as they are, by the collector and by the view."""
    agents = store.keyspace.agents
    strange = {
        agents + b"state/x/y/z": b"nested",
        agents + b"state/\xff\xfe/key": b"no name",
        agents + b"state/-bad/key": b"no name either",
        agents + b"alive/a/b": b"nested",
        agents + b"alive/": b"nobody",
        agents + b"reaped/ghost/never": b"not a number",
        agents + b"reaped/ghost": b"nothing",
        agents + b"other": b"\x00",
    }
    odd = {
        agents + b"alive/odd": b"\xff not JSON",
        agents + b"state/odd/task": b"1",
        agents + b"state/odd/\xff": b"2",
        agents + b"state/odd/" + REGISTRATION.encode(): b'["no", "record"]',
        agents + b"reaped/odd/5": b'{"collected": [1, {"key": "k", "base64": "?"}], "token": "x"}',
    }

    async def write() -> None:
        for key, value in (strange | odd).items():
            await store.client.put(key, value)
        await store.client.put(store.keyspace.state("ghost", REGISTRATION), b"{{{")
        await store.client.put(store.keyspace.state("ghost", "task"), b"x")

    await write()
    async with collecting(store, "c1") as running, store.view() as view:
        reaped = await tombstone_of(store, "ghost")
        await write()  # once more, for those who watch
        again = await tombstone_of(store, "ghost", after=reaped.incarnation)
        for each in (reaped, again):
            assert collected(each) == {"task": b"x"}
            assert each.incarnation > 0
        await until(lambda: running.reaped() == ["ghost", "ghost"])
        assert [event for event in running.events if isinstance(event, ReapFailed)] == []
        assert any(isinstance(event, Foreign) for event in running.events)
        for key, value in (strange | odd).items():
            found, _ = await store.client.get(key)
            assert found is not None
            assert found.value == value

        [agent] = (await view.agents()).value
        assert (agent.id, agent.state, agent.state_keys) == ("odd", AgentState.ALIVE, ("task",))
        seen = (await view.agent("odd")).value
        assert seen is not None
        _, entries = seen
        assert [(entry.key, entry.value) for entry in entries] == [("task", b"1"), ("\\xff", b"2")]
        await store.client.delete(agents + b"alive/odd")


async def tombstone_of(store: Store, agent: str, after: int = 0) -> Tombstone:
    """Waits for a tombstone of a later incarnation."""

    async def look() -> Tombstone | None:
        for kv in (await store.client.list(store.keyspace.tombstones(agent))).kvs:
            key = store.keyspace.parse(kv.key)
            if isinstance(key, TombstoneKey) and key.incarnation > after:
                return Tombstone.decode(agent, key.incarnation, kv.value)
        return None

    return await eventually(look)


@pytest.mark.usefixtures("no_lease_is_left")
async def test_a_watch_tells_of_every_step_of_an_agents_life(store: Store, other: Store) -> None:
    """PRESENT and SYNCED first, then JOINED, STALE, RECOVERED, and REAPED with what was collected."""
    grace = CollectorConfig(grace_s=3, reconcile_s=5, retention_s=3600, breaker=None)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(store.agent("early", config=AGENT))
        view = await stack.enter_async_context(other.view())
        events = await stack.enter_async_context(watching(view))
        await until(lambda: len(events) == 2)
        assert [event.kind for event in events] == [AgentEventKind.PRESENT, AgentEventKind.SYNCED]

        await stack.enter_async_context(collecting(store, "c1", grace))
        agent = await stack.enter_async_context(store.agent("w1", address="here:1", config=AGENT))
        await until(lambda: told(events, "w1") == [AgentEventKind.JOINED])
        first = agent.check()
        await store.client.lease_revoke(first.lease)
        await until(lambda: (now := agent.registration) is not None and now.incarnation > first.incarnation)
        await agent.put("task", "x")
        task = (await stored(store, "w1"))["task"]
        last = await die(store, agent)
        reaped = await tombstone(store, "w1")
        await until(lambda: told(events, "w1")[-1] is AgentEventKind.REAPED)
        again = await stack.enter_async_context(other.agent("w1", config=AGENT))
        await until(lambda: told(events, "w1")[-1] is AgentEventKind.JOINED)

        assert told(events, "w1") == [
            AgentEventKind.JOINED,
            AgentEventKind.STALE,
            AgentEventKind.RECOVERED,
            AgentEventKind.STALE,
            AgentEventKind.REAPED,
            AgentEventKind.JOINED,
        ]
        _, _, recovered, _, end, joined = of_agent(events, "w1")
        assert recovered.agent is not None
        assert (recovered.agent.state, recovered.agent.incarnation) == (AgentState.ALIVE, last.incarnation)
        assert end.agent is not None
        assert (end.agent.state, end.agent.address, end.agent.incarnation) == (
            AgentState.REAPED,
            "here:1",
            last.incarnation,
        )
        assert end.tombstone == reaped
        assert reaped.collected == (StateEntry("task", b"x", task.mod_revision),)
        assert joined.agent is not None
        assert joined.agent.incarnation == again.incarnation > last.incarnation
        assert told(events, "early") == [AgentEventKind.PRESENT]


@asynccontextmanager
async def watching(view: View) -> AsyncIterator[list[AgentEvent]]:
    """What a watch of the agents tells, as it comes."""
    events: list[AgentEvent] = []

    async def read() -> None:
        async with aclosing(view.watch_agents()) as told:
            async for event in told:
                events.append(event)  # noqa: PERF401 - the list is looked at while it grows

    reading = asyncio.create_task(read())
    try:
        yield events
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()


def of_agent(events: list[AgentEvent], agent: str) -> list[AgentEvent]:
    """What was told of one agent, but for changes of its record."""
    of_it = [event for event in events if event.agent and event.agent.id == agent]
    return [event for event in of_it if event.kind is not AgentEventKind.UPDATED]


def told(events: list[AgentEvent], agent: str) -> list[AgentEventKind]:
    return [event.kind for event in of_agent(events, agent)]
