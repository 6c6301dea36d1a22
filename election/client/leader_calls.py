"""Calls to whoever leads: what each one waits for, whom it went to, and why it ended.

They behave as those of `grpc.aio`, and are made by the channel of `leader_channel.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from election.bidi import TrueStatus
from election.channels import Line
from election.client.leader_errors import LeaderChanged, NotSent
from election.errors import ConfigError
from election.fencing.rpc import HIGHEST_KEY
from election.records import Leader
from election.token import Token

T = TypeVar("T")

SETTLE_S = 0.25
"""A leader that hands over may break off its calls a moment before its key is gone: for so long a call that was broken
off waits for the change, to tell it from a server that has failed."""

_BROKEN_OFF = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@dataclass(frozen=True, slots=True)
class Route:
    """A leader, and the connection to it."""

    leader: Leader
    line: Line


class Routes(Protocol):
    """What a call has to know of the election."""

    election: str

    async def route(self, *, wait: bool) -> Route:
        """The way to the leader; waits until there is one and is connected, or raises NotSent."""
        ...

    async def until_over(self, token: Token) -> Token | None:
        """Waits until the term of this token is not the present one, and tells which is."""
        ...


Start = Callable[[Route, float | None], Any]
"""Makes the call of `grpc.aio` on a route, with the timeout that is left."""


class Course:
    """One call from the wait for a leader to its status.

    It does not hold on to what its caller has in hand, so that a call that its caller drops can be ended.
    """

    def __init__(self, routes: Routes, start: Start, timeout_s: float | None, *, wait: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._routes = routes
        self._start = start
        self._deadline_s = None if timeout_s is None else self._loop.time() + timeout_s
        self._wait = wait
        self._begun: asyncio.Future[Any] = self._loop.create_future()
        self.error: grpc.aio.AioRpcError | None = None
        """What the call of `grpc.aio` has ended with, if there is one and it has not ended well; set before `ended`."""
        self.token: Token | None = None
        self.changed: LeaderChanged | None = None
        self.is_cancelled = False
        self.ended = self._loop.create_task(self._run())
        """The error that the call has ended with, if it is one of ours."""
        self.ended.add_done_callback(lambda _: self._begun.cancel())  # also where it is cancelled before it begins

    def left_s(self) -> float | None:
        """What is left of its timeout."""
        return None if self._deadline_s is None else max(self._deadline_s - self._loop.time(), 0.0)

    async def begun(self) -> Any:
        """Waits for the call of `grpc.aio`; raises NotSent when there is none."""
        return await asyncio.shield(self._begun)

    def cancel(self) -> bool:
        """Ends the call; whether it had not ended before."""
        if self.ended.done():
            return False
        self.is_cancelled = True
        return self._break_off()

    def depose(self, new: Token | None) -> None:
        """Ends the call with LeaderChanged, if it is with the leader of another term than the present one."""
        if self.token is not None and self.token != new and self._break_off():
            self.changed = LeaderChanged(self._routes.election, self.token, new)

    async def within(self, act: Callable[[Any], Awaitable[T]]) -> T:
        """Does something with the call of `grpc.aio`, and raises what it has ended with. Cancelling ends the call."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            return await act(await self.begun())
        except NotSent:
            raise
        except grpc.aio.AioRpcError as error:
            raise await asyncio.shield(self.ended) or self.error or error from None
        except asyncio.InvalidStateError:  # it was written to after its end
            if self.changed is None:
                raise
            raise self.changed from None
        except asyncio.CancelledError:
            if self.changed is None or (task and task.cancelling() > cancels):
                self.cancel()
                raise
            raise self.changed from None

    async def _run(self) -> LeaderChanged | NotSent | None:
        try:
            status = await self._begin()
        except Exception as error:  # noqa: BLE001 (whoever waits for the call is told)
            self._begun.set_exception(error)
            self._begun.exception()  # and nobody has to wait
            return error if isinstance(error, NotSent) else None
        self.error = await status.error()
        return await self._why()

    async def _begin(self) -> TrueStatus:
        try:
            async with asyncio.timeout_at(self._deadline_s):
                route = await self._routes.route(wait=self._wait)
        except TimeoutError:
            raise NotSent(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no leader of {self._routes.election!r} could be called within the timeout of this call",
            ) from None
        self.token = route.leader.token
        call = self._start(route, self.left_s())
        status = TrueStatus(call)
        route.line.carry(call)
        self._begun.set_result(call)
        return status

    async def _why(self) -> LeaderChanged | None:
        if self.error is None or self.is_cancelled or self.token is None:
            return None
        if self.changed is not None:
            return self.changed
        if (highest := _highest(self.error.trailing_metadata())) is not None and highest > self.token:
            return LeaderChanged(self._routes.election, self.token, highest)
        if self.error.code() not in _BROKEN_OFF:
            return None
        try:
            async with asyncio.timeout(SETTLE_S):
                return LeaderChanged(self._routes.election, self.token, await self._routes.until_over(self.token))
        except TimeoutError:
            return None

    @property
    def is_begun(self) -> bool:
        """Whether there is a call of `grpc.aio`."""
        return self._begun.done() and not self._begun.cancelled() and self._begun.exception() is None

    def _break_off(self) -> bool:
        return bool(self._begun.result().cancel()) if self.is_begun else self.ended.cancel()


def _highest(metadata: Any) -> Token | None:
    """The token for which a fence has refused a call."""
    for key, value in metadata or ():
        if key == HIGHEST_KEY:
            try:
                return Token.parse(str(value))
            except ConfigError:
                return None
    return None


class _Call(grpc.aio.Call):
    """What the calls of all kinds have in common. One that is dropped before its end is cancelled, as in `grpc.aio`."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def __del__(self) -> None:
        self._course.cancel()

    def cancelled(self) -> bool:
        return self._course.is_cancelled

    def done(self) -> bool:
        return self._course.ended.done()

    def time_remaining(self) -> float | None:
        return self._course.left_s()

    def cancel(self) -> bool:
        return self._course.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._course.ended.add_done_callback(lambda _: callback(self))

    async def initial_metadata(self) -> Any:
        return await (await self._course.begun()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        error = await self._error()
        if self._course.error is not None:
            return self._course.error.trailing_metadata()
        return grpc.aio.Metadata() if error else await (await self._course.begun()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        error = await self._error()
        if self._course.ended.cancelled():
            return grpc.StatusCode.CANCELLED
        return error.code() if error else await (await self._course.begun()).code()

    async def details(self) -> str:
        error = await self._error()
        if self._course.ended.cancelled():
            return "cancelled before it was sent"
        return (error.details() or "") if error else await (await self._course.begun()).details()

    async def wait_for_connection(self) -> None:
        await self._course.within(lambda call: call.wait_for_connection())

    async def _error(self) -> grpc.aio.AioRpcError | None:
        await asyncio.wait({self._course.ended})
        return None if self._course.ended.cancelled() else self._course.ended.result() or self._course.error


class _Answered(_Call):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        """Holds on to the call that is waited for: `await stub.Method(request)` keeps no other reference to it."""
        return await self._course.within(lambda call: call)


class _Streamed(_Call):
    async def read(self) -> Any:
        try:
            return await self._course.within(lambda call: call.read())
        except grpc.aio.AioRpcError:
            if await self._error() is None:
                return grpc.aio.EOF
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


class _Written(_Call):
    async def write(self, request: Any) -> None:
        await self._course.within(lambda call: call.write(request))

    async def done_writing(self) -> None:
        await self._course.within(lambda call: call.done_writing())


class UnaryUnary(_Answered, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one answer."""


class UnaryStream(_Streamed, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, answers."""


class StreamUnary(_Answered, _Written, grpc.aio.StreamUnaryCall[Any, Any]):
    """Requests, one answer."""


class StreamStream(_Streamed, _Written, grpc.aio.StreamStreamCall[Any, Any]):
    """Requests and answers."""
