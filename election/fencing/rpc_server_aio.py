"""The resource's side of fenced calls, for servers of `grpc.aio`. What is promised is said in `rpc.py`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from election.errors import Deposed
from election.fencing.claim import PassedOn
from election.fencing.rpc import HEALTH_AND_REFLECTION, Refused, Rules, undecided, verdict
from election.fencing.rpc_server import Admission, Advance, Handler, guarded, rebuilt
from election.highwater import AsyncHighWater, HighWater, MemoryHighWater, asynchronous
from election.token import Token

AsyncAdvance: TypeAlias = Callable[[str, Token], Awaitable[Token]]


class AioServerFence(grpc.aio.ServerInterceptor):
    """As `ServerFence`, for servers of `grpc.aio`, also for their handlers that are no coroutines.

    A store that is no AsyncHighWater is asked in the default threads of the event loop, unless it is in memory.
    """

    def __init__(
        self,
        *elections: str,
        store: HighWater | AsyncHighWater | None = None,
        required: bool = True,
        exempt: Iterable[str] = HEALTH_AND_REFLECTION,
    ) -> None:
        self._rules = Rules(frozenset(elections), required, frozenset(exempt))
        self._store: HighWater | AsyncHighWater = MemoryHighWater() if store is None else store

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: Any,
    ) -> Handler | None:
        """Wraps the handler."""
        handler = await continuation(handler_call_details)
        if handler is None or self._rules.exempts(handler_call_details.method):
            return handler
        judged = self._rules.judge(handler_call_details.invocation_metadata)
        if judged is None:
            return handler
        handle: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if inspect.iscoroutinefunction(handle) or inspect.isasyncgenfunction(handle):
            return _guarded(handler, handle, _Admission(judged, asynchronous(self._store).advance))
        return guarded(handler, Admission(judged, _from_thread(self._store, asyncio.get_running_loop())))


def _from_thread(store: Any, loop: asyncio.AbstractEventLoop) -> Advance:
    """For handlers that are no coroutines: they run in threads of the server, which may wait."""
    if not inspect.iscoroutinefunction(store.advance):
        return store.advance  # type: ignore[no-any-return]

    def advance(name: str, token: Token) -> Token:
        mark: Token = asyncio.run_coroutine_threadsafe(store.advance(name, token), loop).result()
        return mark

    return advance


class _Admission:
    """See `Admission`."""

    def __init__(self, judged: PassedOn | Refused, advance: AsyncAdvance) -> None:
        self._judged = judged
        self._advance = advance

    async def check(self) -> None:
        if isinstance(claim := self._judged, PassedOn):
            try:
                refused = verdict(claim, await self._advance(claim.election, claim.token))
            except Exception as error:  # noqa: BLE001 (whatever it is: the call does not go on)
                refused = undecided(error)
            if refused is not None:
                self._judged = refused
        self.confirm()

    def confirm(self) -> None:
        if isinstance(self._judged, Refused):
            raise self._judged


def _guarded(handler: Handler, handle: Any, admission: _Admission) -> Handler:
    """The handler of one call, behind its admission."""

    async def begin(request: Any, context: Any) -> Any:
        await admission.check()
        return handle(_Requests(request, admission) if handler.request_streaming else request, context)

    async def single(request: Any, context: Any) -> Any:
        async with _statuses(admission, context):
            return await (await begin(request, _Context(context, admission)))

    async def streaming(request: Any, context: Any) -> None:
        checked = _Context(context, admission)
        async with _statuses(admission, context):
            responses = await begin(request, checked)
            if not inspect.isasyncgen(responses):
                await responses  # a handler that calls `context.write`
                return
            async with aclosing(responses):
                async for response in responses:
                    await checked.write(response)

    return rebuilt(handler, streaming if handler.response_streaming else single)


class _Requests:
    """The requests of a stream, each checked before the handler gets it, and the end of the stream likewise."""

    def __init__(self, requests: AsyncIterator[Any], admission: _Admission) -> None:
        self._requests = requests
        self._admission = admission

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._admission.confirm()
        try:
            request = await anext(self._requests)
        except StopAsyncIteration:
            await self._admission.check()
            raise
        await self._admission.check()
        return request


class _Context:
    """The context of a call, for handlers that read and write by it: its messages are checked as well."""

    def __init__(self, context: Any, admission: _Admission) -> None:
        self._context = context
        self._admission = admission

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        self._admission.confirm()
        message = await self._context.read()
        await self._admission.check()
        return message

    async def write(self, message: Any) -> None:
        await self._admission.check()
        await self._context.write(message)


@asynccontextmanager
async def _statuses(admission: _Admission, context: Any) -> AsyncGenerator[None]:
    try:
        yield
        admission.confirm()
    except Refused as refused:
        await context.abort(refused.code, str(refused), refused.trailing_metadata)
    except Deposed as deposed:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(deposed))
