"""The read model over gRPC: a `Reader` that asks one of several servers of the API."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import grpc.aio

from election import messages
from election.backoff import Backoff
from election.channels import Channels, Line
from election.clock import BootClock, Clock
from election.config import EtcdConfig, TlsConfig
from election.errors import ConfigError, ElectionError
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.reader import (
    MAX_AGE_S,
    AgentEvent,
    Answer,
    LeaderEvent,
    Source,
    TokenCheck,
)
from election.records import Agent, Candidate, Election, Leader, StateEntry
from election.token import Token
from election.told import ToldAgents, ToldLeader

Req = TypeVar("Req")
Resp = TypeVar("Resp")

CALL_TIMEOUT_S = 5.0
"""What one question may take on all servers together; also what a watch may take to begin."""

ATTEMPT_TIMEOUT_S = 2.0
"""After this long without an answer the next server is asked."""

# What can be different on another server, or a moment later. All calls are reads, so each may be repeated.
_ELSEWHERE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
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
    """No server answered in time, or none has a view that is fresh enough to answer from."""


def dial(servers: str | Iterable[str], *, tls: TlsConfig | None = None) -> Client:
    """A client for `async with`; nothing is sent before that.

    `servers` is one or several HOST:PORT, also as one text with commas. A scheme of https asks for TLS with the
    system's roots where no `tls` is given.

    Raises:
        ConfigError: for addresses that cannot be used.
    """
    return Client(servers, tls=tls)


@dataclass(frozen=True, slots=True)
class _Server:
    line: Line
    elections: services.ElectionsAsyncStub
    agents: services.AgentsAsyncStub

    @classmethod
    def on(cls, line: Line) -> Self:
        return cls(line, services.ElectionsStub(line.channel), services.AgentsStub(line.channel))


class Client:
    """A Reader over the gRPC API of several servers; made by `dial`. Use it inside `async with`, in one event loop.

    All methods raise ElectionError kinds and nothing else but CancelledError: ServerUnavailable when no server
    answered within `call_timeout_s` seconds, and otherwise what the server refused the call for. Leaving the block
    cancels what still runs.

    A watch goes on at another server when its own has ended or is stale, and tells nothing twice; it raises
    ServerUnavailable rather than be blind for more than MAX_AGE_S seconds. A server that is behind what was told
    already is listened to again when it has caught up.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        *,
        tls: TlsConfig | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        written = servers.split(",") if isinstance(servers, str) else list(servers)
        if not any(text.strip() for text in written):
            raise ConfigError("no server is given: name at least one HOST:PORT")
        parsed = EtcdConfig.parse(written, tls=tls)  # both kinds of addresses are written the same way
        self.addresses = parsed.endpoints
        self._tls = parsed.tls
        self._call_timeout_s = call_timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._clock = clock or BootClock()
        self._rng = rng or random.Random()
        self._current = self._rng.randrange(len(self.addresses))
        self._channels: Channels | None = None

    async def __aenter__(self) -> Self:
        """Opens the channels; a server that cannot be reached shows at the first call."""
        self._channels = Channels(self.addresses, self._tls, _OPTIONS, clock=self._clock)
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

    # --- questions -------------------------------------------------------------------------------------------

    async def leader(self, election: str) -> Answer[Leader | None]:
        """Who leads; None when nobody does."""
        request = _request(pb.GetLeaderRequest, election=election)
        answer = await self._answer(lambda server: server.elections.GetLeader, request)
        return Answer(_leader(answer), messages.source_from(answer.view))

    async def elections(self) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, by name."""
        answer = await self._answer(lambda server: server.elections.ListElections, pb.ListElectionsRequest())
        return Answer(tuple(map(messages.election_from, answer.elections)), messages.source_from(answer.view))

    async def candidates(self, election: str) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, oldest first."""
        request = _request(pb.ListCandidatesRequest, election=election)
        answer = await self._answer(lambda server: server.elections.ListCandidates, request)
        return Answer(tuple(map(messages.candidate_from, answer.candidates)), messages.source_from(answer.view))

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader; the server asks etcd."""
        request = _request(pb.CheckTokenRequest, election=election, token=int(token))
        answer = await self._answer(lambda server: server.elections.CheckToken, request)
        return Answer(TokenCheck(answer.current, _leader(answer)), messages.source_from(answer.view))

    async def agents(self) -> Answer[tuple[Agent, ...]]:
        """The agents that are alive, draining or suspect, by id."""
        answer = await self._answer(lambda server: server.agents.ListAgents, pb.ListAgentsRequest())
        return Answer(tuple(map(messages.agent_from, answer.agents)), messages.source_from(answer.view))

    async def agent(self, id: str) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent and its state; None when it is not known."""
        request = _request(pb.GetAgentRequest, id=id)
        try:
            answer = await self._ask(lambda server: server.agents.GetAgent, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise _error(error) from None
            return Answer(None, _source_in(error))
        state = tuple(map(messages.entry_from, answer.state))
        return Answer((messages.agent_from(answer.agent), state), messages.source_from(answer.view))

    # --- watches ---------------------------------------------------------------------------------------------

    async def watch_leader(self, election: str) -> AsyncGenerator[LeaderEvent]:
        """Who leads now (ELECTED or VACATED), and then every change; changes during a break are told as one."""
        request = _request(pb.WatchLeaderRequest, election=election)
        told = ToldLeader()
        streams = self._streams(lambda server: server.elections.WatchLeader, request)
        async with aclosing(streams):
            async for message in streams:
                if message is not None and (event := told.news(messages.leader_event_from(message))):
                    yield event

    async def watch_agents(self) -> AsyncGenerator[AgentEvent]:
        """Every agent (PRESENT), one SYNCED, and then every change; those during a break are found by comparing.

        An agent that was reaped during a break is told as REAPED with a tombstone that has no `reaped_at`: what was
        collected from it is not known here.
        """
        told = ToldAgents()
        streams = self._streams(lambda server: server.agents.WatchAgents, pb.WatchAgentsRequest())
        async with aclosing(streams):
            async for message in streams:
                if message is None:
                    told.begin()
                    continue
                for event in told.news(messages.agent_event_from(message)):
                    yield event

    # --- the way of every call -------------------------------------------------------------------------------

    async def _answer(
        self, method: Callable[[_Server], grpc.aio.UnaryUnaryMultiCallable[Req, Resp]], request: Req
    ) -> Resp:
        try:
            return await self._ask(method, request)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def _ask(
        self, method: Callable[[_Server], grpc.aio.UnaryUnaryMultiCallable[Req, Resp]], request: Req
    ) -> Resp:
        """Asks server after server until the deadline; raises AioRpcError for what all would answer the same."""
        give_up_at_s = self._clock.now_s() + self._call_timeout_s
        backoff = self._backoff()
        asked = 0
        failed: ServerUnavailable | None = None
        while True:
            number, left_s = self._current, give_up_at_s - self._clock.now_s()
            try:
                server = self._server(number)
                call = method(server)(request, timeout=max(min(left_s, self._attempt_timeout_s), 0.001))
                server.line.carry(call)
                return await call
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ELSEWHERE:
                    raise
                # A reason that a server gave says more than that the last attempt had no time left.
                if failed is None or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    failed = self._unavailable(number, error.details() or error.code().name)
            self._avoid(number)
            asked += 1
            pause_s = 0.0 if asked < len(self.addresses) else backoff.next_s()
            if self._clock.now_s() + pause_s >= give_up_at_s:
                raise failed
            await self._clock.sleep_s(pause_s)

    async def _streams(
        self, method: Callable[[_Server], grpc.aio.UnaryStreamMultiCallable[Req, Resp]], request: Req
    ) -> AsyncGenerator[Resp | None]:
        """The messages of one stream after another, with a None where a stream begins."""
        give_up_at_s = self._clock.now_s() + self._call_timeout_s
        backoff = self._backoff()
        while True:
            number, heard = self._current, False
            server = self._server(number)
            call = method(server)(request)
            server.line.carry(call)
            try:
                async with asyncio.timeout(self._attempt_timeout_s):  # the first message is sent at once
                    message = await call.read()
                yield None
                while message is not grpc.aio.EOF:
                    heard = True
                    yield cast("Resp", message)
                    message = await call.read()
                why = "it ended the stream"
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ELSEWHERE:
                    raise _error(error) from None
                why = error.details() or error.code().name
            except TimeoutError:
                why = f"no message within {self._attempt_timeout_s:g} s"
            finally:
                call.cancel()
            self._avoid(number)
            if heard:
                give_up_at_s = self._clock.now_s() + MAX_AGE_S
                backoff.reset()
            pause_s = backoff.next_s()
            if self._clock.now_s() + pause_s >= give_up_at_s:
                raise self._unavailable(number, why)
            await self._clock.sleep_s(pause_s)

    def _server(self, number: int) -> _Server:
        """The stubs for one new call."""
        if self._channels is None:
            raise RuntimeError("the client is not open: use it inside `async with`")
        return _Server.on(self._channels[number])

    def _backoff(self) -> Backoff:
        return Backoff(0.05, 0.5, self._rng)

    def _avoid(self, number: int) -> None:
        """Goes on to the next server, unless another call has done so already."""
        if self._current == number:
            self._current = (number + 1) % len(self.addresses)

    def _unavailable(self, number: int, why: str) -> ServerUnavailable:
        line = " ".join(why.split())
        line = line if len(line) <= 200 else line[:197] + "..."
        others = f", and neither can the other {len(self.addresses) - 1}" if len(self.addresses) > 1 else ""
        return ServerUnavailable(f"the server at {self.addresses[number]} cannot answer{others}: {line}")


def _leader(answer: pb.GetLeaderResponse | pb.CheckTokenResponse) -> Leader | None:
    return messages.leader_from(answer.leader) if answer.HasField("leader") else None


def _request(kind: Callable[..., Req], **fields: Any) -> Req:
    try:
        return kind(**fields)
    except ValueError as error:  # text that is not Unicode, a number of more than 64 bits
        raise ConfigError(f"this cannot be asked: {error}") from None


def _error(error: grpc.aio.AioRpcError) -> ElectionError:
    return messages.error_from(error.code(), error.details() or "")


def _source_in(error: grpc.aio.AioRpcError) -> Source:
    """The source of the answer that there is nothing; a server that does not tell gives an unknown one."""
    for key, value in error.trailing_metadata() or ():
        if key == messages.VIEW_METADATA and isinstance(value, bytes):
            return messages.source_from(pb.View.FromString(value))
    return Source(0, 0, 0.0)
