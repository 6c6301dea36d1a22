"""Watches of leaders over gRPC: real etcd, real servers, and readers that come back, stall, or ask for the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from election.api.statuses import reason_in
from election.client import Client, dial
from election.dev.etcd import EtcdCluster
from election.errors import ConfigError, EtcdUnavailable, RolledBack
from election.etcd import txn
from election.mirror import LEADER_QUEUE_LIMIT
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.reader import LeaderEvent, LeaderEventKind
from election.records import CandidateRecord
from election.server.serving import GrpcServer
from election.store import Store, connect
from election.views import View
from tests.simulation.test_watch_leader import Reign

pytestmark = pytest.mark.etcd

ELECTION = "scheduler"
WAIT_S = 20.0
Kind = pb.WatchLeaderResponse


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


@pytest.fixture
def reign(store: Store) -> Reign:
    return Reign(store.client, store.keyspace, ELECTION)


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[tuple[GrpcServer, View]]:
    """A server over a view of its own, as `election serve` has it."""
    async with store.view() as view, GrpcServer(view, port=0) as server:
        yield server, view


@asynccontextmanager
async def watching(client: Client, **how: Any) -> AsyncGenerator[list[LeaderEvent]]:
    """What a watch tells, as it comes."""
    events: list[LeaderEvent] = []

    async def read() -> None:
        async with aclosing(client.watch_leader(ELECTION, **how)) as told:
            async for event in told:
                events.append(event)  # noqa: PERF401 - it is read while it grows

    reading = asyncio.create_task(read())
    try:
        yield events
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()


async def told(events: list[LeaderEvent], count: int) -> list[tuple[str, int]]:
    """Waits until so many events were told; their kinds and tokens."""
    async with asyncio.timeout(WAIT_S):
        while len(events) < count:
            await asyncio.sleep(0.02)
    return [(event.kind.value, event.leader.token.revision if event.leader else 0) for event in events]


async def test_a_watch_goes_on_at_another_server_without_a_missed_term(store: Store, reign: Reign) -> None:
    """Every term that began and ended between two servers, in order; no RESET, and nothing twice."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        server, _ = await first.enter_async_context(serving(store))
        other, _ = await stack.enter_async_context(serving(store))
        client = await stack.enter_async_context(dial(server.address))
        events = await stack.enter_async_context(watching(client))
        await told(events, 1)
        await reign.begin()
        await told(events, 2)
        client._servers.addresses = (other.address,)  # where it goes on, whichever it was
        client._servers._channels = (await stack.enter_async_context(dial(other.address)))._servers._channels
        await first.aclose()
        await reign.end()
        await reign.terms(5)
        expected = [("vacated", 0), ("elected", reign.tokens[0])]
        for token in reign.tokens[1:]:
            expected += [("vacated", 0), ("elected", token)]
        assert await told(events, len(expected)) == expected


async def test_a_server_that_has_not_seen_it_says_that_terms_may_be_missing(store: Store, reign: Reign) -> None:
    """One that began after them; unless the same term goes on, which the client knows."""
    async with serving(store) as (server, _), dial(server.address) as client, watching(client) as events:
        await told(events, 1)
        await reign.begin()
        seen = (await told(events, 2))[-1]
    checkpoint = events[-1].source.revision
    async with serving(store) as (server, _), dial(server.address) as client:
        async with watching(client, after=checkpoint, heartbeat_s=1.0) as events:
            assert (await told(events, 2))[0] == seen or events[0].kind is LeaderEventKind.HEARTBEAT
        await reign.end()
        await reign.terms(2)
        await asyncio.sleep(0.2)
    async with serving(store) as (server, _), dial(server.address) as client:
        async with watching(client, after=checkpoint) as events:
            assert await told(events, 1) == [("reset", reign.tokens[-1])]
        with pytest.raises(RolledBack):
            await anext(client.watch_leader(ELECTION, after=1 << 40))
        for garbage in (-1, 1 << 70):
            with pytest.raises(ConfigError):
                await anext(client.watch_leader(ELECTION, after=garbage))


async def test_a_reader_that_stalls_is_cut_off_and_holds_nothing(store: Store, reign: Reign) -> None:
    """Flow control stops the server's writes: others are told everything, and it is told that it was too slow."""
    options = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    async with AsyncExitStack() as stack:
        server, view = await stack.enter_async_context(serving(store))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))
        stub = services.ElectionsStub(channel)
        stalled: Any = stub.WatchLeader(pb.WatchLeaderRequest(election=ELECTION))
        last = await stalled.read()
        client = await stack.enter_async_context(dial(server.address))
        events = await stack.enter_async_context(watching(client))
        await told(events, 1)
        await reign.begin()
        count = 3 * LEADER_QUEUE_LIMIT
        for number in range(count):
            await reign.change(address=f"{number}", labels={"much": "x" * 2_000})
        seen = await told(events, count + 2)
        assert seen == [("vacated", 0), ("elected", reign.tokens[0]), *[("updated", reign.tokens[0])] * count]
        places = [reading._link for reading in view._mirror._leaders[ELECTION]._readings]
        assert sorted(link is None for link in places) == [False, True]
        async with asyncio.timeout(WAIT_S):
            with suppress(grpc.aio.AioRpcError):
                while True:
                    last = await stalled.read()
        assert await stalled.code() is StatusCode.RESOURCE_EXHAUSTED
        assert reason_in(await stalled.trailing_metadata()) == "READER_TOO_SLOW"
        again: Any = stub.WatchLeader(pb.WatchLeaderRequest(election=ELECTION, after_revision=last.view.revision))
        assert (await again.read()).kind in (Kind.KIND_RESET, Kind.KIND_UPDATED, Kind.KIND_ELECTED)
        again.cancel()


async def test_a_silent_stream_gives_signs_of_life(store: Store, reign: Reign) -> None:
    """As often as it is asked to, within bounds; each says how fresh the view is, and where to go on."""
    async with serving(store) as (server, view), grpc.aio.insecure_channel(server.address) as channel:
        elections, agents = services.ElectionsStub(channel), services.AgentsStub(channel)
        seen = await reign.begin()
        async with asyncio.timeout(WAIT_S):
            while (await view.leader(ELECTION)).value is None:
                await asyncio.sleep(0.02)
        beat = Duration(seconds=1)
        call: Any = elections.WatchLeader(pb.WatchLeaderRequest(election=ELECTION, after_revision=seen, heartbeat=beat))
        began_s = asyncio.get_running_loop().time()
        messages = [await call.read() for _ in range(3)]
        assert 1.8 < asyncio.get_running_loop().time() - began_s < 4
        assert [message.kind for message in messages] == [Kind.KIND_HEARTBEAT] * 3
        assert {message.view.revision for message in messages} == {seen}
        assert not any(message.HasField("leader") for message in messages)
        call.cancel()
        watch: Any = agents.WatchAgents(pb.WatchAgentsRequest(heartbeat=beat))
        kinds = [(await watch.read()).kind for _ in range(2)]
        assert kinds == [pb.WatchAgentsResponse.KIND_SYNCED, pb.WatchAgentsResponse.KIND_HEARTBEAT]
        watch.cancel()
        for bad in (Duration(), Duration(nanos=999_999_999), Duration(seconds=301), Duration(seconds=-5)):
            for refused in (
                elections.WatchLeader(pb.WatchLeaderRequest(election=ELECTION, heartbeat=bad)),
                agents.WatchAgents(pb.WatchAgentsRequest(heartbeat=bad)),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match="heartbeat") as raised:
                    await refused.read()
                assert raised.value.code() is StatusCode.INVALID_ARGUMENT


async def test_a_server_that_falls_silent_is_left(store: Store, reign: Reign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection lives, and nothing comes any more: the client goes on elsewhere, and has missed nothing."""
    monkeypatch.setattr("election.client.watches.HEARTBEAT_S", 1.0)
    async with (
        serving(store) as (server, view),
        serving(store) as (other, _),
        dial(server.address) as client,
        dial(other.address) as elsewhere,
        watching(client) as events,
    ):
        await told(events, 1)
        for reading in view._mirror._leaders[ELECTION]._readings:
            monkeypatch.setattr(type(reading), "wait", hang(reading, type(reading).wait))
        client._servers.addresses = (other.address,)
        client._servers._channels = elsewhere._servers._channels
        await reign.terms(3)
        expected = [("vacated", 0), ("elected", reign.tokens[0])]
        for token in reign.tokens[1:]:
            expected += [("vacated", 0), ("elected", token)]
        assert await told(events, len(expected)) == expected


def hang(hung: Any, wait: Any) -> Any:
    async def waits(reading: Any, timeout_s: float | None = None) -> bool:
        if reading is hung:
            await asyncio.Event().wait()
        return bool(await wait(reading, timeout_s))

    return waits


# --- answers that are as new as the question -----------------------------------------------------------------------


async def test_a_linearizable_answer_is_never_behind_a_write_that_was_acknowledged(store: Store, reign: Reign) -> None:
    """Whatever the server's own watch has been told so far, and at which member."""
    async with serving(store) as (server, _), dial(server.address) as client:
        for number in range(60):
            if number % 3 == 0:
                await (reign.end() if reign.key and number % 2 else reign.begin(f"c{number}"))
            revision = (await store.client.put(b"/elsewhere", b"")).header.revision
            answer = await client.leader(ELECTION, linearizable=True)
            held = await store.client.list(store.keyspace.campaign(ELECTION))
            oldest = held.kvs[0].create_revision if held.kvs else None
            assert (answer.value and answer.value.token.revision) == oldest
            assert answer.source.revision >= revision
            assert answer.source.age_s == 0.0
            assert len((await client.candidates(ELECTION, linearizable=True)).value) == len(held.kvs)


async def test_without_etcd_only_what_may_be_old_is_answered(tmp_path: Path, namespace: str) -> None:
    """UNAVAILABLE with etcd's reason to who asks for the truth, and an answer with its age to who does not."""
    async with (
        await EtcdCluster.start(data_dir=tmp_path, members=1) as cluster,
        connect(cluster.endpoints, namespace=namespace) as store,
        serving(store) as (server, view),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = services.ElectionsStub(channel)
        (member,) = cluster.members
        member.pause()
        try:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetLeader(pb.GetLeaderRequest(election=ELECTION, linearizable=True))
            assert raised.value.code() is StatusCode.UNAVAILABLE
            assert reason_in(raised.value.trailing_metadata()) == "ETCD_UNAVAILABLE"
            answer = await stub.GetLeader(pb.GetLeaderRequest(election=ELECTION))
            assert answer.view.age.ToMilliseconds() > 1_000
            with pytest.raises(EtcdUnavailable):
                await view.agents(linearizable=True)
        finally:
            member.resume()


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_lists_come_in_pages_and_the_client_reads_them_all(store: Store) -> None:
    """Agents, elections and candidates: more than there are on one page, from several servers by turns."""
    keys, record = store.keyspace, CandidateRecord("one").encode()
    names = [f"n{number:04}" for number in range(2_500)]
    for begin in range(0, len(names), 30):
        some = names[begin : begin + 30]
        puts = [[txn.put(keys.alive(name), b"{}"), txn.put(keys.candidate(name, 1), record)] for name in some]
        puts += [[txn.put(keys.candidate("many", int(name[1:]) + 1), record)] for name in some]
        await store.client.txn([], [put for each in puts for put in each])
    async with serving(store) as (server, _), serving(store) as (other, _), dial(server.address) as client:
        agents = (await client.agents(linearizable=True)).value
        assert [agent.id for agent in agents] == names
        assert [election.name for election in (await client.elections()).value] == ["many", *names]
        candidates = (await client.candidates("many")).value
        assert [each.created for each in candidates] == sorted(each.created for each in candidates)
        assert len(candidates) == 2_500
        found, token = list[str](), ""
        async with (
            grpc.aio.insecure_channel(server.address) as channel,
            grpc.aio.insecure_channel(other.address) as another,
        ):
            stubs = [services.AgentsStub(channel), services.AgentsStub(another)]
            while token or not found:
                request = pb.ListAgentsRequest(page_size=999, page_token=token)
                answer = await stubs[len(found) % 2].ListAgents(request)
                found += [agent.id for agent in answer.agents]
                token = answer.next_page_token
            assert found == names
            with pytest.raises(grpc.aio.AioRpcError, match="page token") as raised:
                await stubs[0].ListAgents(pb.ListAgentsRequest(page_token="garbage"))
            assert raised.value.code() is StatusCode.INVALID_ARGUMENT
