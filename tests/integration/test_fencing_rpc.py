"""Fenced gRPC calls as their callers see them: real servers and channels, of grpc and of grpc.aio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.errors import ConfigError, Deposed, HighWaterError, LossReason, NotLeader
from election.etcd.client import EtcdClient
from election.fencing.claim import ELECTION_KEY, TOKEN_KEY, PassedOn
from election.fencing.highwater_etcd import EtcdHighWater
from election.fencing.highwater_sqlite import SqliteHighWater
from election.fencing.rpc import HIGHEST_KEY, claim_of
from election.fencing.rpc_client import aio_client_fence, client_fence
from election.fencing.rpc_server import ServerFence
from election.fencing.rpc_server_aio import AioServerFence
from election.highwater import FileHighWater
from election.token import Token

T = TypeVar("T")

WAIT_S = 10.0
"""Nothing here takes long; a wait of this length means that it will never happen."""

SERVICE = "demo.Resource"
OLD, NEW, NEWEST = Token(0, 5), Token(0, 7), Token(1, 1)


@dataclass
class HeldTerm:
    """A term that ends when the test says so."""

    token: Token
    election: str = "scheduler"
    over: bool = False

    def check(self) -> None:
        if self.over:
            raise NotLeader("it is over", reason=LossReason.EXPIRED)


# --- a resource, served in three ways ------------------------------------------------------------------------


@dataclass
class Resource:
    """What has reached the handlers: the method, the claim, and the message."""

    seen: list[tuple[str, PassedOn | None, bytes]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def note(self, method: str, context: Any, message: bytes) -> bytes:
        self.seen.append((method, claim_of(context), message))
        return message

    def messages(self, method: str) -> list[bytes]:
        return [message for name, _, message in self.seen if name == method]

    @property
    def claims(self) -> set[PassedOn | None]:
        return {claim for _, claim, _ in self.seen}


def sync_handlers(resource: Resource) -> dict[str, Any]:
    """Ordinary functions and generators."""

    def put(request: bytes, context: Any) -> bytes:
        return resource.note("Put", context, request)

    def tail(request: bytes, context: Any) -> Iterator[bytes]:
        try:
            for _ in range(int(request)):
                yield resource.note("Tail", context, request)
                time.sleep(0.005)
        finally:
            resource.ended.append("Tail")

    def upload(requests: Iterator[bytes], context: Any) -> bytes:
        taken = [resource.note("Upload", context, request) for request in requests]
        return resource.note("Commit", context, b" ".join(taken))

    def chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield resource.note("Chat", context, request)

    def stubborn(requests: Iterator[bytes], context: Any) -> bytes:
        for _ in range(3):
            with suppress(Exception):
                for request in requests:
                    resource.note("Stubborn", context, request)
                resource.note("End", context, b"")
        return b"done all the same"

    def guarded(request: bytes, context: Any) -> bytes:
        raise Deposed("the database refused token 0-5")

    return handlers(put, tail, upload, chat, stubborn, guarded)


def aio_handlers(resource: Resource) -> dict[str, Any]:
    """Coroutines and asynchronous generators."""

    async def put(request: bytes, context: Any) -> bytes:
        return resource.note("Put", context, request)

    async def tail(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            for _ in range(int(request)):
                yield resource.note("Tail", context, request)
                await asyncio.sleep(0.005)
        finally:
            resource.ended.append("Tail")

    async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
        taken = [resource.note("Upload", context, request) async for request in requests]
        return resource.note("Commit", context, b" ".join(taken))

    async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield resource.note("Chat", context, request)

    async def stubborn(requests: AsyncIterator[bytes], context: Any) -> bytes:
        for _ in range(3):
            with suppress(Exception):
                async for request in requests:
                    resource.note("Stubborn", context, request)
                resource.note("End", context, b"")
        return b"done all the same"

    async def guarded(request: bytes, context: Any) -> bytes:
        raise Deposed("the database refused token 0-5")

    return handlers(put, tail, upload, chat, stubborn, guarded)


def reading_handlers(resource: Resource) -> dict[str, Any]:
    """Coroutines that read and write by the context."""
    made = aio_handlers(resource)

    async def tail(request: bytes, context: Any) -> None:
        try:
            for _ in range(int(request)):
                await context.write(resource.note("Tail", context, request))
                await asyncio.sleep(0.005)
        finally:
            resource.ended.append("Tail")

    async def upload(_: Any, context: Any) -> bytes:
        taken = []
        while (request := await context.read()) is not grpc.aio.EOF:
            taken.append(resource.note("Upload", context, request))
        return resource.note("Commit", context, b" ".join(taken))

    async def chat(_: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(resource.note("Chat", context, request))

    async def stubborn(_: Any, context: Any) -> bytes:
        for _ in range(3):
            with suppress(Exception):
                while (request := await context.read()) is not grpc.aio.EOF:
                    resource.note("Stubborn", context, request)
                resource.note("End", context, b"")
        return b"done all the same"

    others = handlers(None, tail, upload, chat, stubborn, None)
    return made | {name: handler for name, handler in others.items() if name not in ("Put", "Peek", "Guarded")}


def handlers(put: Any, tail: Any, upload: Any, chat: Any, stubborn: Any, guarded: Any) -> dict[str, Any]:
    return {
        "Put": grpc.unary_unary_rpc_method_handler(put),
        "Peek": grpc.unary_unary_rpc_method_handler(put),
        "Tail": grpc.unary_stream_rpc_method_handler(tail),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Stubborn": grpc.stream_unary_rpc_method_handler(stubborn),
        "Guarded": grpc.unary_unary_rpc_method_handler(guarded),
    }


MAKE_HANDLERS: dict[str, Callable[[Resource], dict[str, Any]]] = {
    "grpc": sync_handlers,
    "aio": aio_handlers,
    "aio-reading": reading_handlers,
    "aio-threads": sync_handlers,
}
KINDS = tuple(MAKE_HANDLERS)


@asynccontextmanager
async def serving(kind: str, resource: Resource, *elections: str, **settings: Any) -> AsyncIterator[str]:
    """A server on a free port, with a fence; its address."""
    elections = elections or ("scheduler",)
    made = MAKE_HANDLERS[kind](resource)
    generic = (
        grpc.method_handlers_generic_handler(SERVICE, made),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": made["Put"]}),
    )
    if kind == "grpc":
        pool = ThreadPoolExecutor(8)
        threaded = grpc.server(pool, interceptors=[ServerFence(*elections, **settings)])
        threaded.add_generic_rpc_handlers(generic)
        port = threaded.add_insecure_port("127.0.0.1:0")
        threaded.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await asyncio.to_thread(threaded.stop(None).wait, WAIT_S)
            await asyncio.to_thread(pool.shutdown)
        return
    server = grpc.aio.server(interceptors=[AioServerFence(*elections, **settings)])
    server.add_generic_rpc_handlers(generic)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


# --- its callers ---------------------------------------------------------------------------------------------


class Caller:
    """Calls over one channel of grpc.aio.

    A stream that will be refused is given no requests: grpc.aio shows INTERNAL when a refusal meets a write, and
    hides what the server said (grpc #36066).
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def put(self, message: bytes = b"x", *, method: str = f"{SERVICE}/Put", **settings: Any) -> Any:
        call: Any = self._channel.unary_unary(f"/{method}")
        return call(message, timeout=WAIT_S, **settings)

    def tail(self, count: bytes = b"1", **settings: Any) -> Any:
        call: Any = self._channel.unary_stream(f"/{SERVICE}/Tail")
        return call(count, timeout=WAIT_S, **settings)

    def upload(self, requests: Any = None, *, method: str = "Upload", **settings: Any) -> Any:
        call: Any = self._channel.stream_unary(f"/{SERVICE}/{method}")
        return call(requests, timeout=WAIT_S, **settings)

    def chat(self, requests: Any = None, **settings: Any) -> Any:
        call: Any = self._channel.stream_stream(f"/{SERVICE}/Chat")
        return call(requests, timeout=WAIT_S, **settings)


class Callers:
    """Makes callers of one server, which end with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def plain(self, address: str) -> Caller:
        return Caller(await self._stack.enter_async_context(grpc.aio.insecure_channel(address)))

    async def leader(self, address: str, term: Token | HeldTerm) -> Caller:
        held = HeldTerm(term) if isinstance(term, Token) else term
        channel = grpc.aio.insecure_channel(address, interceptors=aio_client_fence(held))
        return Caller(await self._stack.enter_async_context(channel))


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        yield Callers(stack)


@pytest.fixture
def resource() -> Resource:
    return Resource()


every_server = pytest.mark.parametrize("kind", KINDS)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.005)


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(WAIT_S):
            await call
    return raised.value


async def drain(call: Any) -> None:
    """Reads a stream of answers to its end."""
    while await call.read() is not grpc.aio.EOF:
        pass


def check_deposed(error: grpc.aio.AioRpcError, token: Token = OLD, highest: Token = NEW) -> None:
    assert error.code() is StatusCode.FAILED_PRECONDITION
    assert error.details() == f"token {token} of election 'scheduler' is deposed: {highest} has been seen"
    assert dict(error.trailing_metadata() or ())[HIGHEST_KEY] == str(highest)


def metadata(token: object = NEW, election: str = "scheduler") -> tuple[tuple[str, str], ...]:
    return ((TOKEN_KEY, str(token)), (ELECTION_KEY, election))


# --- who is let through --------------------------------------------------------------------------------------


async def call_all(caller: Caller) -> None:
    """One call of each kind, to its end."""
    assert await caller.put(b"p") == b"p"
    assert [message async for message in caller.tail(b"2")] == [b"2", b"2"]
    assert await caller.upload([b"u", b"v"]) == b"u v"
    assert [message async for message in caller.chat([b"c", b"d"])] == [b"c", b"d"]


@every_server
async def test_a_leaders_calls_pass_and_handlers_get_its_token(kind: str, resource: Resource, callers: Callers) -> None:
    """Of all four kinds, and so do those of the next leader."""
    async with serving(kind, resource) as address:
        for token in (OLD, NEW, NEWEST):
            resource.seen.clear()
            await call_all(await callers.leader(address, token))
            assert resource.claims == {PassedOn("scheduler", token)}
            assert {method for method, _, _ in resource.seen} == {"Put", "Tail", "Upload", "Commit", "Chat"}


@every_server
async def test_a_deposed_leader_is_refused(kind: str, resource: Resource, callers: Callers) -> None:
    """In all four kinds of call, before a handler has seen anything; the refusal names both tokens."""
    async with serving(kind, resource) as address:
        old, new = await callers.leader(address, OLD), await callers.leader(address, NEW)
        await old.put()
        await new.put()
        resource.seen.clear()
        check_deposed(await refusal(old.put()))
        check_deposed(await refusal(old.tail().read()))
        check_deposed(await refusal(old.upload()))
        check_deposed(await refusal(old.chat().read()))
        assert resource.seen == []
        await new.put()
        check_deposed(await refusal((await callers.leader(address, Token(0, 6))).put()), Token(0, 6))


@every_server
async def test_elections_do_not_disturb_each_other(kind: str, resource: Resource, callers: Callers) -> None:
    """Each has a highest token of its own; one that the server is not for is refused, whatever its token."""
    async with serving(kind, resource, "scheduler", "_collector") as address:
        await (await callers.leader(address, NEW)).put()
        await (await callers.leader(address, HeldTerm(OLD, "_collector"))).put()
        resource.seen.clear()
        error = await refusal((await callers.leader(address, HeldTerm(NEWEST, "other"))).put())
        assert error.code() is StatusCode.FAILED_PRECONDITION
        assert error.details() == "this server is for election _collector or scheduler, not 'other'"
        assert HIGHEST_KEY not in dict(error.trailing_metadata() or ())
        assert resource.seen == []


MALFORMED = [
    metadata("7"),
    metadata("0-7 "),
    metadata("0-7,0-8"),
    metadata("0-99999999999999999"),
    metadata("-1-7"),
    metadata()[:1],
    metadata()[1:],
    (*metadata(), (TOKEN_KEY, "0-7")),
    (*metadata(), (ELECTION_KEY, "scheduler")),
    metadata() * 2,
]


@every_server
@pytest.mark.parametrize("required", [True, False])
async def test_malformed_metadata_are_refused(kind: str, resource: Resource, callers: Callers, required: bool) -> None:
    """Both keys come exactly once, in their one spelling, also where a call may go without."""
    async with serving(kind, resource, required=required) as address:
        caller = await callers.plain(address)
        for given in MALFORMED:
            assert (await refusal(caller.put(metadata=given))).code() is StatusCode.INVALID_ARGUMENT, given
        error = await refusal(caller.chat(metadata=MALFORMED[0]).read())
        assert error.details() == "'7' is not a fencing token: it looks like 7-1234, an epoch and a revision"
        assert resource.seen == []


@every_server
async def test_a_call_without_a_token_is_refused_where_one_is_required(
    kind: str, resource: Resource, callers: Callers
) -> None:
    """With a text that says what is wanted."""
    async with serving(kind, resource) as address:
        caller = await callers.plain(address)
        for call in (caller.put(), caller.tail().read(), caller.upload(), caller.chat().read()):
            error = await refusal(call)
            assert error.code() is StatusCode.FAILED_PRECONDITION
            assert error.details() == (
                "the call carries no fencing token: this server wants x-fencing-token and x-fencing-election"
            )
        assert resource.seen == []


@every_server
async def test_a_call_without_a_token_passes_where_none_is_required(
    kind: str, resource: Resource, callers: Callers
) -> None:
    """And is told apart by its handler; a deposed leader is refused there as well."""
    async with serving(kind, resource, required=False) as address:
        await (await callers.leader(address, NEW)).put()
        resource.seen.clear()
        await call_all(await callers.plain(address))
        assert resource.claims == {None}
        check_deposed(await refusal((await callers.leader(address, OLD)).put()))


@every_server
async def test_exempt_methods_are_left_alone(kind: str, resource: Resource, callers: Callers) -> None:
    """A whole service, by default health and reflection, or one method; a name that only begins like one is not."""
    async with serving(kind, resource) as address:
        caller = await callers.plain(address)
        assert await caller.put(b"ok", method="grpc.health.v1.Health/Check", metadata=metadata(OLD, "other")) == b"ok"
    async with serving(kind, resource, exempt=[f"{SERVICE}/Peek", f"{SERVICE}/Pu", "demo"]) as address:
        caller, deposed = await callers.plain(address), await callers.leader(address, OLD)
        await (await callers.leader(address, NEW)).put()
        assert await caller.put(b"ok", method=f"{SERVICE}/Peek") == b"ok"
        assert await deposed.put(b"ok", method=f"{SERVICE}/Peek") == b"ok"
        assert (await refusal(caller.put())).code() is StatusCode.FAILED_PRECONDITION
        refused = await refusal(caller.put(method="grpc.health.v1.Health/Check"))
        assert refused.code() is StatusCode.FAILED_PRECONDITION
        assert (await refusal(caller.put(method=f"{SERVICE}/None"))).code() is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("make", [ServerFence, AioServerFence])
def test_a_fence_is_for_some_election(make: Callable[[], Any]) -> None:
    """Otherwise it would refuse everything."""
    with pytest.raises(ConfigError, match="at least one election"):
        make()


# --- streams that are overtaken ------------------------------------------------------------------------------


@every_server
@pytest.mark.parametrize("message", [b"b", None])
async def test_an_upload_that_is_overtaken_is_not_committed(
    kind: str, resource: Resource, callers: Callers, message: bytes | None
) -> None:
    """The handler gets neither another message nor the end of the stream, at which it would act."""
    async with serving(kind, resource) as address:
        old, new = await callers.leader(address, OLD), await callers.leader(address, NEW)
        upload = old.upload()
        await upload.write(b"a")
        await until(lambda: resource.messages("Upload") == [b"a"])
        await new.put()
        await (upload.done_writing() if message is None else upload.write(message))
        check_deposed(await refusal(upload))
        assert resource.messages("Upload") == [b"a"]
        assert resource.messages("Commit") == []


@every_server
async def test_a_chat_that_is_overtaken_ends(kind: str, resource: Resource, callers: Callers) -> None:
    """At the next message, and the one of the new leader goes on."""
    async with serving(kind, resource) as address:
        old = (await callers.leader(address, OLD)).chat()
        await old.write(b"a")
        assert await old.read() == b"a"
        new = (await callers.leader(address, NEW)).chat()
        await new.write(b"b")
        assert await new.read() == b"b"
        await old.write(b"c")
        check_deposed(await refusal(old.read()))
        await new.write(b"d")
        assert await new.read() == b"d"
        assert resource.messages("Chat") == [b"a", b"b", b"d"]
        await new.done_writing()
        await drain(new)


@every_server
async def test_answers_that_are_overtaken_end(kind: str, resource: Resource, callers: Callers) -> None:
    """At the next one; the handler is closed, and does not go on for a caller who does not lead any more."""
    async with serving(kind, resource) as address:
        tail = (await callers.leader(address, OLD)).tail(b"1000")
        assert await tail.read() == b"1000"
        await (await callers.leader(address, NEW)).put()
        check_deposed(await refusal(drain(tail)))
        await until(lambda: resource.ended == ["Tail"])


@every_server
async def test_a_handler_that_takes_no_notice_gets_nothing_more(
    kind: str, resource: Resource, callers: Callers
) -> None:
    """Its requests raise again and do not look as if they had ended, and its answer is withheld."""
    async with serving(kind, resource) as address:
        upload = (await callers.leader(address, OLD)).upload(method="Stubborn")
        await upload.write(b"a")
        await until(lambda: resource.messages("Stubborn") == [b"a"])
        await (await callers.leader(address, NEW)).put()
        await upload.write(b"b")
        check_deposed(await refusal(upload))
        assert resource.messages("Stubborn") == [b"a"]
        assert resource.messages("End") == []


@every_server
async def test_a_guard_that_refuses_in_the_handler_gives_the_same_status(
    kind: str, resource: Resource, callers: Callers
) -> None:
    """Where the token is checked with the write itself."""
    async with serving(kind, resource) as address:
        error = await refusal((await callers.leader(address, OLD)).put(method=f"{SERVICE}/Guarded"))
        assert error.code() is StatusCode.FAILED_PRECONDITION
        assert error.details() == "the database refused token 0-5"


# --- what the server remembers -------------------------------------------------------------------------------


@every_server
@pytest.mark.parametrize("make", [FileHighWater, SqliteHighWater])
async def test_a_server_that_is_started_again_still_refuses(
    kind: str, resource: Resource, callers: Callers, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    """With a durable store, also before it has heard of the new leader; without one, it does not."""
    for store in ({"store": make(tmp_path / "marks")}, {}):
        async with serving(kind, resource, **store) as address:
            await (await callers.leader(address, NEW)).put()
    async with serving(kind, resource, store=make(tmp_path / "marks")) as address:
        check_deposed(await refusal((await callers.leader(address, OLD)).put()))
    async with serving(kind, resource) as address:
        await (await callers.leader(address, OLD)).put()


@pytest.mark.parametrize("kind", ["aio", "aio-threads"])
async def test_servers_that_share_etcd_refuse_as_one(
    kind: str, resource: Resource, callers: Callers, etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """A leader that only one of them has heard of has deposed the other one's, also in the middle of a stream."""
    prefix = f"/{namespace}/marks/".encode()
    async with (
        EtcdClient(EtcdConfig(etcd_cluster.endpoints)) as one,
        EtcdClient(EtcdConfig(etcd_cluster.endpoints)) as other,
        serving(kind, resource, store=EtcdHighWater(one, prefix)) as here,
        serving(kind, resource, store=EtcdHighWater(other, prefix)) as there,
    ):
        old = await callers.leader(here, OLD)
        await old.put()
        chat = old.chat()
        await chat.write(b"a")
        assert await chat.read() == b"a"
        await (await callers.leader(there, NEW)).put()
        check_deposed(await refusal(old.put()))
        await chat.write(b"b")
        check_deposed(await refusal(chat.read()))
        assert resource.messages("Chat") == [b"a"]


@pytest.mark.etcd
async def test_marks_in_etcd_rise_as_one_on_a_real_cluster(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """Clients that write at the same moment: no mark is below one that was told before."""
    marks: list[Token] = []

    async def rise(number: int) -> None:
        async with EtcdClient(EtcdConfig(etcd_cluster.endpoints)) as client:
            store = EtcdHighWater(client, f"/{namespace}/".encode())
            for i in range(15):
                before = max(marks, default=OLD)
                mark = await store.advance("scheduler", token := Token(0, 10 + 4 * i + number))
                assert mark >= max(before, token)
                marks.append(mark)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(rise(number))
    assert max(marks) == Token(0, 10 + 4 * 14 + 3)


@dataclass
class FailingStore:
    """A store that can fail."""

    error: Exception | None = None

    def advance(self, name: str, token: Token) -> Token:
        if self.error is not None:
            raise self.error
        return token


@every_server
@pytest.mark.parametrize("error", [HighWaterError("the disk is full"), RuntimeError("a bug")])
async def test_nothing_passes_while_the_store_fails(
    kind: str, resource: Resource, callers: Callers, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Neither a call nor the next message of one; the caller is not told why, and the log is."""
    store = FailingStore()
    async with serving(kind, resource, store=store) as address:
        leader = await callers.leader(address, NEW)
        chat = leader.chat()
        await chat.write(b"a")
        assert await chat.read() == b"a"
        resource.seen.clear()
        store.error = error
        await chat.write(b"b")
        for refused in (await refusal(chat.read()), await refusal(leader.put())):
            assert refused.code() is StatusCode.UNAVAILABLE
            assert refused.details() == (
                "this server cannot tell the highest token seen, so it refuses; its log says why"
            )
        assert resource.seen == []
        assert str(error) in caplog.text
        store.error = None
        await leader.put()


class HangingStore:
    """A store that answers when the test says so."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def advance(self, name: str, token: Token) -> Token:
        self.asked.set()
        assert self.go_on.wait(WAIT_S)
        return token


@every_server
async def test_a_slow_store_does_not_hold_up_other_calls(kind: str, resource: Resource, callers: Callers) -> None:
    """It is not asked in the thread, or on the event loop, that serves them all."""
    store = HangingStore()
    async with serving(kind, resource, store=store, exempt=[f"{SERVICE}/Peek"]) as address:
        waiting = asyncio.ensure_future((await callers.leader(address, NEW)).put(b"slow"))
        try:
            await until(store.asked.is_set)
            assert await (await callers.plain(address)).put(b"quick", method=f"{SERVICE}/Peek") == b"quick"
            assert not waiting.done()
        finally:
            store.go_on.set()
        assert await waiting == b"slow"


# --- the leader's side ---------------------------------------------------------------------------------------


async def test_a_term_that_is_over_sends_nothing(resource: Resource, callers: Callers) -> None:
    """NotLeader reaches the caller, in all four kinds of call, and nothing the server."""
    async with serving("aio", resource) as address:
        term = HeldTerm(NEW)
        leader = await callers.leader(address, term)
        await leader.put()
        resource.seen.clear()
        term.over = True
        upload, chat = leader.upload(), leader.chat()
        for call in (leader.put(), leader.tail().read(), leader.upload([b"u"]), upload.write(b"u"), chat.write(b"c")):
            with pytest.raises(NotLeader):
                await call
        assert resource.seen == []


async def test_a_term_that_ends_in_the_middle_of_a_stream_sends_no_more(resource: Resource, callers: Callers) -> None:
    """The call is broken off; what was to be sent does not arrive."""
    async with serving("aio", resource) as address:
        term = HeldTerm(NEW)
        leader = await callers.leader(address, term)

        async def requests() -> AsyncIterator[bytes]:
            yield b"a"
            await until(lambda: b"a" in resource.messages("Upload"))
            term.over = True
            yield b"b"

        with pytest.raises(asyncio.CancelledError):
            await leader.upload(requests())
        term.over = False
        written = leader.upload()
        await written.write(b"c")
        await until(lambda: b"c" in resource.messages("Upload"))
        term.over = True
        with suppress(asyncio.InvalidStateError):  # the call may have been broken off before this returns
            await written.write(b"d")
        with pytest.raises(asyncio.CancelledError):
            await written
        term.over = False
        assert await leader.put() == b"x"
        assert resource.messages("Upload") == [b"a", b"c"]


async def test_the_terms_metadata_replace_others(resource: Resource, callers: Callers) -> None:
    """What somebody else has put there does not pass, and what is not ours stays."""
    async with serving("aio", resource, "scheduler", "other") as address:
        leader = await callers.leader(address, NEW)
        await leader.put(metadata=(*metadata(OLD, "other"), *metadata(NEWEST), ("x-mine", "stays")))
        assert resource.claims == {PassedOn("scheduler", NEW)}


class SyncCaller:
    """Calls over one channel of grpc; for a thread of its own."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.put: Any = channel.unary_unary(f"/{SERVICE}/Put")
        self.tail: Any = channel.unary_stream(f"/{SERVICE}/Tail")
        self.upload: Any = channel.stream_unary(f"/{SERVICE}/Upload")
        self.chat: Any = channel.stream_stream(f"/{SERVICE}/Chat")


async def in_thread(address: str, term: HeldTerm, run: Callable[[SyncCaller], T]) -> T:
    """Runs calls of grpc over a fenced channel."""

    def call() -> T:
        with grpc.insecure_channel(address) as channel:
            return run(SyncCaller(grpc.intercept_channel(channel, *client_fence(term))))

    async with asyncio.timeout(2 * WAIT_S):
        return await asyncio.to_thread(call)


async def test_channels_of_grpc_are_fenced_as_well(resource: Resource) -> None:
    """All four kinds of call, and their futures, carry the token, and a deposed leader is refused."""

    def calls(caller: SyncCaller) -> None:
        assert caller.put(b"p", timeout=WAIT_S, metadata=(*metadata(NEWEST, "other"), ("x-mine", "stays"))) == b"p"
        assert caller.put.future(b"p", timeout=WAIT_S).result(WAIT_S) == b"p"
        assert list(caller.tail(b"2", timeout=WAIT_S)) == [b"2", b"2"]
        assert caller.upload(iter([b"u", b"v"]), timeout=WAIT_S) == b"u v"
        assert list(caller.chat(iter([b"c", b"d"]), timeout=WAIT_S)) == [b"c", b"d"]

    def refused(caller: SyncCaller) -> None:
        calls: list[Callable[[], object]] = [
            lambda: caller.put(b"p", timeout=WAIT_S),
            lambda: next(caller.tail(b"1", timeout=WAIT_S)),
            lambda: caller.upload(iter([b"u"]), timeout=WAIT_S),
            lambda: next(caller.chat(iter([b"c"]), timeout=WAIT_S)),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            error: Any = raised.value
            assert error.code() is StatusCode.FAILED_PRECONDITION
            assert dict(error.trailing_metadata())[HIGHEST_KEY] == str(NEW)

    async with serving("grpc", resource) as address:
        await in_thread(address, HeldTerm(NEW), calls)
        assert resource.claims == {PassedOn("scheduler", NEW)}
        resource.seen.clear()
        await in_thread(address, HeldTerm(OLD), refused)
        assert resource.seen == []


async def test_a_term_that_is_over_sends_nothing_by_channels_of_grpc(resource: Resource) -> None:
    """NotLeader reaches the caller; in the middle of a request stream the call is broken off."""
    term = HeldTerm(NEW)

    def requests() -> Iterator[bytes]:
        yield b"a"
        while b"a" not in resource.messages("Upload"):
            time.sleep(0.005)
        term.over = True
        yield b"b"

    def run(caller: SyncCaller) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            caller.upload(requests(), timeout=WAIT_S)
        broken: Any = raised.value
        assert broken.code() is StatusCode.UNKNOWN
        calls: list[Callable[[], object]] = [
            lambda: caller.put(b"p", timeout=WAIT_S),
            lambda: caller.put.future(b"p", timeout=WAIT_S).result(WAIT_S),
            lambda: next(caller.tail(b"1", timeout=WAIT_S)),
            lambda: caller.upload(iter([b"u"]), timeout=WAIT_S),
            lambda: next(caller.chat(iter([b"c"]), timeout=WAIT_S)),
        ]
        for call in calls:
            with pytest.raises(NotLeader):
                call()

    async with serving("grpc", resource) as address:
        await in_thread(address, term, run)
        assert resource.messages("Upload") == [b"a"]
        assert resource.messages("Put") == []
