"""What surrounds the handlers of our services: errors become statuses, and streams can be ended from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio

from election.errors import ElectionError
from election.messages import status_of
from election.server.names import SERVICES

logger = logging.getLogger("election")

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic when it runs


class Calls(grpc.aio.ServerInterceptor):
    """Makes statuses of the errors of our services, and can end their streams from outside."""

    def __init__(self) -> None:
        self._streams: set[asyncio.Timeout] = set()
        self._why = ""
        self._closed = False

    def end_streams(self, why: str) -> None:
        """Ends all streams that are open now with UNAVAILABLE, so that their callers go elsewhere."""
        self._why = why
        while self._streams:
            self._streams.pop().reschedule(asyncio.get_running_loop().time())

    def close(self, why: str) -> None:
        """Ends all streams, and refuses new ones."""
        self._closed = True
        self.end_streams(why)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handlers of our services; the others are left as they are."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.split("/")[1] not in SERVICES:
            return handler
        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_stream is not None:
            stream = cast("Callable[[Any, _Context], AsyncGenerator[Any]]", handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, stream), *codec)
        unary = cast("Callable[[Any, _Context], Awaitable[Any]]", handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(self._single(method, unary), *codec)

    def _single(
        self, method: str, handle: Callable[[Any, _Context], Awaitable[Any]]
    ) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def single(request: Any, context: _Context) -> Any:
            async with _statuses(method, context):
                return await handle(request, context)

        return single

    def _streaming(
        self, method: str, handle: Callable[[Any, _Context], AsyncGenerator[Any]]
    ) -> Callable[[Any, _Context], Awaitable[None]]:
        async def streaming(request: Any, context: _Context) -> None:
            limit = asyncio.timeout(None)
            async with _statuses(method, context):
                if self._closed:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, self._why)
                try:
                    async with limit, aclosing(handle(request, context)) as messages:
                        self._streams.add(limit)
                        async for message in messages:
                            await context.write(message)
                except TimeoutError:
                    if not limit.expired():
                        raise
                    await context.abort(grpc.StatusCode.UNAVAILABLE, self._why)
                finally:
                    self._streams.discard(limit)

        return streaming


@asynccontextmanager
async def _statuses(method: str, context: _Context) -> AsyncIterator[None]:
    try:
        yield
    except ElectionError as error:
        await context.abort(*status_of(error))
    except grpc.aio.AbortError:
        raise
    except Exception:
        if context.done():  # the caller is gone, and with it whoever could be told
            return
        logger.exception("%s failed", method)
        await context.abort(grpc.StatusCode.INTERNAL, "the server failed to answer; its log says why")
