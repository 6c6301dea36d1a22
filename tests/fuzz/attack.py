"""Sends forged requests to a server, many at a time, and notes how each was answered."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from election.pb.election.v1 import election_pb2 as pb
from tests.fuzz.forger import Forger

METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
)
_STREAM_S = 0.05
"""How long a stream is read that does not end by itself."""
_BROKEN_OFF = "Internal error from Core"
"""What gRPC's client says when it cannot write any more, since the call has ended."""
_MISTAKES = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)


@dataclass
class Attack:
    """`answers` counts the statuses, and connections that were not even calls."""

    address: str
    seed: int
    answers: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    async def run(self, requests: int, *, at_once: int = 40) -> None:
        """Sends so many; raises AssertionError for an answer that only a mistake in the server gives."""
        self.aimed = self.sent + requests
        async with asyncio.TaskGroup() as group:
            for number in range(at_once):
                group.create_task(self._send(random.Random(f"{self.seed} {self.sent} {number}")))

    async def _send(self, rng: random.Random) -> None:
        forger = Forger(rng)
        host, _, port = self.address.rpartition(":")
        async with grpc.aio.insecure_channel(self.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            while self.sent < self.aimed:
                self.sent += 1
                if rng.random() < 0.03:
                    await self._connect(host, int(port), forger)
                else:
                    await self._call(channel, rng.choice(METHODS), forger)

    async def _call(self, channel: grpc.aio.Channel, method: MethodDescriptor, forger: Forger) -> None:
        path = f"/{method.containing_service.full_name}/{method.name}"
        whole = forger.rng.random() < 0.7
        count = forger.rng.randint(1, 5) if method.client_streaming else 1
        messages = [self._message(method, forger, first=number == 0) for number in range(count)]
        sent = [each.SerializeToString() if whole else forger.damaged(each) for each in messages]
        if forger.rng.random() < 0.01:
            sent[0] = bytes(300_000)
        if forger.rng.random() < 0.01:
            path += "x"
        code, text = await self._answer(channel, path, method, sent, forger)
        if text == _BROKEN_OFF:
            self.answers["broken off"] += 1
            return
        self.answers[code.name] += 1
        if code in _MISTAKES:
            raise AssertionError(f"seed {self.seed}: {path} answered {code.name} ({text}) to {sent!r}")

    def _message(self, method: MethodDescriptor, forger: Forger, *, first: bool) -> Message:
        """Streams begin as they should half of the time, since the rest is not looked at otherwise."""
        if first and method.client_streaming and forger.rng.random() < 0.5:
            if method.name == "Session":
                secret = forger.rng.choice((b"s" * 16, b"t" * 16))
                opening = pb.SessionRequest.Open(agent=forger.rng.choice(("w1", "w2", "w3")), secret=secret)
                return pb.SessionRequest(sequence=1, open=opening)
            if method.name == "Campaign":
                standing = pb.CampaignRequest.Stand(election="fuzzed", id="f")
                return pb.CampaignRequest(sequence=1, stand=standing)
        return forger.message(method.input_type)

    async def _answer(
        self, channel: Any, path: str, method: MethodDescriptor, sent: list[bytes], forger: Forger
    ) -> tuple[grpc.StatusCode, str]:
        metadata = forger.metadata()
        timeout_s = forger.rng.choice((5.0, 5.0, 5.0, 0.001))
        call: Any
        if method.client_streaming:
            call = channel.stream_stream(path)(metadata=metadata, timeout=timeout_s)
            with suppress(Exception):  # gRPC has no error of its own for a call that has ended meanwhile
                for each in sent:
                    await call.write(each)
                if forger.rng.random() < 0.5:
                    await call.done_writing()
        elif method.server_streaming:
            call = channel.unary_stream(path)(sent[0], metadata=metadata, timeout=timeout_s)
        else:
            call = channel.unary_unary(path)(sent[0], metadata=metadata, timeout=timeout_s)
            with suppress(grpc.aio.AioRpcError):
                await call
            return await call.code(), await call.details() or ""
        with suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError):
            async with asyncio.timeout(_STREAM_S):
                while await call.read() is not grpc.aio.EOF:
                    pass
        call.cancel()
        return await call.code(), await call.details() or ""

    async def _connect(self, host: str, port: int, forger: Forger) -> None:
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(forger.frames())
            with suppress(TimeoutError):
                async with asyncio.timeout(_STREAM_S):
                    await reader.read(10_000)
            writer.close()
            await writer.wait_closed()
        self.answers["no call"] += 1
