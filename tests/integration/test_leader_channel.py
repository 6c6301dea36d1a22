"""Calls to whoever leads: real candidates on a real etcd, services that lead and hand over, and a channel to them."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from election import CandidateConfig, ElectionError, Term, Token, blocking
from election.candidate import Candidate
from election.client.leader_calls import SETTLE_S
from election.client.leader_channel import LeaderChannel, leader_channel
from election.client.leader_errors import LeaderChanged, NotSent
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.fencing.claim import PassedOn
from election.fencing.rpc import claim_of
from election.fencing.rpc_client import aio_client_fence
from election.fencing.rpc_server_aio import AioServerFence
from election.server.serving import GrpcServer
from election.store import Store, connect
from tests.integration.ran import until
from tests.integration.test_grpc_api import certificate

T = TypeVar("T")

WAIT_S = 20.0
ELECTION = "scheduler"
SERVICE = "demo.Work"
QUICK = CandidateConfig(ttl_s=3, retry_max_s=0.5)

pytestmark = pytest.mark.etcd


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def raised_by(awaitable: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The status that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await soon(awaitable)
    return raised.value


class Stub:
    """As protoc would make it."""

    def __init__(self, channel: grpc.aio.Channel | grpc.Channel) -> None:
        def method(kind: str, name: str) -> Any:
            identity = bytes
            return getattr(channel, kind)(
                f"/{SERVICE}/{name}",
                request_serializer=identity,
                response_deserializer=identity,
                _registered_method=True,
            )

        self.Put = method("unary_unary", "Put")
        self.Tail = method("unary_stream", "Tail")
        self.Upload = method("stream_unary", "Upload")
        self.Chat = method("stream_stream", "Chat")


@dataclass
class Work:
    """What a leader serves. The first request says what to do: answer, fail, or hang."""

    name: str
    claims: list[PassedOn | None] = field(default_factory=list)
    metadata: list[tuple[str, Any]] = field(default_factory=list)
    taken: list[bytes] = field(default_factory=list)
    running: int = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Put": grpc.unary_unary_rpc_method_handler(self.put),
                "Tail": grpc.unary_stream_rpc_method_handler(self.tail),
                "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
                "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            },
        )

    async def do(self, request: bytes, context: Any) -> bytes:
        self.claims.append(claim_of(context))
        self.metadata += context.invocation_metadata()
        self.taken.append(request)
        if request.startswith(b"fail"):
            await context.abort(StatusCode[request.split()[1].decode()], "as asked", (("x-why", "because"),))
        if request == b"hang":
            self.running += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.running -= 1
        return self.name.encode() + b":" + request

    async def put(self, request: bytes, context: Any) -> bytes:
        return await self.do(request, context)

    async def tail(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield self.name.encode()
        yield await self.do(request, context)

    async def upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b" ".join([await self.do(request, context) async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.do(request, context)


@dataclass
class Orchestrator:
    """A candidate and the service that it serves all the time, as long as nothing else is said."""

    candidate: Candidate
    work: Work
    server: grpc.aio.Server
    address: str
    terms: list[Term]

    @property
    def token(self) -> Token:
        """That of its newest term."""
        return self.terms[-1].token


@dataclass
class World:
    """A store, and a server of the API over it."""

    store: Store
    api: str

    @asynccontextmanager
    async def orchestrator(
        self,
        name: str,
        *,
        addressed: bool = True,
        fence: AioServerFence | None = None,
        credentials: grpc.ServerCredentials | None = None,
        stop_with_term: bool = False,
    ) -> AsyncIterator[Orchestrator]:
        work = Work(name)
        server = grpc.aio.server(interceptors=[fence] if fence else [])
        server.add_generic_rpc_handlers([work.handlers()])
        port = (
            server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else server.add_insecure_port("127.0.0.1:0")
        )
        await server.start()
        address = f"127.0.0.1:{port}"
        candidate = self.store.candidate(ELECTION, id=name, address=address if addressed else "", config=QUICK)

        terms: list[Term] = []

        async def lead(term: Term) -> None:
            terms.append(term)
            try:
                await asyncio.Event().wait()
            finally:
                if stop_with_term:
                    await server.stop(None)

        standing = asyncio.create_task(candidate.lead(lead))
        try:
            yield Orchestrator(candidate, work, server, address, terms)
        finally:
            candidate.leave()
            await soon(standing)
            await server.stop(None)


@pytest.fixture
async def world(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[World]:
    async with (
        connect(etcd_cluster.endpoints, namespace=namespace) as store,
        store.view() as view,
        GrpcServer(view, port=0) as server,
    ):
        yield World(store, server.address)


async def leads(orchestrator: Orchestrator, channel: LeaderChannel) -> None:
    """Waits until it leads and the channel knows it."""

    def known() -> bool:
        leader = channel.leader.current.value
        return leader is not None and bool(orchestrator.terms) and leader.token == orchestrator.token

    await until(known)


async def hand_over(before: Orchestrator, to: str) -> None:
    """As soon as the other one waits."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(ElectionError):
                before.candidate.hand_over(to)
                return
            await asyncio.sleep(0.01)


async def requests(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_calls_of_every_kind_reach_the_leader_with_its_token(world: World) -> None:
    """And with the metadata of the caller; iterators, reads and writes work as in grpc.aio."""
    async with world.orchestrator("a") as a, leader_channel(world.api, ELECTION) as channel:
        await leads(a, channel)
        stub = Stub(channel)
        call = stub.Put(b"1", metadata=(("x-mine", "yes"),), timeout=5)
        assert await soon(call) == b"a:1"
        assert (await call.code(), call.done(), call.cancelled()) == (StatusCode.OK, True, False)
        assert 0 < call.time_remaining() <= 5
        async with asyncio.timeout(10):  # nobody else holds on to these calls
            assert await stub.Put(b"1", timeout=5, wait_for_ready=True) == b"a:1"
            assert await stub.Upload(requests(b"3"), timeout=5) == b"a:3"
        assert [message async for message in stub.Tail(b"2")] == [b"a", b"a:2"]
        tail = stub.Tail(b"2")
        assert [await soon(tail.read()) for _ in range(3)] == [b"a", b"a:2", grpc.aio.EOF]
        assert await soon(stub.Upload(requests(b"3", b"4"))) == b"a:3 a:4"
        upload = stub.Upload()
        await upload.write(b"5")
        await upload.done_writing()
        assert await soon(upload) == b"a:5"
        chat = stub.Chat()
        for message in (b"6", b"7"):
            await chat.write(message)
            assert await soon(chat.read()) == b"a:" + message
        await chat.done_writing()
        assert await soon(chat.read()) is grpc.aio.EOF
        assert [message async for message in stub.Chat([b"8"])] == [b"a:8"]
        assert set(a.work.claims) == {PassedOn(ELECTION, a.token)}
        assert ("x-mine", "yes") in a.work.metadata
        assert channel.get_state() is grpc.ChannelConnectivity.READY
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    with pytest.raises(grpc.aio.UsageError):
        stub.Put(b"late")


async def test_a_call_under_way_is_broken_off_when_the_leader_changes(world: World) -> None:
    """With an error of its own that says old and new, and is one of gRPC; the next call goes to the new leader."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(leader_channel(world.api, ELECTION))
        a = await stack.enter_async_context(world.orchestrator("a"))
        await leads(a, channel)
        b = await stack.enter_async_context(world.orchestrator("b"))
        stub = Stub(channel)
        old = a.token
        tail, chat = stub.Tail(b"hang"), stub.Chat()
        assert await soon(tail.read()) == b"a"
        await chat.write(b"1")
        assert await soon(chat.read()) == b"a:1"
        hanging = Hanging(b"2")
        awaited = (stub.Put(b"hang"), stub.Upload(hanging), tail.read(), drained(stub.Tail(b"hang")))
        under_way = [asyncio.create_task(raised_by(each)) for each in awaited]
        await until(lambda: a.work.taken.count(b"hang") == 3 and b"2" in a.work.taken and hanging.asked)
        await hand_over(a, "b")
        await leads(b, channel)
        for error in [await soon(task) for task in under_way] + [await raised_by(chat.read())]:
            assert isinstance(error, LeaderChanged)
            assert isinstance(error, ElectionError)
            assert (error.code(), error.old, error.new) == (StatusCode.UNAVAILABLE, old, b.token)
            assert str(old) in str(error)
            assert str(b.token) in str(error)
        assert isinstance(await raised_by(chat.write(b"late")), LeaderChanged)
        assert await soon(chat.code()) is StatusCode.UNAVAILABLE
        assert "changed" in await chat.details()
        await until(lambda: a.work.running == 0)
        assert await soon(stub.Put(b"3")) == b"b:3"
        assert b.work.claims == [PassedOn(ELECTION, b.token)]
        assert a.work.taken.count(b"3") == 0
        del tail, chat, awaited, under_way, error  # gRPC keeps a connection for as long as somebody has a call in hand
        gc.collect()
        await until(lambda: connections_to(a.address) == 0)
        assert connections_to(b.address) == 1


async def drained(call: Any) -> list[bytes]:
    """All messages of a stream."""
    return [message async for message in call]


class Hanging:
    """Requests of which the second one never comes."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.asked = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.first
        self.asked = True
        await asyncio.Event().wait()


def connections_to(address: str) -> int:
    """How many connections this machine has open to an address on loopback, seen from the side that dialled."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return sum(row[2].endswith(port) and row[3] == "01" for row in rows)


async def test_while_nobody_leads_calls_fail_at_once_or_wait(world: World) -> None:
    """As they say themselves; who waits goes to whoever leads then, or gives up at its timeout."""
    async with leader_channel(world.api, ELECTION) as channel:
        stub = Stub(channel)
        assert channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        for call in (stub.Put(b"1"), stub.Upload(requests(b"1")), drained(stub.Tail(b"1")), stub.Chat().read()):
            error = await raised_by(call)
            assert isinstance(error, NotSent)
            assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, f"nobody leads {ELECTION!r} at present")
        failed = stub.Put(b"1")
        assert (await failed.code(), failed.done()) == (StatusCode.UNAVAILABLE, True)
        assert list(await failed.trailing_metadata()) == []
        began_at_s = asyncio.get_running_loop().time()
        error = await raised_by(stub.Put(b"1", timeout=0.3, wait_for_ready=True))
        assert isinstance(error, NotSent)
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        assert 0.3 <= asyncio.get_running_loop().time() - began_at_s < 1
        ready = asyncio.create_task(channel.channel_ready())
        waiting = [stub.Put(b"2", wait_for_ready=True, timeout=WAIT_S), stub.Upload([b"3"], wait_for_ready=True)]
        given_up = asyncio.ensure_future(stub.Put(b"4", wait_for_ready=True))
        await asyncio.sleep(0.1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        async with world.orchestrator("a") as a:
            assert [await soon(call) for call in waiting] == [b"a:2", b"a:3"]
            await soon(ready)
            assert b"4" not in a.work.taken
        await until(lambda: channel.leader.current.value is None)
        async with world.orchestrator("b"):
            assert await soon(stub.Put(b"5", wait_for_ready=True)) == b"b:5"


async def test_a_leader_that_leaves_nobody_behind_breaks_off_its_calls(world: World) -> None:
    """With LeaderChanged, where nobody is new; and so does one that ends its service before its key is gone."""
    async with leader_channel(world.api, ELECTION) as channel:
        stub = Stub(channel)
        for stop_with_term in (False, True):
            async with world.orchestrator("a", stop_with_term=stop_with_term) as a:
                await leads(a, channel)
                old = a.token
                under_way = asyncio.create_task(raised_by(stub.Put(b"hang")))
                streamed = asyncio.create_task(raised_by(drained(stub.Tail(b"hang"))))
                await until(lambda: a.work.running == 2)
                a.candidate.leave()
                for error in (await soon(under_way), await soon(streamed)):
                    assert isinstance(error, LeaderChanged)
                    assert (error.old, error.new) == (old, None)
                    assert "nobody leads now" in str(error)


async def test_other_errors_are_passed_on_as_they_are(world: World) -> None:
    """Also UNAVAILABLE and CANCELLED, when the leader says so and stays, and the caller's own timeout."""
    async with world.orchestrator("a") as a, leader_channel(world.api, ELECTION) as channel:
        await leads(a, channel)
        stub = Stub(channel)
        for code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAVAILABLE", "CANCELLED", "INTERNAL"):
            request = b"fail " + code.encode()
            for call in (
                stub.Put(request),
                drained(stub.Tail(request)),
                stub.Upload([request]),
                drained(stub.Chat([request])),
            ):
                error = await raised_by(call)
                assert type(error) is grpc.aio.AioRpcError
                assert (error.code(), error.details()) == (StatusCode[code], "as asked")
                assert ("x-why", "because") in list(error.trailing_metadata())
        call, began_at_s = stub.Put(b"fail INTERNAL"), time.monotonic()
        assert (await soon(call.code()), await call.details()) == (StatusCode.INTERNAL, "as asked")
        assert ("x-why", "because") in list(await call.trailing_metadata())
        assert time.monotonic() - began_at_s < SETTLE_S / 2  # only what a change could be the cause of waits for one
        error = await raised_by(stub.Put(b"hang", timeout=0.2))
        assert type(error) is grpc.aio.AioRpcError
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        await a.server.stop(None)  # the service fails, and its candidate leads on
        error = await raised_by(stub.Put(b"1"))
        assert type(error) is grpc.aio.AioRpcError
        assert error.code() is StatusCode.UNAVAILABLE


async def test_a_call_ends_with_its_caller(world: World) -> None:
    """When the task that waits for it is cancelled, when it is cancelled itself, and when it is dropped."""
    async with world.orchestrator("a") as a, leader_channel(world.api, ELECTION) as channel:
        await leads(a, channel)
        stub = Stub(channel)
        told: list[Any] = []
        tail = stub.Tail(b"hang")
        tail.add_done_callback(told.append)
        awaited = [asyncio.ensure_future(stub.Put(b"hang")), asyncio.ensure_future(tail.read())]
        assert await soon(awaited[1]) == b"a"
        awaited[1] = asyncio.ensure_future(tail.read())
        own = stub.Put(b"hang")
        await until(lambda: a.work.running == 3)
        for task in awaited:
            task.cancel()
        assert own.cancel()
        for each in (*awaited, own):
            with pytest.raises(asyncio.CancelledError):
                await soon(each)
        assert await soon(own.code()) is StatusCode.CANCELLED
        assert own.cancelled()
        assert not own.cancel()
        await until(lambda: a.work.running == 0 and told == [tail])

        async for message in stub.Tail(b"hang"):
            assert message == b"a"
            await until(lambda: a.work.running == 1)
            break
        await until(lambda: a.work.running == 0)


async def test_a_leader_without_an_address_cannot_be_called(world: World) -> None:
    """However long one would wait for it: that takes somebody who changes how it is started."""
    async with world.orchestrator("a", addressed=False) as a, leader_channel(world.api, ELECTION) as channel:
        await leads(a, channel)
        for wait in (False, True):
            error = await raised_by(Stub(channel).Put(b"1", wait_for_ready=wait))
            assert isinstance(error, NotSent)
            assert error.code() is StatusCode.FAILED_PRECONDITION
            assert "'scheduler' and has given no address" in str(error)


async def test_a_fence_that_has_seen_a_later_token_tells_the_new_leader(world: World) -> None:
    """Before the API does: the call was refused, and the error says for whom."""
    fence, later = AioServerFence(ELECTION), Token(1, 1)
    async with world.orchestrator("a", fence=fence) as a, leader_channel(world.api, ELECTION) as channel:
        await leads(a, channel)
        assert await soon(Stub(channel).Put(b"1")) == b"a:1"
        interceptors = aio_client_fence(PassedOn(ELECTION, later))
        async with grpc.aio.insecure_channel(a.address, interceptors=interceptors) as direct:
            assert await soon(Stub(direct).Put(b"2")) == b"a:2"
        stub = Stub(channel)
        for call in (
            stub.Put(b"3"),
            drained(stub.Tail(b"3")),
            stub.Upload(repeat(b"3")),  # the refusal meets a write, which grpc.aio takes for the failure
            drained(stub.Chat(repeat(b"3"))),
        ):
            error = await raised_by(call)
            assert isinstance(error, LeaderChanged)
            assert (error.old, error.new) == (a.token, later)
        assert b"3" not in a.work.taken


async def test_a_leader_with_a_certificate_is_called_with_credentials(world: World, tmp_path: Path) -> None:
    """Those of the channel; without them the leader cannot be reached."""
    cert, key = certificate(tmp_path, "leader")
    served = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    trusted = grpc.ssl_channel_credentials(cert.read_bytes())
    async with (
        world.orchestrator("a", credentials=served) as a,
        leader_channel(world.api, ELECTION, credentials=trusted) as channel,
        leader_channel(world.api, ELECTION) as plain,
    ):
        await leads(a, channel)
        await leads(a, plain)
        assert await soon(Stub(channel).Put(b"1")) == b"a:1"
        assert (await raised_by(Stub(plain).Put(b"1"))).code() is StatusCode.UNAVAILABLE


async def test_closing_waits_for_calls_as_long_as_it_is_told(world: World) -> None:
    """Then they are cancelled."""
    async with world.orchestrator("a") as a:
        channel = await leader_channel(world.api, ELECTION).__aenter__()
        await leads(a, channel)
        stub = Stub(channel)
        hanging = asyncio.ensure_future(stub.Put(b"hang"))
        await until(lambda: a.work.running == 1)
        began_at_s = asyncio.get_running_loop().time()
        await soon(channel.close(grace=0.2))
        assert asyncio.get_running_loop().time() - began_at_s >= 0.2
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await soon(channel.close())
        await until(lambda: connections_to(a.address) == 0)


def test_the_errors_survive_being_pickled() -> None:
    """As errors of gRPC do."""
    changed = LeaderChanged("e", Token(0, 5), None)
    again = pickle.loads(pickle.dumps(changed))
    assert (again.old, again.new, str(again)) == (changed.old, changed.new, str(changed))
    unsent = NotSent(StatusCode.UNAVAILABLE, "nobody")
    again = pickle.loads(pickle.dumps(unsent))
    assert (again.code(), str(again)) == (StatusCode.UNAVAILABLE, "nobody")


LEADER_PROGRAM = """
import asyncio, json, sys
import grpc.aio
from election import CandidateConfig, connect
from tests.integration.test_leader_channel import ELECTION, QUICK, Work

async def main(endpoint, namespace, name):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Work(name).handlers()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with connect(endpoint, namespace=namespace) as store:
        async def work(term):
            print(json.dumps({"token": str(term.token)}), flush=True)
            await asyncio.Event().wait()
        await store.candidate(ELECTION, id=name, address=address, config=QUICK).lead(work)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_leader_that_dies_is_unavailable_until_another_one_leads(
    world: World, etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """Its death is no change of leader, and told as it is; who waits for the next one is answered by it."""
    command = (sys.executable, "-c", LEADER_PROGRAM, etcd_cluster.endpoints[0], namespace, "dies")
    process = subprocess.Popen(  # noqa: ASYNC220 (it is started, and not waited for)
        bound_to_this_process(command), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        async with leader_channel(world.api, ELECTION) as channel:
            token = Token.parse(json.loads(await asyncio.to_thread(process.stdout.readline))["token"])
            stub = Stub(channel)
            assert await soon(stub.Put(b"1", wait_for_ready=True)) == b"dies:1"
            async with world.orchestrator("b") as b:
                under_way = asyncio.create_task(raised_by(stub.Put(b"hang")))
                await asyncio.sleep(0.2)
                process.kill()
                error = await soon(under_way)
                assert type(error) is grpc.aio.AioRpcError
                assert error.code() is StatusCode.UNAVAILABLE
                leader = channel.leader.current.value
                assert leader is not None
                assert leader.token == token
                assert await soon(stub.Put(b"2", wait_for_ready=True)) == b"b:2"
                await leads(b, channel)
                assert b.work.claims == [PassedOn(ELECTION, b.token)]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


# --- without asyncio -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def blocking_channel(world: World) -> AsyncIterator[blocking.LeaderChannel]:
    channel = await asyncio.to_thread(blocking.leader_channel(world.api, ELECTION).__enter__)
    try:
        yield channel
    finally:
        await soon(asyncio.to_thread(channel.close))


def rpc_error(call: Callable[[], Any]) -> Any:
    """The status that a call of `grpc` fails with."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


async def test_without_asyncio_calls_of_every_kind_reach_the_leader(world: World) -> None:
    """As stubs of grpc make them: at once, as a future, with the call, and as iterators."""
    async with world.orchestrator("a") as a, blocking_channel(world) as channel:

        def calls() -> None:
            stub, metadata = Stub(channel), (("x-mine", "yes"),)
            assert stub.Put(b"1", timeout=WAIT_S, wait_for_ready=True, metadata=metadata) == b"a:1"
            answer, call = stub.Put.with_call(b"2", 5)
            assert (answer, call.code(), call.is_active()) == (b"a:2", StatusCode.OK, False)
            future, told = stub.Put.future(b"3"), Event()
            future.add_done_callback(lambda _: told.set())
            assert future.result(WAIT_S) == b"a:3"
            assert told.wait(WAIT_S)
            assert (future.done(), future.exception()) == (True, None)
            assert list(stub.Tail(b"4")) == [b"a", b"a:4"]
            assert stub.Upload(iter([b"5", b"6"])) == b"a:5 a:6"
            assert list(stub.Chat(iter([b"7", b"8"]))) == [b"a:7", b"a:8"]
            grpc.channel_ready_future(channel).result(WAIT_S)
            error = rpc_error(lambda: stub.Put(b"fail INTERNAL"))
            assert (error.code(), error.details()) == (StatusCode.INTERNAL, "as asked")
            error = rpc_error(lambda: list(stub.Tail(b"fail INTERNAL")))
            assert (error.code(), list(error.trailing_metadata())) == (StatusCode.INTERNAL, [("x-why", "because")])
            assert rpc_error(lambda: stub.Put(b"hang", timeout=0.2)).code() is StatusCode.DEADLINE_EXCEEDED
            hanging = stub.Put.future(b"hang")
            with pytest.raises(grpc.FutureTimeoutError):
                hanging.result(0.1)
            assert hanging.cancel()
            with pytest.raises(grpc.FutureCancelledError):
                hanging.result(WAIT_S)
            tail = stub.Tail(b"hang")
            assert next(tail) == b"a"
            assert tail.cancel()
            assert rpc_error(lambda: next(tail)).code() is StatusCode.CANCELLED
            for message in stub.Tail(b"hang"):  # and is dropped
                assert message == b"a"
                break

        await soon(asyncio.to_thread(calls))
        assert set(a.work.claims) == {PassedOn(ELECTION, a.token)}
        assert ("x-mine", "yes") in a.work.metadata
        await until(lambda: a.work.running == 0)


async def test_without_asyncio_a_change_of_leader_is_told(world: World) -> None:
    """To every thread that is in a call; while nobody leads, a call fails at once or waits."""
    async with blocking_channel(world) as channel:
        stub = Stub(channel)
        error = await asyncio.to_thread(rpc_error, lambda: stub.Put(b"1"))
        assert isinstance(error, NotSent)
        assert error.code() is StatusCode.UNAVAILABLE
        waiting = asyncio.create_task(asyncio.to_thread(lambda: stub.Put(b"2", wait_for_ready=True)))
        async with world.orchestrator("a") as a:
            assert await soon(waiting) == b"a:2"
            old = a.token
            under_way = [
                asyncio.create_task(asyncio.to_thread(rpc_error, call))
                for call in (lambda: stub.Put(b"hang"), lambda: list(stub.Tail(b"hang")))
            ]
            await until(lambda: a.work.running == 2)
        for task in under_way:
            error = await soon(task)
            assert isinstance(error, LeaderChanged)
            assert (error.old, error.new, error.code()) == (old, None, StatusCode.UNAVAILABLE)
        hanging = stub.Put.future(b"3", wait_for_ready=True)
        await asyncio.to_thread(channel.close)
        with pytest.raises(grpc.FutureCancelledError):
            hanging.result(WAIT_S)
