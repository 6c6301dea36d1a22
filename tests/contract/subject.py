"""What a contract test gets: a client of an etcd, and the means to look past the client."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import pytest

from election.backoff import Backoff
from election.clock import BootClock, Clock
from election.config import EtcdConfig
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import GrpcTransport, RpcFailed, Stream, Transport
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake.clock import VirtualClock, run_virtual
from tests.fake.etcd import FakeEtcd
from tests.fake.transport import FakeTransport

_ANSWER_S = 5.0

WatchStream = Stream[rpc.WatchRequest, rpc.WatchResponse]


@dataclass(frozen=True, slots=True)
class Subject:
    """One etcd, seen by one client. Every test has a prefix of its own for its keys."""

    client: EtcdClient
    transport: Transport
    config: EtcdConfig
    clock: Clock
    prefix: bytes

    def key(self, name: str) -> bytes:
        """A key of this test."""
        return self.prefix + name.encode()

    async def raw(self, method: Method[Req, Resp], request: Req) -> Resp:
        """One call on one member without the client, for the exact code and text of an error."""
        return await self.transport.unary(0, method, request, timeout_s=_ANSWER_S, metadata=())

    async def refusal(self, method: Method[Req, Resp], request: Req) -> tuple[str, str]:
        """The code and the text with which a call is refused."""
        with pytest.raises(RpcFailed) as refused:
            await self.raw(method, request)
        return refused.value.code.name, refused.value.details

    async def grant(self, ttl_s: int = 60) -> int:
        """A lease; nobody renews it."""
        return (await self.client.lease_grant(ttl_s)).ID

    async def put(self, name: str, value: bytes = b"", *, lease: int = 0) -> int:
        """Writes a key of this test; returns the revision."""
        return (await self.client.put(self.key(name), value, lease=lease)).header.revision

    async def get(self, name: str) -> kv.KeyValue | None:
        """Reads a key of this test."""
        return (await self.client.get(self.key(name)))[0]

    async def names(self) -> list[str]:
        """The names of all keys of this test, oldest first."""
        listed = await self.client.list(self.prefix)
        return [found.key.removeprefix(self.prefix).decode() for found in listed.kvs]

    def range(self, **options: int | bool) -> rpc.RangeRequest:
        """A request for all keys of this test."""
        request = rpc.RangeRequest(key=self.prefix, range_end=self.prefix[:-1] + b"0")
        for option, value in options.items():
            setattr(request, option, value)
        return request

    @asynccontextmanager
    async def impatient_client(self, attempt_timeout_s: float) -> AsyncIterator[EtcdClient]:
        """Another client, which takes a member for hung sooner."""
        config = replace(self.config, attempt_timeout_s=attempt_timeout_s)
        yield EtcdClient(config, clock=self.clock, transport=self.transport)

    @asynccontextmanager
    async def watching(self, *creates: rpc.WatchCreateRequest) -> AsyncIterator[WatchStream]:
        """A watch stream, without the client, on which watches were requested."""
        stream = self.transport.stream(0, methods.WATCH, metadata=())
        try:
            for create in creates:
                await stream.write(rpc.WatchRequest(create_request=create))
            yield stream
        finally:
            stream.cancel()

    @asynccontextmanager
    async def keepalive(self) -> AsyncIterator[Callable[[int], Awaitable[int]]]:
        """Renews a lease on a stream, without the client; returns the TTL of the answer."""
        stream = self.transport.stream(0, methods.LEASE_KEEP_ALIVE, metadata=())

        async def renew(lease: int) -> int:
            await stream.write(rpc.LeaseKeepAliveRequest(ID=lease))
            answer = await answered(stream)
            assert lease == answer.ID
            return answer.TTL

        try:
            yield renew
        finally:
            stream.cancel()


Scenario = Callable[[Subject], Awaitable[None]]


class Backend(Protocol):
    """Runs a scenario on an etcd."""

    def run(self, scenario: Scenario) -> None:
        """Runs it to its end."""
        ...


class FakeBackend:
    """Each scenario has a fake cluster of its own, in virtual time."""

    def run(self, scenario: Scenario) -> None:
        """Runs it without waiting for anything."""

        async def main() -> None:
            clock = VirtualClock()
            etcd = FakeEtcd(clock)
            await _serve(scenario, EtcdConfig(etcd.endpoints), FakeTransport(etcd, latency_s=0.001), clock)

        run_virtual(main())


class RealBackend:
    """All scenarios share a cluster of real processes."""

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._config = EtcdConfig(endpoints)

    def run(self, scenario: Scenario) -> None:
        """Runs it in real time."""

        async def main() -> None:
            await _serve(scenario, self._config, GrpcTransport(self._config), BootClock())

        asyncio.run(main())


async def _serve(scenario: Scenario, config: EtcdConfig, transport: Transport, clock: Clock) -> None:
    prefix = f"/contract/{secrets.token_hex(8)}/".encode()
    async with EtcdClient(config, clock=clock, transport=transport) as client:
        await scenario(Subject(client, transport, config, clock, prefix))


def contract(scenario: Scenario) -> Callable[[Backend], None]:
    """Makes a test of a scenario that runs on the fake and on the real etcd."""

    def test(backend: Backend) -> None:
        backend.run(scenario)

    test.__name__, test.__qualname__ = scenario.__name__, scenario.__qualname__
    test.__doc__, test.__module__ = scenario.__doc__, scenario.__module__
    return test


async def answered(stream: Stream[Req, Resp]) -> Resp:
    """The next answer of a stream, which must come."""
    async with asyncio.timeout(_ANSWER_S):
        answer = await stream.read()
    assert answer is not None
    return answer


def backoff() -> Backoff:
    """Short pauses, the same ones in every run."""
    return Backoff(0.05, 0.2, random.Random(1))
