"""Who watches, lists and asks over gRPC: real etcd, real servers that end and come back, and what nobody may miss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from election import published
from election.agent_records import AgentState, StateEntry, Tombstone
from election.breaker import Breaker, BreakerReason, close_breaker, hold_breaker
from election.client import Client, dial
from election.dev.etcd import EtcdCluster
from election.errors import Compacted, ConfigError, RolledBack
from election.etcd import txn
from election.etcd.listing import PAGE_KEYS, list_all
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.published import TooSlow
from election.reader import AgentEvent, AgentEventKind, AgentFilter, Reader
from election.server.serving import GrpcServer
from election.store import Store, connect
from election.token import Token
from election.views import View
from tests.simulation.scripted_fleet import Fleet, as_told, reaped_in
from tests.simulation.test_watch_agents import write

pytestmark = pytest.mark.etcd

WAIT_S = 20.0


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store.client, store.keyspace)


@asynccontextmanager
async def serving(store: Store, port: int = 0) -> AsyncIterator[tuple[GrpcServer, View]]:
    """A server over a view of its own, as `election serve` has it."""
    async with store.view() as view, GrpcServer(view, port=port) as server:
        yield server, view


@dataclass
class Seen:
    """What a watch has told so far."""

    events: list[AgentEvent] = field(default_factory=list)

    async def until(
        self, kind: AgentEventKind, agent: str | None = None, *, count: int = 1, within_s: float = WAIT_S
    ) -> AgentEvent:
        """Waits until it has told that so often; returns the last one."""
        async with asyncio.timeout(within_s):
            while True:
                found = [event for event in self.events if event.kind is kind and agent in (None, name_of(event))]
                if len(found) >= count:
                    return found[-1]
                await asyncio.sleep(0.05)

    def told(self) -> list[str]:
        return [f"{event.kind.value} {name_of(event)}".strip() for event in self.events]


def name_of(event: AgentEvent) -> str:
    return event.agent.id if event.agent else ""


@asynccontextmanager
async def watching(client: Client, after: int | None = None) -> AsyncGenerator[Seen]:
    """A watch, and what it tells."""
    seen = Seen()

    async def read() -> None:
        async with aclosing(client.watch_agents(after=after)) as events:
            async for event in events:
                seen.events.append(event)

    reading = asyncio.create_task(read())
    try:
        yield seen
    finally:
        reading.cancel()
        await asyncio.wait({reading})
    if not reading.cancelled():
        reading.result()


# --- watches -----------------------------------------------------------------------------------------------------


async def test_a_client_is_told_what_was_reaped_while_its_server_was_away(store: Store, fleet: Fleet) -> None:
    """Lives, parts and batches, with what each had stored, although etcd has compacted its history meanwhile."""
    for name in "abc":
        await fleet.join(name)
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(AsyncExitStack())
        server, _ = await owner.enter_async_context(serving(store))
        client = await stack.enter_async_context(dial(server.address))
        seen = await stack.enter_async_context(watching(client))
        await seen.until(AgentEventKind.SYNCED)
        await owner.aclose()

        for _ in range(2):
            await fleet.die("a")
            await fleet.reap("a")
            await fleet.join("a")
        await fleet.store("b", "more", "x")
        await fleet.die("b")
        await fleet.reap_part("b", "more")
        await fleet.reap("b")
        await fleet.die("a", "c")
        await fleet.reap("a", "c")
        back = await fleet.join("c")
        await store.client.compact(back)
        assert seen.told() == ["present a", "present b", "present c", "synced"]

        await stack.enter_async_context(serving(store, server.port))
        await seen.until(AgentEventKind.JOINED, "c")
        assert reaped_in(seen.events) == list(fleet.reaped.items())
        assert seen.told()[4:] == [f"reaped {name}" for name in "aabbac"] + ["joined c"]
        assert all(event.tombstone.collected for event in seen.events if event.tombstone)
        await fleet.die("c")
        await seen.until(AgentEventKind.STALE, "c")


async def test_a_caller_that_was_away_goes_on_after_what_it_has_seen(store: Store, fleet: Fleet) -> None:
    """A new client, a raw stub, and one that asks for everything that is kept."""
    async with serving(store) as (server, _), dial(server.address) as client:
        async with watching(client) as seen:
            await fleet.join("a")
            await fleet.join("b")
            await fleet.die("a", "b")
            checkpoint = (await seen.until(AgentEventKind.STALE, "b")).source.revision
        await fleet.reap("a", "b")
        async with watching(client, after=checkpoint) as seen:
            await seen.until(AgentEventKind.SYNCED)
            assert seen.told() == ["reaped a", "reaped b", "synced"]
            assert reaped_in(seen.events) == list(fleet.reaped.items())
            after = seen.events[0].source.revision
        assert after == checkpoint  # b's reap, of the same revision, was still to be told
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = services.AgentsStub(channel).WatchAgents(pb.WatchAgentsRequest(after_revision=checkpoint))
            messages: list[Any] = [await call.read() for _ in range(3)]
            call.cancel()
        assert [message.tombstone.agent for message in messages] == ["a", "b", ""]
        for given, expected in ((0, 2), (None, 0), (seen.events[1].source.revision, 0)):
            async with watching(client, after=given) as seen:
                await seen.until(AgentEventKind.SYNCED)
                assert len(reaped_in(seen.events)) == expected
        with pytest.raises(RolledBack, match="begin again from the present"):
            await anext(client.watch_agents(after=1 << 40))
        for garbage in (-1, 1 << 70, "x"):
            with pytest.raises(ConfigError, match=r"not a revision|cannot be asked"):
                await anext(client.watch_agents(after=garbage))  # type: ignore[arg-type]


async def test_of_two_servers_the_one_that_lags_behind_tells_nothing_twice(store: Store, fleet: Fleet) -> None:
    """It has a view that etcd told nothing for a while; the client waits, and goes on where it was."""
    for name in "abc":
        await fleet.join(name)
    await fleet.die(*"abc")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        server, _ = await first.enter_async_context(serving(store))
        other, view = await stack.enter_async_context(serving(store))
        client = await stack.enter_async_context(dial(server.address))
        both = await stack.enter_async_context(dial([server.address, other.address]))
        seen, also = [await stack.enter_async_context(watching(each)) for each in (client, both)]
        await seen.until(AgentEventKind.SYNCED)
        await also.until(AgentEventKind.SYNCED)

        take, held = view._mirror._take, list[object]()
        view._mirror._take = held.append  # type: ignore[method-assign, assignment]
        await fleet.reap("a")
        await seen.until(AgentEventKind.REAPED, "a")
        await first.aclose()
        await fleet.reap("b")
        await asyncio.sleep(1)
        view._mirror._take = take  # type: ignore[method-assign]
        for item in held:
            take(item)  # type: ignore[arg-type]
        await also.until(AgentEventKind.REAPED, "b")
        await fleet.reap("c")
        await also.until(AgentEventKind.REAPED, "c")
        assert reaped_in(also.events) == list(fleet.reaped.items())


async def test_a_client_that_was_too_slow_goes_on_where_it_was(
    store: Store, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cuts it off, whenever more happens at once than it may lag behind; it is told everything once."""
    monkeypatch.setattr(published, "QUEUE_LIMIT", 5)
    names = [f"w{number:03}" for number in range(80)]
    for name in names:
        await fleet.join(name)
    await fleet.die(*names)
    async with serving(store) as (server, view), dial(server.address) as client, watching(client) as seen:
        await seen.until(AgentEventKind.SYNCED)
        direct = view.watch_agents()
        await anext(direct)
        for begin in range(0, len(names), 20):
            await fleet.reap(*names[begin : begin + 20])
            await seen.until(AgentEventKind.REAPED, count=begin + 20)
        with pytest.raises(TooSlow):  # whoever has no client to go on for him is told
            async for _ in direct:
                pass
        assert reaped_in(seen.events) == list(fleet.reaped.items())


@pytest.mark.parametrize("seed", range(3))
async def test_a_client_with_breaks_is_told_what_one_without_is(store: Store, fleet: Fleet, seed: int) -> None:
    """Over servers that end and come back at any moment, each with a new view."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        steady_server, _ = await stack.enter_async_context(serving(store))
        steady = await stack.enter_async_context(watching(await stack.enter_async_context(dial(steady_server.address))))
        ports: list[int] = []
        owners: list[AsyncExitStack] = []
        for _ in range(2):
            owners.append(await stack.enter_async_context(AsyncExitStack()))
            ports.append((await owners[-1].enter_async_context(serving(store)))[0].port)
        client = await stack.enter_async_context(dial([f"127.0.0.1:{port}" for port in ports]))
        seen = await stack.enter_async_context(watching(client))
        await seen.until(AgentEventKind.SYNCED)
        await steady.until(AgentEventKind.SYNCED)
        writing = asyncio.create_task(write(fleet, rng, 60))
        while not writing.done():
            await asyncio.sleep(rng.uniform(0, 1))
            number = rng.randrange(2)
            await owners[number].aclose()
            await asyncio.sleep(rng.choice([0, 0.5]))
            await owners[number].enter_async_context(serving(store, ports[number]))
            if rng.random() < 0.3:
                with suppress(Compacted):  # nothing was written since the last time
                    await store.client.compact((await store.client.get(b"x"))[1].revision)
        await writing
        await fleet.join("last")
        for each in (seen, steady):
            await each.until(AgentEventKind.JOINED, "last")
        assert reaped_in(steady.events) == list(fleet.reaped.items()), f"seed {seed}"
        assert sorted(reaped_in(seen.events)) == sorted(fleet.reaped.items()), f"seed {seed}"


async def test_ten_thousand_agents_that_vanish_at_once_cut_no_watcher_off(store: Store, fleet: Fleet) -> None:
    """They are stale in one moment, reaped in some, and each is told once; nobody has to begin again."""
    keyspace, client = store.keyspace, store.client
    names = [f"w{number:05}" for number in range(10_000)]
    batches = [names[begin : begin + 60] for begin in range(0, len(names), 60)]
    for batch in batches:
        await client.txn(
            [], [txn.put(key, b"{}") for name in batch for key in (keyspace.alive(name), keyspace.state(name, "task"))]
        )
    async with AsyncExitStack() as stack:
        server, view = await stack.enter_async_context(serving(store))
        watch = view.watch_agents()
        stack.push_async_callback(watch.aclose)
        first = await anext(watch)  # it does not read again until all is over
        seen = await stack.enter_async_context(watching(await stack.enter_async_context(dial(server.address))))
        await seen.until(AgentEventKind.SYNCED)
        await client.delete(keyspace.alive_prefix, keyspace.alive_prefix[:-1] + b"0")
        for batch in batches:
            changes = []
            for name in batch:
                entries = (StateEntry("task", b"{}", 1),)
                value = Tombstone(name, 0, client.clock.wall(), "c", Token(0, 1), entries).encode()
                changes += [txn.delete_prefix(keyspace.states(name)), txn.put(keyspace.tombstone(name, 0), value)]
            await client.txn([], changes)
        await seen.until(AgentEventKind.REAPED, count=10_000, within_s=60)
        assert sorted(reap[0] for reap, _ in reaped_in(seen.events)) == names
        assert len(seen.events) == 3 * 10_000 + 1
        slow = [first] + [await anext(watch) for _ in range(3 * 10_000)]
        assert [event.kind for event in slow] == [event.kind for event in seen.events]
        assert (await view.agents_by_state()).value[AgentState.REAPED] == 10_000


# --- questions ---------------------------------------------------------------------------------------------------


async def test_agents_are_listed_as_they_are_asked_for(store: Store, fleet: Fleet) -> None:
    """By state and by label; the reaped only when they are named, with the labels that they had."""
    async with serving(store) as (server, view), dial(server.address) as client:
        for name in "abcde":
            await fleet.join(name, zone="x" if name in "ab" else "y", **({"gpu": "2"} if name in "bd" else {}))
        await fleet.drain("b")
        await fleet.die("c", "d", "e")
        await fleet.reap("d")
        await fleet.leave("e")

        async def ids(*states: AgentState, **labels: str) -> str:
            chosen = AgentFilter(frozenset(states), labels) if states else AgentFilter(labels=labels)
            answers = [await each.agents(chosen, linearizable=True) for each in (client, view)]
            assert answers[0].value == answers[1].value
            return "".join(agent.id for agent in answers[0].value)

        async with asyncio.timeout(WAIT_S):
            while await ids() != "abc":
                await asyncio.sleep(0.02)
        assert await ids(AgentState.ALIVE) == "a"
        assert await ids(AgentState.DRAINING) == "b"
        assert await ids(AgentState.SUSPECT) == "c"
        assert await ids(AgentState.REAPED) == "d"
        assert await ids(*AgentState) == "abcd"
        assert await ids(zone="x") == "ab"
        assert await ids(*AgentState, zone="y", gpu="") == "d"
        assert await ids(*AgentState, gpu="3") == ""
        assert (await client.agents(AgentFilter(frozenset()))).value == ()
        [reaped] = (await client.agents(AgentFilter(frozenset({AgentState.REAPED})), linearizable=True)).value
        assert (reaped.address, dict(reaped.labels)) == ("d:1", {"zone": "y", "gpu": "2"})
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await services.AgentsStub(channel).ListAgents(pb.ListAgentsRequest(states=[7]))  # type: ignore[list-item]
        assert refused.value.code() is StatusCode.INVALID_ARGUMENT
        assert "agent state 7 is not known here: the states are 1 (alive), 2 (draining)" in str(refused.value.details())


async def test_tombstones_are_listed_the_oldest_first(store: Store, fleet: Fleet) -> None:
    """Of one agent or of all, parts and earlier lives among them; from etcd, and not from memory."""
    async with serving(store) as (server, view), dial(server.address) as client:
        readers: tuple[Reader, ...] = (client, view)
        for reader in readers:
            answer = await reader.tombstones()
            assert answer.value == ()
            assert answer.source.revision > 0
        for name in ("b", "a", "b"):
            await fleet.join(name)
            await fleet.die(name)
            if name == "a":
                await fleet.reap_part(name, "task")
            last = await fleet.reap(name)
        for reader in readers:
            answer = await reader.tombstones()
            assert list(map(as_told, answer.value)) == list(fleet.reaped.values())
            assert answer.source.revision >= last
            of_b = [each for each in fleet.reaped.values() if each.agent == "b"]
            assert list(map(as_told, (await reader.tombstones("b")).value)) == of_b
            assert (await reader.tombstones("nobody")).value == ()
            with pytest.raises(ConfigError, match="is not a valid name"):
                await reader.tombstones("a/b")
            with pytest.raises(ConfigError, match="is not a valid name"):
                await reader.tombstones("")


async def test_two_thousand_tombstones_come_in_messages_that_every_client_takes(store: Store, fleet: Fleet) -> None:
    """Also one that has gRPC's limits as they are."""
    value = b"x" * 4_000
    names = [f"w{number:04}" for number in range(2_000)]
    stones = {name: Tombstone(name, 7, None, "c", Token(0, 1), (entry(value),)).encode() for name in names}
    for begin in range(0, len(names), 100):
        puts = [txn.put(store.keyspace.tombstone(name, 7), stones[name]) for name in names[begin : begin + 100]]
        await store.client.txn([], puts)
    async with serving(store) as (server, _), dial(server.address) as client:
        found = (await client.tombstones()).value
        assert [tombstone.agent for tombstone in found] == names
        assert all(tombstone.collected == (entry(value),) for tombstone in found)
        async with grpc.aio.insecure_channel(server.address) as channel:
            sizes: list[int] = []
            token = ""
            while token or not sizes:
                asked = pb.ListTombstonesRequest(page_token=token)
                message = await services.AgentsStub(channel).ListTombstones(asked)
                token = message.next_page_token
                sizes.append(message.ByteSize())
        assert sum(sizes) > 8_000_000
        assert max(sizes) < 2 * 1024 * 1024


def entry(value: bytes) -> StateEntry:
    return StateEntry("task", value, 5)


async def test_more_than_fits_into_one_message_is_listed_and_watched(single_etcd: EtcdCluster, namespace: str) -> None:
    """70 MiB of tombstones: gRPC takes 64 at once. A view opens, a list is whole, and a watch goes on."""
    async with connect(single_etcd.endpoints, namespace=namespace) as store:
        value = random.Random(1).randbytes(900_000)  # 1.2 MB in base64
        for number in range(60):
            stone = Tombstone(f"w{number:02}", 7, store.client.clock.wall(), "c", Token(0, 1), (entry(value),)).encode()
            await store.client.put(store.keyspace.tombstone(f"w{number:02}", 7), stone)
        try:
            listed = await list_all(store.client, store.keyspace.reaped_prefix)
            assert (len(listed.kvs), len(stone) * 60 > 64 * 1024 * 1024) == (60, True)
            async with serving(store) as (server, view), dial(server.address) as client:
                found = (await client.tombstones()).value
                assert [(each.agent, each.collected[0].value == value) for each in found] == [
                    (f"w{number:02}", True) for number in range(60)
                ]
                async with watching(client, after=0) as seen:
                    await seen.until(AgentEventKind.SYNCED)
                    assert len(reaped_in(seen.events)) == 60
                assert (await view.agents_by_state()).value == {AgentState.REAPED: 60}
        finally:
            await store.client.delete(store.keyspace.reaped_prefix, store.keyspace.reaped_prefix[:-1] + b"0")


async def test_a_list_of_several_pages_is_of_one_revision(store: Store) -> None:
    """What is written and deleted meanwhile is not in it; and it is in the order of creation."""
    prefix = store.keyspace.states("a")
    names = [f"k{number:05}" for number in range(PAGE_KEYS + 500)]
    random.Random(1).shuffle(names)
    for begin in range(0, len(names), 100):
        await store.client.txn([], [txn.put(prefix + name.encode(), b"") for name in names[begin : begin + 100]])
    whole = await list_all(store.client, prefix)
    assert {kv.key[len(prefix) :].decode() for kv in whole.kvs} == set(names)
    assert [kv.create_revision for kv in whole.kvs] == sorted(kv.create_revision for kv in whole.kvs)

    range_of, asked = store.client.range, 0

    async def meddled(request: object) -> object:
        nonlocal asked
        answer = await range_of(request)  # type: ignore[arg-type]
        asked += 1
        if asked == 1:
            await store.client.delete(prefix + max(names).encode())
            await store.client.put(prefix + b"zzz", b"")
        return answer

    store.client.range = meddled  # type: ignore[method-assign, assignment]
    again = await list_all(store.client, prefix, keys_only=True)
    assert {kv.key for kv in again.kvs} == {kv.key for kv in whole.kvs}
    assert asked > 2


async def test_the_breaker_is_told(store: Store) -> None:
    """That it never was open, that an operator holds it open, and that somebody has written nonsense."""
    async with serving(store) as (server, view), dial(server.address) as client:
        for reader in (client, view):
            assert (await reader.breaker()).value == Breaker()
        held = await hold_breaker(store.client, store.keyspace, by="me", hold_s=60)
        for reader in (client, view):
            answer = await reader.breaker()
            told = answer.value
            assert (told.open, told.reason, told.by, told.revision) == (
                True,
                BreakerReason.OPERATOR,
                "me",
                held.revision,
            )
            assert told.until is not None
            assert answer.source.revision >= held.revision
        await close_breaker(store.client, store.keyspace, by="you")
        assert not (await client.breaker()).value.open
        await store.client.put(store.keyspace.breaker, b"nonsense")
        told = (await client.breaker()).value
        assert (told.open, told.reason) == (True, BreakerReason.UNREADABLE)
