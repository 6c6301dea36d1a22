"""Sessions as any program sees them: raw streams to several servers over a real etcd."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from election.api.statuses import reason_in
from election.bidi import BidiCall
from election.collector import Collector
from election.config import AgentConfig, CollectorConfig
from election.dev.etcd import EtcdCluster
from election.etcd.renewer import Renewer
from election.keys import SessionKey
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.pb.election.v1 import error_reason_pb2 as reasons
from election.server.access.gate import AccessConfig
from election.server.access.tokens import new_token
from election.server.serving import GrpcServer
from election.store import Store, connect

pytestmark = pytest.mark.etcd

WAIT_S = 15.0
"""Nothing here takes so long."""
TTL_S = 5
POLICY = """
[[allow]]
role = "agent"
identities = ["token:agent-*"]
agent = "agent-*"
[[allow]]
role = "admin"
identities = ["token:boss"]
"""
T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T | None]], timeout_s: float = WAIT_S) -> T:
    async with asyncio.timeout(timeout_s):
        while (found := await look()) is None:
            await asyncio.sleep(0.02)
    return found


@dataclass
class Raw:
    """One stream, as another program would use it."""

    call: Any
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.messages: BidiCall[pb.SessionRequest, pb.SessionResponse] = BidiCall(self.call)

    async def say(self, **action: Any) -> int:
        sequence: int = next(self.numbers)
        await self.messages.write(pb.SessionRequest(sequence=sequence, **action))
        return sequence

    async def hear(self) -> pb.SessionResponse:
        async with asyncio.timeout(WAIT_S):
            message = await self.messages.read()
        assert isinstance(message, pb.SessionResponse), "the stream has ended"
        return message

    async def ask(self, **action: Any) -> pb.SessionResponse:
        sequence = await self.say(**action)
        answer = await self.hear()
        assert answer.sequence == sequence
        return answer

    async def renew(self) -> pb.SessionResponse:
        return await self.ask(renew=pb.SessionRequest.Renew())

    async def put(self, key: str, value: bytes) -> pb.SessionResponse:
        return await self.ask(put=pb.SessionRequest.Put(key=key, value=value))

    async def refused(self) -> tuple[StatusCode, str]:
        """The status with which the stream ends, and its reason."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self._drain()
        return raised.value.code(), reason_in(raised.value.trailing_metadata())

    async def _drain(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.messages.read() is not None:
                pass

    async def is_over(self) -> bool:
        """Whether the server has ended it, and without an error."""
        async with asyncio.timeout(WAIT_S):
            return await self.messages.read() is None


@dataclass
class Api:
    """One server of several, with a store of its own."""

    store: Store
    server: GrpcServer
    channel: grpc.aio.Channel

    @property
    def agents(self) -> services.AgentsAsyncStub:
        return services.AgentsStub(self.channel)

    def session(self) -> Raw:
        return Raw(self.agents.Session())

    async def open(self, secret: bytes, agent: str = "w", **more: Any) -> Raw:
        """A stream on which a session was asked for."""
        raw = self.session()
        await raw.say(open=pb.SessionRequest.Open(agent=agent, secret=secret, ttl=Duration(seconds=TTL_S), **more))
        return raw

    async def opened(self, secret: bytes, agent: str = "w", **more: Any) -> tuple[Raw, pb.SessionResponse.Opened]:
        raw = await self.open(secret, agent, **more)
        answer = await raw.hear()
        assert answer.HasField("opened")
        assert answer.sequence == 1
        return raw, answer.opened

    async def alive(self, agent: str = "w") -> tuple[int, int]:
        """The incarnation and the lease that etcd has of an agent; zeros when there are none."""
        found, _ = await self.store.client.get(self.store.keyspace.alive(agent))
        return (found.create_revision, found.lease) if found else (0, 0)

    async def stored(self, agent: str = "w") -> dict[str, bytes]:
        prefix = self.store.keyspace.states(agent)
        return {kv.key[len(prefix) :].decode(): kv.value for kv in (await self.store.client.list(prefix)).kvs}

    async def sessions(self) -> list[bytes]:
        """The keys of all sessions."""
        root = self.store.keyspace.agents
        listed = (await self.store.client.list(root)).kvs
        return [kv.key for kv in listed if isinstance(self.store.keyspace.parse(kv.key), SessionKey)]

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, cluster: EtcdCluster, namespace: str, access: AccessConfig | None = None
    ) -> AsyncGenerator[Self]:
        async with (
            connect(cluster.endpoints, namespace=namespace) as store,
            store.view() as view,
            GrpcServer(view, port=0, store=store, access=access) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            yield cls(store, server, channel)


@pytest.fixture
async def apis(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[list[Api]]:
    """Two servers of one namespace."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Api.serving(etcd_cluster, namespace)) for _ in range(2)]


def secret() -> bytes:
    return secrets.token_bytes(32)


# --- a life --------------------------------------------------------------------------------------------------------


async def test_an_agent_lives_stores_and_leaves(apis: list[Api]) -> None:
    """All that a session can do, and what etcd has of it; nothing of the secret is stored but its hash."""
    api, _ = apis
    mine = secret()
    raw, opened = await api.opened(mine, address="h:1", labels={"zone": "a"})
    assert (opened.incarnation, opened.lease) == await api.alive()
    assert (opened.ttl.seconds, opened.resumed, opened.draining) == (TTL_S, False, False)
    key, _ = await api.store.client.get(api.store.keyspace.session("w"))
    assert key is not None
    assert (key.lease, key.create_revision) == (opened.lease, opened.incarnation)
    assert mine not in key.value
    assert mine.hex().encode() not in key.value
    renewed = await raw.renew()
    assert renewed.renewed.ttl.seconds == TTL_S
    written = await raw.put("task", b"x")
    found, _ = await api.store.client.get(api.store.keyspace.state("w", "task"))
    assert found is not None
    assert (found.value, found.mod_revision) == (b"x", written.view.revision)
    await raw.put("other", b"y")
    assert (await raw.ask(delete=pb.SessionRequest.Delete(key="other"))).HasField("written")
    assert (await api.stored()).keys() == {"registration", "task"}
    assert (await raw.ask(leave=pb.SessionRequest.Leave())).HasField("left")
    assert await raw.is_over()
    assert await api.alive() == (0, 0)
    assert await api.sessions() == []
    assert (await api.stored()).keys() == {"registration", "task"}
    raw, again = await api.opened(secret())
    assert again.incarnation > opened.incarnation
    await raw.ask(leave=pb.SessionRequest.Leave(drop_state=True))
    assert await api.stored() == {}


async def test_another_server_goes_on_with_the_same_life(apis: list[Api]) -> None:
    """With the incarnation and the lease, which is renewed; the stream that had it can write nothing any more."""
    first, second = apis
    mine = secret()
    old, opened = await first.opened(mine)
    await asyncio.sleep(1.5)
    new, resumed = await second.opened(mine)
    assert resumed.resumed
    assert (resumed.incarnation, resumed.lease) == (opened.incarnation, opened.lease)
    left = await second.store.client.lease_time_to_live(opened.lease)
    assert left.TTL >= TTL_S - 1
    assert (await new.put("task", b"new")).HasField("written")
    await old.say(put=pb.SessionRequest.Put(key="task", value=b"old"))
    assert await old.refused() == (StatusCode.ABORTED, "SESSION_MOVED")
    assert (await first.stored())["task"] == b"new"


async def test_a_second_stream_on_a_server_ends_the_first(apis: list[Api]) -> None:
    """At once, whatever the first one says or does not say."""
    mine = secret()
    old, opened = await apis[0].opened(mine)
    new, resumed = await apis[0].opened(mine, incarnation=opened.incarnation)
    assert resumed.incarnation == opened.incarnation
    assert await old.refused() == (StatusCode.ABORTED, "SESSION_MOVED")
    assert (await new.renew()).HasField("renewed")


async def test_the_end_of_a_stream_changes_nothing(apis: list[Api]) -> None:
    """Neither a half-close nor a break; what was asked for before a half-close is answered."""
    mine = secret()
    raw, opened = await apis[0].opened(mine)
    sequence = await raw.say(put=pb.SessionRequest.Put(key="task", value=b"x"))
    await raw.call.done_writing()
    assert (await raw.hear()).sequence == sequence
    assert await raw.is_over()
    raw, resumed = await apis[0].opened(mine)
    raw.call.cancel()
    raw, again = await apis[1].opened(mine, incarnation=opened.incarnation)
    assert opened.incarnation == resumed.incarnation == again.incarnation
    assert await apis[0].stored() != {}


async def test_a_renewal_that_is_cancelled_ends_no_stream_that_others_share(
    single_etcd: EtcdCluster, namespace: str
) -> None:
    """Wherever it is at that moment: gRPC would end a stream one of whose writes is cancelled."""
    async with connect(single_etcd.endpoints, namespace=namespace) as store, Renewer(store.client) as renewer:
        opened, opening = 0, store.client.open

        async def counted(*args: Any, **more: Any) -> Any:
            nonlocal opened
            opened += 1
            return await opening(*args, **more)

        store.client.open = counted  # type: ignore[method-assign]
        stays, *leases = [(await store.client.lease_grant(30)).ID for _ in range(60)]
        for number, lease in enumerate(leases):
            await renewer.renew(stays)
            given_up = asyncio.create_task(renewer.renew(lease))
            for _ in range(number % 8):
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait({given_up})
        await renewer.renew(stays)
        assert opened == 1


async def test_an_open_whose_answer_is_lost_can_be_sent_again(apis: list[Api]) -> None:
    """However far the first one has come, here or elsewhere: there is one life, and it stays."""
    for i in range(20):
        agent, mine = f"w{i}", secret()
        lost = await apis[0].open(mine, agent)
        await asyncio.sleep(i * 0.0007)
        lost.call.cancel()
        raw, opened = await apis[i % 2].opened(mine, agent)
        await asyncio.sleep(0.1)  # whatever the first one still does
        assert (opened.incarnation, opened.lease) == await apis[0].alive(agent)
        assert (await raw.put("task", b"x")).HasField("written")
        raw.call.cancel()


async def test_two_opens_at_once_make_one_life(apis: list[Api]) -> None:
    """Both with the secret; one of the streams has the session then."""
    mine = secret()
    streams = await asyncio.gather(*(api.open(mine) for api in apis))
    answers = await asyncio.gather(*(stream.hear() for stream in streams))
    assert len({(each.opened.incarnation, each.opened.lease) for each in answers}) == 1
    assert sorted(each.opened.resumed for each in answers) == [False, True]


# --- what is refused -----------------------------------------------------------------------------------------------


async def test_another_secret_opens_nothing(apis: list[Api]) -> None:
    """Neither with the incarnation nor without; the life goes on."""
    raw, opened = await apis[0].opened(secret())
    for incarnation in (0, opened.incarnation):
        other = await apis[1].open(secret(), incarnation=incarnation)
        assert await other.refused() == (StatusCode.ALREADY_EXISTS, "AGENT_EXISTS")
    assert (await raw.renew()).HasField("renewed")


async def test_an_agent_that_is_alive_over_etcd_has_no_secret(apis: list[Api]) -> None:
    """A session's key that an earlier life has left opens nothing."""
    mine = secret()
    raw, opened = await apis[0].opened(mine)
    store = apis[0].store
    await store.client.delete(store.keyspace.alive("w"))  # as whoever takes over does, before it ends the lease
    async with store.agent("w"):
        for incarnation in (0, opened.incarnation):
            code, reason = await (await apis[1].open(mine, incarnation=incarnation)).refused()
            assert reason == ("AGENT_LOST" if incarnation else "AGENT_EXISTS"), code
        await raw.say(put=pb.SessionRequest.Put(key="task", value=b"x"))
        assert await raw.refused() == (StatusCode.FAILED_PRECONDITION, "AGENT_LOST")


async def test_a_takeover_ends_the_life_of_the_other(apis: list[Api]) -> None:
    """Whose stream learns it at its next message, on another server too."""
    old, opened = await apis[0].opened(secret())
    raw, taken = await apis[1].opened(secret(), takeover=True)
    assert not taken.resumed
    assert taken.incarnation > opened.incarnation
    await old.say(renew=pb.SessionRequest.Renew())
    assert await old.refused() == (StatusCode.FAILED_PRECONDITION, "AGENT_LOST")
    assert (await raw.renew()).HasField("renewed")
    async with apis[0].store.agent("w", takeover=True):
        await raw.say(renew=pb.SessionRequest.Renew())
        assert await raw.refused() == (StatusCode.FAILED_PRECONDITION, "AGENT_LOST")


@pytest.mark.parametrize(
    "opening",
    [
        {"agent": "a/b"},
        {"agent": ""},
        {"secret": b"x" * 15},
        {"secret": b"x" * 65},
        {"ttl": Duration(seconds=4)},
        {"ttl": Duration(seconds=3601)},
        {"ttl": Duration(seconds=5, nanos=1)},
        {"incarnation": -1},
        {"labels": {"a b": "c"}},
        {"address": "x" * 5000},
    ],
    ids=str,
)
async def test_what_cannot_be_opened_is_refused(apis: list[Api], opening: dict[str, Any]) -> None:
    """Before anything is written."""
    raw = apis[0].session()
    await raw.say(open=pb.SessionRequest.Open(**{"agent": "w", "secret": secret(), **opening}))
    code, reason = await raw.refused()
    assert (code, reason) == (StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    assert await apis[0].alive() == (0, 0)


async def test_messages_out_of_order_end_the_stream(apis: list[Api]) -> None:
    """And not the session."""
    mine = secret()
    raw = apis[0].session()
    await raw.say(renew=pb.SessionRequest.Renew())
    assert await raw.refused() == (StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    for message in (
        pb.SessionRequest(sequence=2, open=pb.SessionRequest.Open(agent="w", secret=mine)),
        pb.SessionRequest(sequence=2),
        pb.SessionRequest(sequence=1, renew=pb.SessionRequest.Renew()),
    ):
        raw, _ = await apis[0].opened(mine)
        await raw.messages.write(message)
        assert await raw.refused() == (StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")
    assert (await apis[0].opened(mine))[1].resumed


# --- what ends, and what does not ----------------------------------------------------------------------------------


async def test_the_server_renews_nothing_by_itself(apis: list[Api]) -> None:
    """An agent that says nothing dies at its TTL, although its stream is open; it learns it when it says something."""
    raw, opened = await apis[0].opened(secret())
    await asyncio.sleep(TTL_S - 1)
    assert await apis[0].alive() == (opened.incarnation, opened.lease)

    async def gone() -> bool | None:
        return True if await apis[0].alive() == (0, 0) else None

    await eventually(gone, 4.0)
    assert await apis[0].sessions() == []
    await raw.say(renew=pb.SessionRequest.Renew())
    assert await raw.refused() == (StatusCode.FAILED_PRECONDITION, "AGENT_LOST")
    lost = await apis[1].open(secret(), incarnation=opened.incarnation)
    assert await lost.refused() == (StatusCode.FAILED_PRECONDITION, "AGENT_LOST")
    _, again = await apis[1].opened(secret())
    assert again.incarnation > opened.incarnation


async def test_a_write_that_fails_for_itself_does_not_end_the_session(apis: list[Api]) -> None:
    """It is answered with why, and what comes after it is done."""
    raw, _ = await apis[0].opened(secret())
    for key, value, reason in (
        ("big", b"x" * (64 * 1024 + 1), reasons.ERROR_REASON_TOO_LARGE),
        ("registration", b"x", reasons.ERROR_REASON_BAD_REQUEST),
        ("a/b", b"x", reasons.ERROR_REASON_BAD_REQUEST),
    ):
        answer = await raw.put(key, value)
        assert (answer.failure.reason, answer.failure.indefinite) == (reason, False)
        assert answer.failure.message
    assert (await raw.put("largest", b"x" * 64 * 1024)).HasField("written")
    assert (await raw.renew()).HasField("renewed")


async def test_writes_are_done_in_the_order_of_requests(apis: list[Api]) -> None:
    """Also when they are sent without waiting for answers; the server reads only a few ahead."""
    raw, _ = await apis[0].opened(secret())
    sent = [await raw.say(put=pb.SessionRequest.Put(key="n", value=b"%d" % i)) for i in range(100)]
    answers = [await raw.hear() for _ in sent]
    assert [each.sequence for each in answers] == sent
    revisions = [each.view.revision for each in answers]
    assert revisions == sorted(set(revisions))
    assert (await apis[0].stored())["n"] == b"99"


async def test_draining_is_told_with_every_renewal(apis: list[Api]) -> None:
    """And when the session is opened."""
    mine = secret()
    raw, _ = await apis[0].opened(mine)
    await apis[1].agents.DrainAgent(pb.DrainAgentRequest(id="w"))

    async def drains() -> bool | None:
        return (await raw.renew()).renewed.draining or None

    assert await eventually(drains)
    assert (await apis[1].opened(mine))[1].draining


async def test_a_reaped_session_leaves_no_key(apis: list[Api]) -> None:
    """The collector collects what the agent stored; the hash of the secret went with the lease."""
    raw, opened = await apis[0].opened(secret())
    await raw.put("task", b"x")
    raw.call.cancel()
    store = apis[1].store
    await store.client.lease_revoke(opened.lease)
    config = CollectorConfig(grace_s=0.5, reconcile_s=2, breaker=None)
    collector: Collector = store.collector(id="k", config=config)
    collecting = asyncio.create_task(collector.run())
    try:

        async def reaped() -> list[Any] | None:
            return list((await store.client.list(store.keyspace.tombstones("w"))).kvs) or None

        await eventually(reaped)
    finally:
        collector.leave()
        await collecting
    assert await apis[0].stored() == {}
    assert await apis[0].sessions() == []


async def test_an_agent_can_only_be_itself(etcd_cluster: EtcdCluster, namespace: str, tmp_path: Path) -> None:
    """As the policy says it; what an operator does is done in the operator's name."""
    tokens = {name: new_token(name) for name in ("agent-1", "boss")}
    (tmp_path / "tokens").write_text("".join(f"{line}\n" for _, line in tokens.values()))
    (tmp_path / "policy.toml").write_text(POLICY)
    access = AccessConfig(policy=tmp_path / "policy.toml", token_file=tmp_path / "tokens")
    opening = pb.SessionRequest.Open(secret=secret())
    async with Api.serving(etcd_cluster, namespace, access) as api:

        def showing(name: str) -> tuple[tuple[str, str], ...]:
            return (("authorization", f"Bearer {tokens[name][0]}"),)

        for agent, reason in (("agent-2", "NOT_YOUR_AGENT"), ("agent-1", "")):
            opening.agent = agent
            raw = Raw(api.agents.Session(metadata=showing("agent-1")))
            await raw.say(open=opening)
            if reason:
                assert await raw.refused() == (StatusCode.PERMISSION_DENIED, reason)
                assert await api.alive(agent) == (0, 0)
        assert (await raw.hear()).HasField("opened")
        request = pb.DrainAgentRequest(id="agent-1")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await api.agents.DrainAgent(request, metadata=showing("agent-1"))
        assert reason_in(raised.value.trailing_metadata()) == "ROLE_MISSING"
        assert (await api.agents.DrainAgent(request, metadata=showing("boss"))).by == "token:boss"


async def test_sessions_need_no_more_than_an_agents_settings(apis: list[Api]) -> None:
    """The TTL that is not named is that of an agent over etcd."""
    raw = apis[0].session()
    await raw.say(open=pb.SessionRequest.Open(agent="agents/w", secret=secret()))
    assert (await raw.hear()).opened.ttl.seconds == AgentConfig().ttl_s
