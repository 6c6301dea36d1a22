"""Candidates without etcd, through real servers: one leads, and it stops before another can start."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from election.bidi import BidiCall
from election.client import Client, dial
from election.client.candidate import RemoteCandidate
from election.client.servers import ServerUnavailable
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.errors import ElectionError, LossReason, NotLeader
from election.etcd import txn
from election.fencing.txn import fenced_txn
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.server.serving import GrpcServer
from election.store import Store, connect
from election.term import Term
from tests.integration.test_grpc_api import until

T = TypeVar("T")

WAIT_S = 20.0
State = pb.CampaignResponse
Request = pb.CampaignRequest


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[GrpcServer]:
    async with store.view() as view, GrpcServer(view, port=0, store=store) as server:
        yield server


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    async with connect(etcd_cluster.endpoints, namespace=namespace) as store:
        yield store


def stand(*, sequence: int = 1, **fields: Any) -> Request:
    return Request(
        sequence=sequence,
        stand=Request.Stand(**{"election": "scheduler", "id": "one", "ttl": Duration(seconds=3), **fields}),
    )


@asynccontextmanager
async def served(store: Store, *, collect: bool = False) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server that is a process of its own, and its address."""
    where = ("--endpoints", ",".join(store.config.endpoints), "--namespace", store.keyspace.namespace)
    serve = ("serve", "--grpc-port", "0", "--collect" if collect else "--no-collect", "-o", "json")
    command = bound_to_this_process([sys.executable, "-m", "election.cli", *serve, *where])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        told = json.loads(await soon(process.stdout.readline()))
        yield process, told["grpc"]
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class First(random.Random):
    """Begins with the first server."""

    def randrange(self, *_: Any) -> int:
        return 0


@dataclass
class Led:
    """What the work of a candidate has noted."""

    term: asyncio.Future[Term]

    async def work(self, term: Term) -> None:
        if self.term.done():
            self.term = asyncio.get_running_loop().create_future()
        self.term.set_result(term)
        await asyncio.Event().wait()


@asynccontextmanager
async def leading(candidate: RemoteCandidate) -> AsyncIterator[Led]:
    led = Led(asyncio.get_running_loop().create_future())
    standing = asyncio.create_task(candidate.lead(led.work))
    try:
        yield led
    finally:
        standing.cancel()
        with suppress(asyncio.CancelledError):
            await standing


@asynccontextmanager
async def leading_directly(store: Store) -> AsyncIterator[asyncio.Future[Term]]:
    """Somebody who waits behind the first, on etcd itself."""
    led = Led(asyncio.get_running_loop().create_future())
    standing = asyncio.create_task(store.candidate("scheduler", id="next").lead(led.work))
    try:
        yield led.term
    finally:
        standing.cancel()
        with suppress(asyncio.CancelledError):
            await standing


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def test_it_leads_with_a_token_that_protects(store: Store) -> None:
    """The token is the create revision of a key in etcd, and a fenced write under it is taken."""
    async with serving(store) as server, dial(server.address) as client:
        candidate = client.candidate("scheduler", id="one", address="one:1", labels={"zone": "a"})
        async with leading(candidate) as led:
            term = await soon(led.term)
            assert candidate.is_leader
            assert term.is_leader
            assert 0 < term.remaining_s() <= 9.0
            answer = await until(lambda: client.leader("scheduler"), lambda answer: answer.value is not None)
            leader = answer.value
            assert leader is not None
            assert (leader.id, leader.address, leader.token) == ("one", "one:1", term.token)
            done = await fenced_txn(store.client, term, [], [txn.put(store.keyspace.root + b"x", b"1")])
            assert done.succeeded
        assert not term.is_leader
        with pytest.raises(NotLeader):
            term.check()
        await until(lambda: client.leader("scheduler"), lambda answer: answer.value is None)


async def test_a_server_that_is_killed_takes_the_term_of_its_caller_with_it(store: Store) -> None:
    """The caller stops at once, and somebody else leads when the lease has ended, and no sooner."""
    async with AsyncExitStack() as stack:
        process, address = await stack.enter_async_context(served(store))
        other = await stack.enter_async_context(serving(store))
        first = await stack.enter_async_context(Client([address, other.address], rng=First()))
        second = await stack.enter_async_context(dial(other.address))
        led = await stack.enter_async_context(leading(first.candidate("scheduler", id="one", ttl_s=5)))
        term = await soon(led.term)
        next_led = await stack.enter_async_context(leading(second.candidate("scheduler", id="two", ttl_s=5)))
        await asyncio.sleep(1)
        killed_s = asyncio.get_running_loop().time()
        process.kill()
        loss = await soon(term.lost)
        assert loss.reason is LossReason.EXPIRED
        assert asyncio.get_running_loop().time() - killed_s < 1
        later = await soon(next_led.term)
        assert later.token > term.token
        assert not term.is_leader
        assert asyncio.get_running_loop().time() - killed_s > 3


async def test_a_server_that_is_interrupted_twice_holds_the_key_for_as_long_as_its_caller_may_act(store: Store) -> None:
    """The second Ctrl-C cancels everything that runs in the server; its caller is cut off and goes on working."""
    async with AsyncExitStack() as stack:
        process, address = await stack.enter_async_context(served(store))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        call: Any = BidiCall(services.ElectionsStub(channel).Campaign())
        sent_s = asyncio.get_running_loop().time()
        await call.write(stand(ttl=Duration(seconds=10)))
        while (answer := await soon(call.read())).state != State.STATE_LEADING:
            pass
        until_s = sent_s + answer.remaining.ToNanoseconds() / 1e9
        led = await stack.enter_async_context(leading_directly(store))
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGINT)
        await soon(led)
        assert asyncio.get_running_loop().time() > until_s


async def test_a_call_that_was_there_before_the_server_ends_stands_no_more(store: Store) -> None:
    """Its first message comes when the others have been let go."""
    async with AsyncExitStack() as stack:
        view = await stack.enter_async_context(store.view())
        server = GrpcServer(view, port=0, store=store)
        await server.__aenter__()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        call = BidiCall(services.ElectionsStub(channel).Campaign())
        await asyncio.sleep(0.2)
        ending = asyncio.create_task(server.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:  # noqa: PT012 (either may be refused)
            await call.write(stand())
            await soon(call.read())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await soon(ending)
    assert not (await store.client.list(store.keyspace.campaign("scheduler"))).kvs


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([Request(sequence=1, heartbeat=Request.Heartbeat())], "the first message of a call has to be `stand`"),
        ([stand(id="")], "the candidate needs a name of its own"),
        ([stand(election="a/b")], "is not a valid name"),
        ([stand(election="_collector")], "is the election of the collectors"),
        ([stand(ttl=Duration(seconds=61))], "the TTL must be whole seconds, at most 60"),
        ([stand(ttl=Duration(seconds=1))], "margin"),
        ([stand(), stand(sequence=2)], "a call stands once"),
        ([stand(), Request(sequence=1, heartbeat=Request.Heartbeat())], "it has to grow"),
        ([stand(), Request(sequence=2)], "a message needs an action"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_is_wrong(store: Store, messages: list[Request], why: str) -> None:
    """INVALID_ARGUMENT, and nobody stands any more."""
    async with serving(store) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = BidiCall(services.ElectionsStub(channel).Campaign())
        with pytest.raises(grpc.aio.AioRpcError) as raised:  # noqa: PT012 (any of the messages may be refused)
            for message in messages:
                await call.write(message)
                await asyncio.sleep(0.05)
            while await soon(call.read()) is not None:
                pass
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert why in (raised.value.details() or "")
    queue = await store.client.list(store.keyspace.campaign("scheduler"))
    assert not queue.kvs


async def test_a_server_without_a_store_only_answers(store: Store) -> None:
    """It says so."""
    async with store.view() as view, GrpcServer(view, port=0) as server, dial(server.address) as client:
        with pytest.raises(ElectionError, match="does not offer"):
            await soon(client.candidate("scheduler", id="one").lead(Led(asyncio.Future()).work))


async def test_when_no_server_can_be_reached_it_says_so() -> None:
    """At first; later it would try for ever."""
    async with dial("127.0.0.1:1") as client:
        with pytest.raises(ServerUnavailable, match="cannot answer"):
            await soon(client.candidate("scheduler", id="one").lead(Led(asyncio.Future()).work))
