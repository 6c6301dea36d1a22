"""The gRPC API as its callers see it: a real etcd, a real server, the raw stubs and the project's client."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]

from election.agent_records import Agent, AgentState, StateEntry, Tombstone
from election.breaker import Breaker
from election.client import Client, dial
from election.client.servers import ServerUnavailable
from election.collector import Collector
from election.config import AgentConfig, CollectorConfig, TlsConfig
from election.dev.etcd import EtcdCluster
from election.errors import ConfigError, ElectionError, EtcdUnavailable, ViewStale
from election.keys import TombstoneKey
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.published import TooSlow
from election.reader import (
    NOT_REAPED,
    AgentEvent,
    AgentEventKind,
    AgentFilter,
    Answer,
    LeaderEvent,
    LeaderEventKind,
    Source,
    TokenCheck,
)
from election.records import Candidate, CandidateRecord, Election, Leader
from election.server.serving import GrpcServer
from election.store import Store, connect
from election.term import Term
from election.token import Token
from election.views import View

T = TypeVar("T")

WAIT_S = 10.0
"""Nothing here takes long; a wait of this length means that it will never happen."""

Kind = pb.WatchLeaderResponse
AgentKind = pb.WatchAgentsResponse
Health = health_pb2.HealthCheckResponse
SERVICES = ("election.v1.Elections", "election.v1.Agents")


async def until(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """Asks again and again until the answer is the one that is waited for."""
    async with asyncio.timeout(WAIT_S):
        while True:
            value = await ask()
            if holds(value):
                return value
            await asyncio.sleep(0.02)


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def read(call: Any) -> Any:
    """The next message of a raw stream."""
    return await call.read()


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The status that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await soon(call)
    return raised.value


# --- a server over a real etcd -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Api:
    """A store, a server over its view, and both ways to ask the server."""

    store: Store
    view: View
    server: GrpcServer
    client: Client
    channel: grpc.aio.Channel

    @property
    def elections(self) -> services.ElectionsAsyncStub:
        return services.ElectionsStub(self.channel)

    @property
    def agents(self) -> services.AgentsAsyncStub:
        return services.AgentsStub(self.channel)

    async def lease(self) -> int:
        return (await self.store.client.lease_grant(60)).ID

    async def queue(self, election: str, value: bytes) -> int:
        """Puts a candidate's key by hand, and returns its lease."""
        lease = await self.lease()
        await self.store.client.put(self.store.keyspace.candidate(election, lease), value, lease=lease)
        return lease


@pytest.fixture
async def api(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Api]:
    async with (
        connect(etcd_cluster.endpoints, namespace=namespace) as store,
        store.view() as view,
        GrpcServer(view, port=0) as server,
        dial(server.address) as client,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Api(store, view, server, client, channel)


@asynccontextmanager
async def leading(store: Store, election: str, id: str) -> AsyncIterator[Term]:
    """A candidate that leads inside the block, and has resigned after it."""
    begun: asyncio.Future[Term] = asyncio.get_running_loop().create_future()

    async def work(term: Term) -> None:
        begun.set_result(term)
        await asyncio.Event().wait()

    candidate = store.candidate(election, id=id, address=f"{id}:1", labels={"zone": "a"}, priority=3)
    standing = asyncio.create_task(candidate.lead(work))
    try:
        yield await soon(begun)
    finally:
        standing.cancel()
        with suppress(asyncio.CancelledError):
            await standing


async def test_nobody_leads(api: Api) -> None:
    """An election without candidates is an answer with a view and without a leader, and not an error."""
    answer = await soon(api.elections.GetLeader(pb.GetLeaderRequest(election="scheduler")))
    assert not answer.HasField("leader")
    assert answer.view.cluster_id != 0
    assert answer.view.revision > 0
    assert (await api.client.leader("scheduler")).value is None


async def test_the_leaders_token_is_its_keys_create_revision(api: Api) -> None:
    """The token that the API tells is the one that etcd compares."""
    async with leading(api.store, "scheduler", "one") as term:
        answer = await until(lambda: api.client.leader("scheduler"), lambda answer: answer.value is not None)
        leader = answer.value
        assert leader is not None
        key, _ = await api.store.client.get(leader.key.encode())
        assert key is not None
        assert leader.token == term.token == Token(0, key.create_revision)
        assert (leader.id, leader.address, dict(leader.labels), leader.priority) == ("one", "one:1", {"zone": "a"}, 3)
        assert leader.proven
        assert leader.lease == key.lease
        raw = await soon(api.elections.GetLeader(pb.GetLeaderRequest(election="scheduler")))
        assert raw.leader.token == int(leader.token)
        assert raw.leader.elected_at.ToMilliseconds() > 0
        assert raw.view.revision >= leader.token.revision


async def test_a_watch_tells_every_change_of_leadership(api: Api) -> None:
    """VACATED at first, then ELECTED, UPDATED when the record changes within the term, and VACATED again."""
    call = api.elections.WatchLeader(pb.WatchLeaderRequest(election="scheduler"))
    first = await soon(read(call))
    assert (first.kind, first.HasField("leader")) == (Kind.KIND_VACATED, False)
    async with leading(api.store, "scheduler", "one") as term:
        elected = await soon(read(call))
        assert (elected.kind, elected.leader.token) == (Kind.KIND_ELECTED, int(term.token))
        found, _ = await api.store.client.get(term.key)
        assert found is not None
        record = CandidateRecord.decode(found.value)
        assert record is not None
        await api.store.client.put(term.key, replace(record, address="elsewhere:1").encode(), lease=found.lease)
        updated = await soon(read(call))
        assert (updated.kind, updated.leader.token) == (Kind.KIND_UPDATED, int(term.token))
        assert updated.leader.address == "elsewhere:1"
    vacated = await soon(read(call))
    assert (vacated.kind, vacated.HasField("leader")) == (Kind.KIND_VACATED, False)
    revisions = [message.view.revision for message in (first, elected, updated, vacated)]
    assert revisions == sorted(revisions)
    assert all(message.view.cluster_id == first.view.cluster_id for message in (elected, updated, vacated))
    call.cancel()


async def test_a_candidate_of_another_program_is_shown_as_it_is(api: Api) -> None:
    """Its value is its name, it leads when its key is the oldest, and nothing is said to be proven."""
    lease = await api.lease()
    name = api.store.keyspace.campaign_name("scheduler")
    won = await soon(api.store.client.campaign(name, lease, b"host-7 \xff"))
    answer = await until(lambda: api.client.leader("scheduler"), lambda answer: answer.value is not None)
    leader = answer.value
    assert leader is not None
    assert (leader.id, leader.token) == ("host-7 \\xff", Token(0, won.leader.rev))
    assert (leader.proven, leader.elected_at) == (False, None)
    listed = await soon(api.elections.ListCandidates(pb.ListCandidatesRequest(election="scheduler")))
    assert [(each.id, each.lease, each.foreign) for each in listed.candidates] == [("host-7 \\xff", lease, True)]


async def test_a_hostile_record_is_served_and_breaks_nothing(api: Api) -> None:
    """Half a surrogate pair, a number without end and the first day of the calendar come from JSON, not from us."""
    record = {"v": 1, "id": "\ud83d", "priority": 10**40, "elected_at": "0001-01-01T00:00:00+14:00", "labels": {"a": 1}}
    await api.queue("scheduler", json.dumps(record).encode())
    answer = await until(lambda: api.client.leader("scheduler"), lambda answer: answer.value is not None)
    assert answer.value is not None
    assert (answer.value.id, answer.value.priority) == ("\\ud83d", 2**31 - 1)


async def test_elections_are_listed_by_name(api: Api) -> None:
    """With the number of their candidates, and with their leader if there is one."""
    async with leading(api.store, "zebra", "one"):
        await api.queue("ant", CandidateRecord("waiting").encode())
        await api.queue("zebra", CandidateRecord("two").encode())
        answer = await until(
            api.client.elections, lambda answer: sum(election.candidates for election in answer.value) == 3
        )
        rows = [(each.name, each.candidates, each.leader and each.leader.id) for each in answer.value]
        assert rows == [("ant", 1, None), ("zebra", 2, "one")]
        raw = await soon(api.elections.ListElections(pb.ListElectionsRequest()))
        assert [each.HasField("leader") for each in raw.elections] == [False, True]


async def test_candidates_are_listed_in_the_order_of_their_queue(api: Api) -> None:
    """The oldest first: that is who leads next."""
    leases = [await api.queue("scheduler", CandidateRecord(name).encode()) for name in "cab"]
    answer = await until(lambda: api.client.candidates("scheduler"), lambda answer: len(answer.value) == 3)
    assert [(each.id, each.lease) for each in answer.value] == list(zip("cab", leases, strict=True))
    assert [each.created for each in answer.value] == sorted(each.created for each in answer.value)
    assert not any(each.foreign or each.elected_at for each in answer.value)


async def test_a_token_is_checked_against_etcd(api: Api) -> None:
    """The present one is current, one of an earlier term and nonsense are not."""
    async with leading(api.store, "scheduler", "one") as old:
        check = (await soon(api.client.check_token("scheduler", old.token))).value
        assert check.current
        assert check.leader is not None
    async with leading(api.store, "scheduler", "two") as term:
        answer = await soon(api.client.check_token("scheduler", term.token))
        assert answer.value.current
        assert answer.source.age_s == 0.0
        assert answer.source.revision >= term.token.revision
        for token in (old.token, Token(0, 0), Token(1, term.token.revision)):
            check = (await soon(api.client.check_token("scheduler", token))).value
            assert not check.current
            assert check.leader is not None
            assert check.leader.id == "two"
    raw = await soon(api.elections.CheckToken(pb.CheckTokenRequest(election="scheduler", token=int(term.token))))
    assert not raw.current
    assert not raw.HasField("leader")


async def test_bad_names_are_refused(api: Api) -> None:
    """INVALID_ARGUMENT with one line for whoever wrote the name, and ConfigError in the client."""
    for name in ("", "a/b", "-a", "x" * 129, "a\nb"):
        calls: list[Awaitable[Any]] = [
            api.elections.GetLeader(pb.GetLeaderRequest(election=name)),
            read(api.elections.WatchLeader(pb.WatchLeaderRequest(election=name))),
            api.elections.ListCandidates(pb.ListCandidatesRequest(election=name)),
            api.elections.CheckToken(pb.CheckTokenRequest(election=name, token=1)),
            api.agents.GetAgent(pb.GetAgentRequest(id=name)),
        ]
        for call in calls:
            error = await status_of(call)
            assert error.code() is StatusCode.INVALID_ARGUMENT
            assert "is not a valid name" in (error.details() or "")
            assert "\n" not in (error.details() or "")
    with pytest.raises(ConfigError, match="is not a valid name"):
        await soon(api.client.leader("a/b"))
    with pytest.raises(ConfigError, match="is not a valid name"):
        await soon(anext(api.client.watch_leader("a/b")))


async def test_what_cannot_be_asked_is_refused_before_it_is_sent(api: Api) -> None:
    """Text that is not Unicode has no place in a message; a number that is no token is refused by the server."""
    with pytest.raises(ConfigError, match="this cannot be asked"):
        await soon(api.client.leader("\ud83d"))
    error = await status_of(api.elections.CheckToken(pb.CheckTokenRequest(election="scheduler", token=-1)))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "not a fencing token" in (error.details() or "")


# --- agents --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(collector: Collector) -> AsyncIterator[None]:
    """A collector that works inside the block."""
    collecting = asyncio.create_task(collector.run())
    try:
        yield
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})


async def test_agents_are_told_with_what_they_store(api: Api) -> None:
    """ListAgents has the names of what an agent stores, GetAgent the values too."""
    async with api.store.agent("a-1", address="a:1", labels={"zone": "b"}, config=AgentConfig(ttl_s=3)) as agent:
        await agent.put("assignments", b"\x00\xff")
        answer = await until(api.client.agents, lambda answer: [each.state_keys for each in answer.value] != [])
        answer = await until(api.client.agents, lambda answer: answer.value[0].state_keys == ("assignments",))
        (listed,) = answer.value
        assert (listed.id, listed.state, listed.incarnation) == ("a-1", AgentState.ALIVE, agent.incarnation)
        assert (listed.address, dict(listed.labels)) == ("a:1", {"zone": "b"})
        found = (await soon(api.client.agent("a-1"))).value
        assert found is not None
        assert found[0] == listed
        assert [(entry.key, entry.value) for entry in found[1]] == [("assignments", b"\x00\xff")]
        raw = await soon(api.agents.GetAgent(pb.GetAgentRequest(id="a-1")))
        assert raw.agent.lease == listed.lease != 0
        assert raw.state[0].mod_revision > 0


async def test_an_unknown_agent_is_not_found(api: Api) -> None:
    """NOT_FOUND says how fresh that knowledge is, so the client's None has a source like every answer."""
    error = await status_of(api.agents.GetAgent(pb.GetAgentRequest(id="nobody")))
    assert (error.code(), error.details()) == (StatusCode.NOT_FOUND, "agent 'nobody' is not known")
    answer = await soon(api.client.agent("nobody"))
    assert answer.value is None
    assert answer.source.cluster_id == api.view.source().cluster_id
    assert answer.source.revision > 0


async def test_a_watch_tells_an_agents_life_and_what_was_collected(api: Api) -> None:
    """PRESENT and SYNCED first, then JOINED, STALE, RECOVERED, and REAPED with the state that was collected."""
    config = AgentConfig(ttl_s=3)
    collector = api.store.collector(id="collector", config=CollectorConfig(grace_s=0.2))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(api.store.agent("old", config=config))
        await until(api.client.agents, lambda answer: len(answer.value) == 1)
        call = api.agents.WatchAgents(pb.WatchAgentsRequest())
        events = api.client.watch_agents()
        stack.push_async_callback(events.aclose)

        async def told() -> tuple[int, str]:
            """The next event: the same from the raw stream and from the client."""
            message, event = await soon(read(call)), await soon(anext(events))
            assert AgentKind.Kind.Name(message.kind) == f"KIND_{event.kind.name}"
            assert message.agent.id == (event.agent.id if event.agent else "")
            return message.kind, message.agent.id

        assert await told() == (AgentKind.KIND_PRESENT, "old")
        assert await told() == (AgentKind.KIND_SYNCED, "")
        async with api.store.agent("new", config=config) as agent:
            assert await told() == (AgentKind.KIND_JOINED, "new")
            await agent.put("assignments", b"shard-7")
        assert await told() == (AgentKind.KIND_STALE, "new")
        async with api.store.agent("new", config=config) as agent:
            assert await told() == (AgentKind.KIND_RECOVERED, "new")
            incarnation = agent.incarnation
        assert await told() == (AgentKind.KIND_STALE, "new")
        await stack.enter_async_context(running(collector))
        message, event = await soon(read(call)), await soon(anext(events))
        reaped = await soon(api.agents.GetAgent(pb.GetAgentRequest(id="new")))
        assert (reaped.agent.state, list(reaped.state)) == (pb.Agent.STATE_REAPED, [])
    assert (message.kind, event.kind) == (AgentKind.KIND_REAPED, AgentEventKind.REAPED)
    assert message.agent.state == pb.Agent.STATE_REAPED
    tombstone = message.tombstone
    assert (tombstone.agent, tombstone.incarnation, tombstone.collector) == ("new", incarnation, "collector")
    assert [(entry.key, entry.value) for entry in tombstone.collected] == [("assignments", b"shard-7")]
    assert event.tombstone is not None
    assert event.tombstone.collected[0].value == b"shard-7"
    assert int(event.tombstone.token) == tombstone.token > 0
    call.cancel()


# --- the server ----------------------------------------------------------------------------------------------


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await soon(stub.Check(health_pb2.HealthCheckRequest(service=service)))
    return int(answer.status)


async def healths(channel: grpc.aio.Channel) -> list[int]:
    """The health of the server, and that of its services."""
    return [await health_of(channel, service) for service in ("", *SERVICES)]


async def test_a_server_is_healthy(api: Api) -> None:
    """The server and both services are SERVING, and a service that nobody knows is NOT_FOUND."""
    assert await healths(api.channel) == [Health.SERVING] * 3
    error = await status_of(health_of(api.channel, "election.v2.Elections"))
    assert error.code() is StatusCode.NOT_FOUND


async def test_a_server_without_etcd_says_that_it_does_not_know(tmp_path: Path, namespace: str) -> None:
    """A stale view turns the services NOT_SERVING, ends watches and refuses answers, until etcd is heard again."""
    async with (
        await EtcdCluster.start(data_dir=tmp_path, members=1) as cluster,
        connect(cluster.endpoints, namespace=namespace) as store,
        View(store.client, store.keyspace, max_age_s=2) as view,
        GrpcServer(view, port=0) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        Client(server.address, call_timeout_s=0.5) as client,
    ):
        elections, agents = services.ElectionsStub(channel), services.AgentsStub(channel)
        leader_watch = elections.WatchLeader(pb.WatchLeaderRequest(election="scheduler"))
        agents_watch = agents.WatchAgents(pb.WatchAgentsRequest())
        await soon(read(leader_watch))
        await soon(read(agents_watch))
        (member,) = cluster.members
        member.pause()
        try:
            for watch in (leader_watch, agents_watch):
                error = await status_of(read(watch))
                assert error.code() is StatusCode.UNAVAILABLE
                assert "nothing is known of etcd for" in (error.details() or "")
            assert await healths(channel) == [Health.SERVING, Health.NOT_SERVING, Health.NOT_SERVING]
            refused = await status_of(elections.GetLeader(pb.GetLeaderRequest(election="scheduler")))
            assert refused.code() is StatusCode.UNAVAILABLE
            with pytest.raises(ServerUnavailable, match="nothing is known of etcd for"):
                await soon(client.leader("scheduler"))
        finally:
            member.resume()
        await until(lambda: healths(channel), lambda found: found == [Health.SERVING] * 3)
        await soon(elections.GetLeader(pb.GetLeaderRequest(election="scheduler")))


async def test_every_watcher_of_health_is_told_that_the_server_ends() -> None:
    """Also after another watcher has left; then the stream ends."""
    async with AsyncExitStack() as stack:
        server = GrpcServer(ScriptedReader(), port=0)
        running = await stack.enter_async_context(AsyncExitStack())
        await running.enter_async_context(server)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="election.v1.Agents")
        stays, leaves = stub.Watch(request), stub.Watch(request)
        for call in (stays, leaves):
            assert (await soon(read(call))).status == Health.SERVING
        leaves.cancel()
        await running.aclose()
        assert (await soon(read(stays))).status == Health.NOT_SERVING
        assert await soon(stays.read()) is grpc.aio.EOF


async def test_reflection_lists_the_services(api: Api) -> None:
    """So that grpcurl works without the proto files."""
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await soon(read(call))
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}
    call.cancel()


async def test_a_port_in_use_is_one_clear_error(api: Api) -> None:
    """Two servers never share a port, as they silently could with SO_REUSEPORT."""
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {api.server.port}: .*in use"):
        async with GrpcServer(api.view, port=api.server.port):
            pass
    assert await healths(api.channel) == [Health.SERVING] * 3


async def test_plain_text_stays_on_loopback_unless_said_otherwise(api: Api) -> None:
    """The error names both ways out, and `insecure` is one of them."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "a.example"):
        with pytest.raises(ConfigError, match="--server-cert and --server-key, or say --insecure"):
            GrpcServer(api.view, host=host, port=0)
    async with (
        GrpcServer(api.view, host="0.0.0.0", port=0, insecure=True) as server,
        dial(f"127.0.0.1:{server.port}") as client,
    ):
        assert (await soon(client.leader("scheduler"))).value is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"port": 65536}, "is not a port"),
        ({"cert": Path("a.pem")}, "a server certificate needs its key"),
        ({"cert": Path("nowhere/a.pem"), "key": Path("nowhere/b.pem")}, "cannot read"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    """Before anything listens."""
    with pytest.raises(ConfigError, match=complaint):
        GrpcServer(ScriptedReader(), **arguments)


async def test_an_address_of_another_machine_is_one_clear_error() -> None:
    """The address is well formed and not ours."""
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1 port"):
        async with GrpcServer(ScriptedReader(), host="192.0.2.1", port=0, insecure=True):
            pass


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for loopback, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True, capture_output=True)
    return cert, key


async def test_a_server_with_a_certificate_serves_tls(api: Api, tmp_path: Path) -> None:
    """On any address; a client that trusts the certificate gets through, and one in plain text does not."""
    cert, key = certificate(tmp_path, "server")
    async with (
        GrpcServer(api.view, host="0.0.0.0", port=0, cert=cert, key=key) as server,
        dial(f"127.0.0.1:{server.port}", tls=TlsConfig(cacert=cert)) as client,
        Client(f"127.0.0.1:{server.port}", call_timeout_s=0.5) as plain,
        Client(f"https://127.0.0.1:{server.port}", call_timeout_s=0.5) as distrustful,
    ):
        assert (await soon(client.leader("scheduler"))).value is None
        for other in (plain, distrustful):
            with pytest.raises(ServerUnavailable):
                await soon(other.leader("scheduler"))


async def test_a_certificate_that_cannot_work_is_refused(tmp_path: Path) -> None:
    """The key of another certificate, and a file that is no certificate: gRPC itself would only fail each caller."""
    cert, _ = certificate(tmp_path, "one")
    _, other_key = certificate(tmp_path, "two")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for files in ((cert, other_key), (garbage, garbage)):
        with pytest.raises(ConfigError, match="cannot be used"):
            GrpcServer(ScriptedReader(), cert=files[0], key=files[1])
    with pytest.raises(ConfigError, match="cannot read"):
        async with dial("127.0.0.1:1", tls=TlsConfig(cacert=tmp_path / "nowhere.pem")):
            pass


async def test_two_hundred_watchers_see_one_change(api: Api) -> None:
    """All of them, and the same one."""
    ready = asyncio.Semaphore(0)

    async def watch() -> list[tuple[LeaderEventKind, Token | None]]:
        seen: list[tuple[LeaderEventKind, Token | None]] = []
        async for event in api.client.watch_leader("scheduler"):
            seen.append((event.kind, event.leader.token if event.leader else None))
            ready.release()
            if len(seen) == 2:
                break
        return seen

    async with asyncio.timeout(3 * WAIT_S), asyncio.TaskGroup() as group:
        watchers = [group.create_task(watch()) for _ in range(200)]
        for _ in watchers:
            await ready.acquire()
        async with leading(api.store, "scheduler", "one") as term:
            seen = await asyncio.gather(*watchers)
    assert seen == [[(LeaderEventKind.VACATED, None), (LeaderEventKind.ELECTED, term.token)]] * 200


async def test_a_server_that_ends_sends_its_watchers_elsewhere(api: Api) -> None:
    """A raw stream ends with UNAVAILABLE; the client goes on at the second server and repeats nothing."""
    async with AsyncExitStack() as stack:
        running: dict[str, AsyncExitStack] = {}
        for _ in range(2):
            owner = await stack.enter_async_context(AsyncExitStack())
            server = await owner.enter_async_context(GrpcServer(api.view, port=0))
            running[server.address] = owner
        client = await stack.enter_async_context(dial(running))
        async with leading(api.store, "scheduler", "one") as first:
            await until(lambda: client.leader("scheduler"), lambda answer: answer.value is not None)
            events = client.watch_leader("scheduler")
            stack.push_async_callback(events.aclose)
            assert (await soon(anext(events))).leader == (await client.leader("scheduler")).value
            following = asyncio.create_task(anext(events))
            ending = client.address
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(ending))
            call = services.ElectionsStub(channel).WatchLeader(pb.WatchLeaderRequest(election="scheduler"))
            await soon(read(call))
            await soon(running[ending].aclose())
            error = await status_of(read(call))
            assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, "the server is shutting down")
        vacated = await soon(following)
        assert vacated.kind is LeaderEventKind.VACATED
        async with leading(api.store, "scheduler", "two") as second:
            elected = await soon(anext(events))
            assert elected.leader is not None
            assert elected.leader.token == second.token > first.token
        assert client.address != ending


# --- what happens rarely: a server over a reader that does what the test says --------------------------------


Script = Sequence[LeaderEvent | AgentEvent | Exception]

LEADER = Leader("scheduler", "one", "one:1", Token(0, 7), "/k", 5, None, {}, 0, proven=True)
ALIVE = AgentState.ALIVE
SUSPECT = AgentState.SUSPECT


@dataclass
class ScriptedReader:
    """Answers as told. Each watch plays the next script; after its end it says nothing, or raises."""

    scripts: Iterator[Script] = field(default_factory=lambda: iter([]))
    error: Exception | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    watches: int = 0
    afters: list[int | None] = field(default_factory=list)
    namespace: str = "scripted"

    def source(self) -> Source:
        return Source(1, 2, 0.0)

    def known_agent(self, id: str) -> tuple[Agent | None, int]:
        return None, 2

    async def leader(self, election: str, *, linearizable: bool = False) -> Answer[Leader | None]:
        self.asked.set()
        if self.error is not None:
            raise self.error
        await self.go_on.wait()
        return Answer(LEADER, self.source())

    async def elections(self, *, linearizable: bool = False) -> Answer[tuple[Election, ...]]:
        return Answer((), self.source())

    async def candidates(self, election: str, *, linearizable: bool = False) -> Answer[tuple[Candidate, ...]]:
        return Answer((), self.source())

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        return Answer(TokenCheck(current=False, leader=None), self.source())

    async def agents(
        self, chosen: AgentFilter = NOT_REAPED, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, ...]]:
        return Answer((), self.source())

    async def agent(
        self, id: str, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        return Answer(None, self.source())

    async def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        self.afters.append(after)
        async for event in self._play():
            assert isinstance(event, LeaderEvent)
            yield event

    async def tombstones(self, agent: str | None = None) -> Answer[tuple[Tombstone, ...]]:
        return Answer((), self.source())

    async def tombstone_pages(
        self, agent: str | None = None, *, after: tuple[int, TombstoneKey] | None = None
    ) -> AsyncGenerator[Answer[tuple[tuple[int, Tombstone], ...]]]:
        yield Answer((), self.source())

    async def breaker(self) -> Answer[Breaker]:
        return Answer(Breaker(), self.source())

    async def watch_agents(
        self, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[AgentEvent]:
        self.afters.append(after)
        async for event in self._play():
            assert isinstance(event, AgentEvent)
            yield event

    async def _play(self) -> AsyncGenerator[LeaderEvent | AgentEvent]:
        self.watches += 1
        try:
            for step in next(self.scripts):
                if isinstance(step, Exception):
                    raise step
                yield step
            await asyncio.Event().wait()
        finally:
            self.watches -= 1


@asynccontextmanager
async def served(reader: ScriptedReader) -> AsyncIterator[Client]:
    """A client of a server over the reader."""
    async with GrpcServer(reader, port=0) as server, Client(server.address, call_timeout_s=1.0) as client:
        yield client


def elected(token: int, revision: int, address: str = "") -> LeaderEvent:
    leader = replace(LEADER, token=Token(0, token), address=address)
    return LeaderEvent(LeaderEventKind.ELECTED, leader, Source(1, revision, 0.0))


def vacated(revision: int, cluster: int = 1) -> LeaderEvent:
    return LeaderEvent(LeaderEventKind.VACATED, None, Source(cluster, revision, 0.0))


BREAK = EtcdUnavailable("broken off")


async def test_a_new_stream_repeats_nothing_and_tells_what_changed_meanwhile() -> None:
    """Neither a term that was told nor an older state from a server that lags behind."""
    scripts: list[Script] = [
        [vacated(10), elected(11, 11), BREAK],
        [vacated(10), elected(11, 11), BREAK],  # behind at first
        [replace(elected(11, 12, address="new"), kind=LeaderEventKind.ELECTED), BREAK],
        [elected(15, 15), BREAK],
        [vacated(3, cluster=2)],  # another etcd: revisions do not compare
    ]
    async with served(ScriptedReader(iter(scripts))) as client:
        events = client.watch_leader("scheduler")
        seen = [await soon(anext(events)) for _ in range(5)]
        await events.aclose()
    assert [(event.kind, event.leader.token.revision if event.leader else 0) for event in seen] == [
        (LeaderEventKind.VACATED, 0),
        (LeaderEventKind.ELECTED, 11),
        (LeaderEventKind.UPDATED, 11),
        (LeaderEventKind.ELECTED, 15),
        (LeaderEventKind.VACATED, 0),
    ]


def agent_event(kind: str, revision: int, id: str = "", state: AgentState = ALIVE, incarnation: int = 1) -> AgentEvent:
    agent = Agent(id, state, incarnation) if id else None
    tombstone = Tombstone(id, incarnation, None, "c", Token(0, 5)) if kind == "reaped" else None
    return AgentEvent(AgentEventKind(kind), agent, Source(1, revision, 0.0), tombstone)


def agent_list(revision: int, **agents: tuple[AgentState, int]) -> list[AgentEvent]:
    """What a watch of agents begins with."""
    rows = [agent_event("present", revision, name, state, number) for name, (state, number) in agents.items()]
    return [*rows, agent_event("synced", revision)]


async def told_of_agents(*scripts: Sequence[AgentEvent | Exception]) -> list[tuple[str, str]]:
    """Kind and agent of what the client tells, up to the agent named `end`."""
    told: list[tuple[str, str]] = []
    async with served(ScriptedReader(iter(scripts))) as client, asyncio.timeout(WAIT_S):
        events = client.watch_agents()
        async for event in events:
            if event.agent and event.agent.id == "end":
                break
            told.append((event.kind.value, event.agent.id if event.agent else ""))
        await events.aclose()
    return told


END = agent_event("joined", 99, "end")


async def test_a_new_stream_of_agents_tells_the_difference_to_what_was_told() -> None:
    """Everything that can become of an agent while nobody looked."""
    before = agent_list(
        10, back=(SUSPECT, 1), gone=(ALIVE, 1), new=(ALIVE, 1), same=(ALIVE, 1), stale=(ALIVE, 1), still=(SUSPECT, 1)
    )
    after = agent_list(
        20,
        back=(ALIVE, 1),
        joined=(ALIVE, 5),
        late=(SUSPECT, 5),
        new=(ALIVE, 9),
        same=(ALIVE, 1),
        stale=(SUSPECT, 1),
        still=(SUSPECT, 1),
    )
    told = await told_of_agents([*before, BREAK], [*after, END])
    assert told[:7] == [("present", event.agent.id if event.agent else "") for event in before[:-1]] + [("synced", "")]
    assert told[7:] == [
        ("recovered", "back"),
        ("reaped", "gone"),
        ("joined", "joined"),
        ("stale", "late"),
        ("joined", "new"),
        ("stale", "stale"),
    ]


async def test_agents_are_not_told_twice_by_a_server_that_lags_behind() -> None:
    """It tells again what was told already, and goes on from there; the rest of a revision is not lost."""
    listed = agent_list(10, a=(ALIVE, 1), b=(ALIVE, 1), c=(ALIVE, 1))
    stale = [agent_event("stale", 11, name, SUSPECT) for name in "abc"]
    reaped = [agent_event("reaped", 12, name, AgentState.REAPED) for name in "abc"]
    told = await told_of_agents(
        [*listed, *stale, reaped[0], BREAK],
        [*listed, *stale, *reaped[:2], BREAK],
        [*listed, *stale, *reaped, END],
    )
    assert told[4:] == [*(("stale", name) for name in "abc"), *(("reaped", name) for name in "abc")]


async def test_a_first_list_that_breaks_off_is_told_once() -> None:
    """What was present in the half of it may be gone."""
    half = agent_list(10, a=(ALIVE, 1), b=(ALIVE, 1))[:1]
    told = await told_of_agents([*half, BREAK], [*agent_list(12, b=(ALIVE, 1)), END])
    assert told == [("present", "b"), ("synced", "")]


async def test_a_watch_that_cannot_go_on_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises ServerUnavailable rather than be silent for longer than a view may be old."""
    monkeypatch.setattr("election.client.servers.MAX_AGE_S", 0.3)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        server = await running.enter_async_context(GrpcServer(ScriptedReader(iter([[vacated(1)]])), port=0))
        client = await stack.enter_async_context(dial(server.address))
        events = client.watch_leader("scheduler")
        await soon(anext(events))
        await running.aclose()
        with pytest.raises(ServerUnavailable, match=f"the server at {server.address} cannot answer: "):
            await soon(anext(events))


async def test_an_error_that_nobody_expected_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """INTERNAL with a text that gives nothing away, for single answers and for streams."""
    reader = ScriptedReader(iter([[RuntimeError("a secret")]]), error=RuntimeError("a secret"))
    async with GrpcServer(reader, port=0) as server, grpc.aio.insecure_channel(server.address) as channel:
        stub = services.ElectionsStub(channel)
        questions: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: stub.GetLeader(pb.GetLeaderRequest(election="e")),
            lambda: read(stub.WatchLeader(pb.WatchLeaderRequest(election="e"))),
        )
        for ask in questions:
            error = await status_of(ask())
            assert error.code() is StatusCode.INTERNAL
            assert error.details() == "the server failed to answer; its log says why"
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in logged] == [
        "/election.v1.Elections/GetLeader failed",
        "/election.v1.Elections/WatchLeader failed",
    ]
    assert all(record.exc_info for record in logged)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TooSlow("lagging"), TooSlow), (ViewStale("old"), ServerUnavailable), (ElectionError("odd"), ServerUnavailable)],
)
async def test_errors_of_the_reader_reach_the_client(error: Exception, kind: type[ElectionError]) -> None:
    """As themselves where another server would say the same, and otherwise when no server is left."""
    async with served(ScriptedReader(iter([[error]] * 1000), error=error)) as client:
        with pytest.raises(kind, match=str(error)):
            await soon(client.leader("scheduler"))
        with pytest.raises(kind, match=str(error)):
            await soon(anext(client.watch_leader("scheduler")))


async def test_a_call_in_flight_is_answered_before_the_server_ends() -> None:
    """Only streams are cut short."""
    reader = ScriptedReader()
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        server = await running.enter_async_context(GrpcServer(reader, port=0))
        client = await stack.enter_async_context(dial(server.address))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await soon(read(health))).status == Health.SERVING
        asking = asyncio.create_task(client.leader("scheduler"))
        await soon(reader.asked.wait())
        ending = asyncio.create_task(running.aclose())
        assert (await soon(read(health))).status == Health.NOT_SERVING
        reader.go_on.set()
        assert (await soon(asking)).value == LEADER
        await soon(ending)


async def test_a_watch_that_its_caller_leaves_is_left_on_the_server() -> None:
    """Nothing goes on being produced for nobody."""
    reader = ScriptedReader(iter([[vacated(1)]] * 3))
    async with served(reader) as client:
        watches = [client.watch_leader("scheduler") for _ in range(3)]
        for watch in watches:
            await soon(anext(watch))
        assert reader.watches == 3
        for watch in watches:
            await watch.aclose()

        async def open_watches() -> int:
            return reader.watches

        await until(open_watches, lambda count: count == 0)


class FirstChosen(random.Random):
    """Begins at the first of the servers."""

    def randrange(self, *_: Any) -> int:
        return 0


async def test_a_server_that_hangs_is_passed_over() -> None:
    """For questions and for watches: each attempt has a bound, and the next server is asked."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    reader = ScriptedReader(iter([[elected(7, 7)]]))
    reader.go_on.set()
    try:
        async with GrpcServer(reader, port=0) as server:
            questions: tuple[Callable[[Client], Awaitable[Any]], ...] = (
                lambda client: client.leader("e"),
                lambda client: anext(client.watch_leader("e")),
            )
            for ask in questions:
                addresses = f"127.0.0.1:{port},{server.address}"
                async with Client(addresses, attempt_timeout_s=0.3, rng=FirstChosen()) as client:
                    assert client.address == f"127.0.0.1:{port}"
                    await soon(ask(client))
                    assert client.address == server.address
    finally:
        silent.close()


async def test_a_server_that_is_not_there_is_one_clear_error() -> None:
    """With the address, and within the call's bound."""
    async with Client("127.0.0.1:1", call_timeout_s=0.3) as client:
        with pytest.raises(ServerUnavailable, match=r"the server at 127\.0\.0\.1:1 cannot answer: "):
            await soon(client.leader("scheduler"))
        with pytest.raises(ServerUnavailable, match=r"the server at 127\.0\.0\.1:1 cannot answer: "):
            await soon(anext(client.watch_agents()))


@pytest.mark.parametrize("servers", ["", " , ", [], "localhost", "a:b", "ftp://a:1"])
def test_addresses_that_cannot_be_used_are_refused(servers: str | list[str]) -> None:
    """When the client is made, and nothing was sent."""
    with pytest.raises(ConfigError):
        dial(servers)


async def test_a_client_is_used_inside_its_block() -> None:
    """Outside of it there is nothing to ask with."""
    with pytest.raises(RuntimeError, match="inside `async with`"):
        await dial("127.0.0.1:1").leader("scheduler")
