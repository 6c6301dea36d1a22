"""A channel of `grpc.aio` that leads to whoever leads an election, for generated stubs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from election.channels import Line
from election.client.client import Client
from election.client.leader_calls import Course, Route, StreamStream, StreamUnary, UnaryStream, UnaryUnary
from election.client.leader_client import LeaderClient
from election.client.leader_errors import NotSent
from election.config import TlsConfig
from election.errors import ViewStale
from election.fencing.claim import PassedOn
from election.fencing.rpc_client import stamped
from election.records import Leader
from election.token import Token

# A leader that has just begun may not listen yet; and one that comes back is not to wait for the pauses of another.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_CALLS = {
    "unary_unary": UnaryUnary,
    "unary_stream": UnaryStream,
    "stream_unary": StreamUnary,
    "stream_stream": StreamStream,
}


def leader_channel(
    servers: str | Iterable[str] | Client,
    election: str,
    *,
    tls: TlsConfig | None = None,
    token: str | Path | None = None,
    insecure: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> LeaderChannel:
    """A channel to the leader of an election, for `async with`; see `LeaderChannel`.

    `servers`, `tls`, `token` and `insecure` are how to reach the API that tells who leads, as for `LeaderClient`;
    `credentials` and `options` are for the leader's own service, which is called in plain text without the former.
    """
    leader = LeaderClient(servers, election, tls=tls, token=token, insecure=insecure)
    return LeaderChannel(leader, credentials=credentials, options=options)


class LeaderChannel(grpc.aio.Channel):
    """A channel to the address that the leader has given, for as long as it leads; then to that of the next.

    Each call carries the token of the leader that it is for, so that a service with a fence refuses what was meant
    for another term. Every term has a connection of its own, which ends with the last call on it.

    A call raises what calls of `grpc.aio` do, and of these:

    * NotSent, at once, while nobody leads, or nobody knows: UNAVAILABLE. With `wait_for_ready` it waits up to its
      timeout for a leader that is connected, and goes to whoever that is then. FAILED_PRECONDITION for a leader
      without an address.
    * LeaderChanged, when the term that it was for ends while it is under way: then it is broken off, as what a
      deposed leader does is worth nothing, and what it says may be old. So are calls that a fence refuses for a later
      token, and those that the leader's side breaks off (UNAVAILABLE, CANCELLED), if the change follows within
      SETTLE_S. Until it is known that it does not, such an error waits.

    All other errors are passed on as they are. `leader` is followed inside the channel's block. Leaving the block
    ends all calls.
    """

    def __init__(
        self,
        leader: LeaderClient,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.leader = leader
        self.election = leader.election
        self._credentials = credentials
        self._options = (*_OPTIONS, *options)
        self._route: Route | None = None
        self._retired: list[Line] = []
        self._courses: set[Course] = set()
        self._turning: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.leader.__aenter__()
        self._turning = asyncio.create_task(self._turn(), name=f"calls to the leader of {self.election}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends all calls, those that go on for at most `grace` seconds first; no new ones are taken meanwhile."""
        if self._closed:
            return
        self._closed = True
        if self._courses and grace:
            await asyncio.wait({course.ended for course in self._courses}, timeout=grace)
        for course in tuple(self._courses):
            course.cancel()
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.wait({self._turning})
        lines = [*self._retired, *([self._route.line] if self._route else [])]
        await asyncio.gather(*(line.close() for line in lines))
        await self.leader.__aexit__(None, None, None)

    # --- calls ---------------------------------------------------------------------------------------------------

    def unary_unary(self, *args: Any, **more: Any) -> Any:
        """As in `grpc.aio`."""
        return _Method(self, "unary_unary", args, more)

    def unary_stream(self, *args: Any, **more: Any) -> Any:
        """As in `grpc.aio`."""
        return _Method(self, "unary_stream", args, more)

    def stream_unary(self, *args: Any, **more: Any) -> Any:
        """As in `grpc.aio`."""
        return _Method(self, "stream_unary", args, more)

    def stream_stream(self, *args: Any, **more: Any) -> Any:
        """As in `grpc.aio`."""
        return _Method(self, "stream_stream", args, more)

    def begin(self, start: Any, timeout_s: float | None, *, wait: bool) -> Course:
        """A call on its way, which is ended with the channel or its leader."""
        if self._closed or self._turning is None:
            raise grpc.aio.UsageError("the channel is not open: use it inside `async with`")
        course = Course(self, start, timeout_s, wait=wait)
        self._courses.add(course)
        course.ended.add_done_callback(lambda _: self._courses.discard(course))
        return course

    # --- the state of the connection -----------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """That of the connection to the leader; TRANSIENT_FAILURE while there is none to be called."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        try:
            return self._present().line.channel.get_state(try_to_connect)
        except NotSent:
            return grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until `get_state` has another answer."""
        while self.get_state() is last_observed_state:
            try:
                route = self._present()
            except NotSent:
                await self.leader.wait_for_leader()
            else:
                change = route.line.channel.wait_for_state_change(last_observed_state)
                await self._unless_left(route, change)

    async def channel_ready(self) -> None:
        """Waits until there is a leader, and a connection to it."""
        await self.route(wait=True)

    # --- the way to the leader -----------------------------------------------------------------------------------

    async def route(self, *, wait: bool) -> Route:
        """The way to the present leader; with `wait`, as soon as there is one and a connection to it."""
        while wait:
            await self.leader.wait_for_leader()
            try:
                route = self._present()
            except NotSent as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:  # it was so a moment ago
                    continue
                raise
            if route.line.channel.get_state() is grpc.ChannelConnectivity.READY:
                return route
            await self._unless_left(route, route.line.channel.channel_ready())
        return self._present()

    async def until_over(self, token: Token) -> Token | None:
        """Waits until the term of this token is not the present one, and tells which is."""
        return _token(await self.leader.until(lambda leader: _token(leader) != token))

    async def _turn(self) -> None:
        """Turns away from each leader that leads no more."""
        token: Token | None = None
        while True:
            token = _token(await self.leader.until(lambda leader: _token(leader) != token))  # noqa: B023 (used at once)
            self._turn_to(token)

    def _turn_to(self, token: Token | None) -> None:
        if self._route is not None and self._route.leader.token != token:
            self._leave()
        for course in tuple(self._courses):
            course.depose(token)

    def _present(self) -> Route:
        try:
            leader = self.leader.current.value
        except ViewStale as error:
            raise NotSent(grpc.StatusCode.UNAVAILABLE, str(error)) from None
        if leader is None:
            raise NotSent(grpc.StatusCode.UNAVAILABLE, f"nobody leads {self.election!r} at present")
        if not leader.address:
            raise NotSent(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{leader.id} leads {self.election!r} and has given no address: its candidate needs one",
            )
        if self._route is None or _whereabouts(self._route.leader) != _whereabouts(leader):
            self._leave()
            self._route = Route(leader, Line(self._dialled(leader.address)))
        return self._route

    def _leave(self) -> None:
        """The connection that there is gets no more calls, and ends when it has none."""
        if self._route is not None:
            line, self._route = self._route.line, None
            line.retire()
            self._retired = [each for each in (*self._retired, line) if not each.is_closed]

    def _dialled(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._credentials, options=self._options)

    async def _unless_left(self, route: Route, waiting: Coroutine[Any, Any, None]) -> None:
        """Waits for the end of something, or until its leader leads no more, or elsewhere."""

        def has_left(leader: Leader | None) -> bool:
            return leader is None or _whereabouts(leader) != _whereabouts(route.leader)

        tasks = {asyncio.create_task(waiting), asyncio.create_task(self.leader.until(has_left))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


def _whereabouts(leader: Leader) -> tuple[Token, str]:
    return leader.token, leader.address


def _token(leader: Leader | None) -> Token | None:
    return None if leader is None else leader.token


class _Method:
    """A method of a service, as stubs call it."""

    def __init__(self, channel: LeaderChannel, kind: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        self._channel = channel
        self._kind = kind
        self._args = args
        self._more = more

    def __call__(
        self,
        *request: Any,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, Any]] | None = None,
        wait_for_ready: bool | None = None,
        **more: Any,
    ) -> Any:
        def start(route: Route, left_s: float | None) -> Any:
            method = getattr(route.line.channel, self._kind)(*self._args, **self._more)
            claim = PassedOn(route.leader.election, route.leader.token)
            stamps = grpc.aio.Metadata(*stamped(claim, metadata))
            return method(*request, timeout=left_s, metadata=stamps, wait_for_ready=wait_for_ready, **more)

        return _CALLS[self._kind](self._channel.begin(start, timeout, wait=bool(wait_for_ready)))
