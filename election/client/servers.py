"""Calls to one of several servers of the API: to the next one when one is dead, hung or stale."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
import grpc.aio

from election.api.statuses import error_of, name_of, reason_in
from election.backoff import Backoff
from election.bearer import Bearer, Metadata
from election.channels import Channels, Line
from election.clock import BootClock, Clock
from election.config import TlsConfig
from election.errors import ElectionError
from election.pb.election.v1 import election_pb2_grpc as services
from election.pb.election.v1 import error_reason_pb2 as reasons
from election.reader import MAX_AGE_S
from election.unreachable import reason_in_one_line

Req = TypeVar("Req")
Resp = TypeVar("Resp")

ELSEWHERE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
"""What can be different on another server, or a moment later. All calls of `ask` may be repeated."""

_FINAL = {name_of(reasons.ERROR_REASON_COLLECTOR_SILENT)}
"""Reasons of such a status that another server would give as well."""

# A watch on which nothing happens is silent: pings show that its server is still there.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class ServerUnavailable(ElectionError):
    """No server answered in time, or none has a view that is fresh enough to answer from.

    `indefinite` says whether a write may have happened all the same.
    """

    def __init__(self, message: str, *, indefinite: bool = False) -> None:
        super().__init__(message)
        self.indefinite = indefinite


@dataclass(frozen=True, slots=True)
class Server:
    """The stubs for a call to one server."""

    line: Line
    elections: services.ElectionsAsyncStub
    agents: services.AgentsAsyncStub

    @classmethod
    def on(cls, line: Line) -> Self:
        """Those that use a connection."""
        return cls(line, services.ElectionsStub(line.channel), services.AgentsStub(line.channel))


Unary = Callable[[Server], grpc.aio.UnaryUnaryMultiCallable[Req, Resp]]
Streaming = Callable[[Server], grpc.aio.UnaryStreamMultiCallable[Req, Resp]]


class Servers:
    """The servers that a client may ask; used inside `async with`, in one event loop.

    `call_timeout_s` bounds a question to all of them together, and what a stream may take to begin;
    `attempt_timeout_s` is how long one of them may be silent that has to say something.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        tls: TlsConfig | None,
        *,
        call_timeout_s: float,
        attempt_timeout_s: float,
        bearer: Bearer | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.addresses = addresses
        self._tls = tls
        self._bearer = bearer
        self.call_timeout_s = call_timeout_s
        self.attempt_timeout_s = attempt_timeout_s
        self.clock: Clock = clock or BootClock()
        self.rng = rng or random.Random()
        self._current = self.rng.randrange(len(addresses))
        self._channels: Channels | None = None

    async def __aenter__(self) -> Self:
        self._channels = Channels(self.addresses, self._tls, _OPTIONS, clock=self.clock)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channels, self._channels = self._channels, None
        if channels is not None:
            await channels.close()

    @property
    def address(self) -> str:
        """The address of the server that is asked at present."""
        return self.addresses[self._current]

    def metadata(self) -> Metadata | None:
        """What goes along with every call."""
        return None if self._bearer is None else self._bearer.metadata()

    async def ask(self, method: Unary[Req, Resp], request: Req, *, takes_s: float = 0.0) -> Resp:
        """One question and its answer; raises AioRpcError for what all servers would answer the same.

        `takes_s` is how long a server may work on it: all time limits are longer by so much.
        """

        async def attempt(server: Server, left_s: float) -> Resp:
            timeout_s = max(min(left_s, self.attempt_timeout_s + takes_s), 0.001)
            call = method(server)(request, timeout=timeout_s, metadata=self.metadata())
            server.line.carry(call)
            return await call

        return await self._try(attempt, self.call_timeout_s + takes_s)

    async def _try(self, attempt: Callable[[Server, float], Awaitable[Resp]], limit_s: float) -> Resp:
        give_up_at_s = self.clock.now_s() + limit_s
        backoff = self._backoff()
        asked = 0
        failed: ServerUnavailable | None = None
        while True:
            number = self._current
            try:
                return await attempt(self._server(number), give_up_at_s - self.clock.now_s())
            except grpc.aio.AioRpcError as error:
                if error.code() not in ELSEWHERE or reason_in(error.trailing_metadata()) in _FINAL:
                    raise
                # A reason that a server gave says more than that the last attempt had no time left.
                if failed is None or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    failed = self._unavailable(number, error.details() or error.code().name)
            except TimeoutError:
                failed = failed or self._unavailable(number, self._silent)
            self._avoid(number)
            asked += 1
            pause_s = 0.0 if asked < len(self.addresses) else backoff.next_s()
            if self.clock.now_s() + pause_s >= give_up_at_s:
                raise failed
            await self.clock.sleep_s(pause_s)

    async def streams(
        self, method: Streaming[Req, Resp], request: Callable[[], Req], *, silent_s: float
    ) -> AsyncGenerator[Resp | None]:
        """The messages of one stream after another, with a None where a stream begins, which asks for `request()`.

        A stream that is silent for longer than `silent_s` has lost its server. Its first message is sent at once.

        Raises ServerUnavailable rather than be blind for more than MAX_AGE_S, and else what a server refused it for.
        """
        give_up_at_s = self.clock.now_s() + self.call_timeout_s
        backoff = self._backoff()
        while True:
            number, heard = self._current, False
            server = self._server(number)
            call = method(server)(request(), metadata=self.metadata())
            server.line.carry(call)
            try:
                async with asyncio.timeout(self.attempt_timeout_s):
                    message = await call.read()
                yield None
                while message is not grpc.aio.EOF:
                    heard = True
                    yield cast("Resp", message)
                    async with asyncio.timeout(silent_s):
                        message = await call.read()
                why = "it ended the stream"
            except grpc.aio.AioRpcError as error:
                lagged = heard and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # begin again where it was
                if error.code() not in ELSEWHERE and not lagged:
                    raise error_of(error) from None
                why = error.details() or error.code().name
            except TimeoutError:
                why = f"no message within {silent_s:g} s" if heard else self._silent
            finally:
                call.cancel()
            self._avoid(number)
            if heard:
                give_up_at_s = self.clock.now_s() + MAX_AGE_S
                backoff.reset()
            pause_s = backoff.next_s()
            if self.clock.now_s() + pause_s >= give_up_at_s:
                raise self._unavailable(number, why)
            await self.clock.sleep_s(pause_s)

    def present(self) -> tuple[int, Server]:
        """The number of the server that is asked at present, and the stubs for one new call."""
        return self._current, self._server(self._current)

    def failed(self, number: int, why: str) -> ServerUnavailable:
        """The error for a server that does not do what it has to; the next one is asked from now on."""
        self._avoid(number)
        return ServerUnavailable(f"the server at {self.addresses[number]} cannot answer: {reason_in_one_line(why)}")

    @property
    def _silent(self) -> str:
        return f"no message within {self.attempt_timeout_s:g} s"

    def _server(self, number: int) -> Server:
        """The stubs for one new call."""
        if self._channels is None:
            raise RuntimeError("the client is not open: use it inside `async with`")
        return Server.on(self._channels[number])

    def _backoff(self) -> Backoff:
        return Backoff(0.05, 0.5, self.rng)

    def _avoid(self, number: int) -> None:
        """Goes on to the next server, unless another call has done so already."""
        if self._current == number:
            self._current = (number + 1) % len(self.addresses)

    def _unavailable(self, number: int, why: str) -> ServerUnavailable:
        others = f", and neither can the other {len(self.addresses) - 1}" if len(self.addresses) > 1 else ""
        return ServerUnavailable(
            f"the server at {self.addresses[number]} cannot answer{others}: {reason_in_one_line(why)}"
        )
