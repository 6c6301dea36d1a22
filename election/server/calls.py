"""What surrounds the handlers of our services: errors become statuses, and streams can be ended from outside.

A servicer's methods are wrapped once, when it is registered: an interceptor would cost every call as much again as the
answer does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc import StatusCode

from election.errors import ElectionError, ShuttingDown
from election.pb.election.v1 import error_reason_pb2 as reasons
from election.statuses import Status, status, status_of

logger = logging.getLogger("election")

Context = grpc.aio.ServicerContext[Any, Any]
Single = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncGenerator[Any]]
"""Its first argument is a request, or an iterator of the caller's messages."""


class Calls:
    """Makes statuses of the errors of our services, and can end their streams from outside."""

    def __init__(self) -> None:
        self._streams: set[asyncio.Timeout] = set()
        self._why = Status(StatusCode.OK, "")
        self._closed = False

    def end_streams(self, why: Status) -> None:
        """Ends all streams that are open now with a status, so that their callers go elsewhere."""
        self._why = why
        while self._streams:
            self._streams.pop().reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Ends all streams, and refuses new ones: the server is about to end."""
        self._closed = True
        self.end_streams(status_of(ShuttingDown("the server is shutting down")))

    def guarded(self, servicer: object, service: ServiceDescriptor) -> Any:
        """The servicer to register: each method of the service, wrapped."""
        return SimpleNamespace(**{each.name: self._wrapped(servicer, each) for each in service.methods})

    def _wrapped(self, servicer: object, method: MethodDescriptor) -> Callable[[Any, Context], Awaitable[Any]]:
        handle = getattr(servicer, method.name)
        path = f"/{method.containing_service.full_name}/{method.name}"
        return self._streaming(path, handle) if method.server_streaming else _single(path, handle)

    def _streaming(self, method: str, handle: Streaming) -> Callable[[Any, Context], Awaitable[None]]:
        async def streaming(request: Any, context: Context) -> None:
            limit = asyncio.timeout(None)
            async with _statuses(method, context):
                if self._closed:
                    await context.abort(*self._why)
                try:
                    async with limit, aclosing(handle(request, context)) as messages:
                        self._streams.add(limit)
                        async for message in messages:
                            await context.write(message)
                except TimeoutError:
                    if not limit.expired():
                        raise
                    await context.abort(*self._why)
                finally:
                    self._streams.discard(limit)

        return streaming


def _single(method: str, handle: Single) -> Callable[[Any, Context], Awaitable[Any]]:
    async def single(request: Any, context: Context) -> Any:
        async with _statuses(method, context):
            return await handle(request, context)

    return single


@asynccontextmanager
async def _statuses(method: str, context: Context) -> AsyncIterator[None]:
    try:
        yield
    except ElectionError as error:
        await context.abort(*status_of(error))
    except grpc.aio.AbortError:
        raise
    except NotImplementedError:
        await context.abort(StatusCode.UNIMPLEMENTED, f"this server does not offer {method}")
    except Exception:
        if context.done():  # the caller is gone, and with it whoever could be told
            return
        logger.exception("%s failed", method)
        text = "the server failed to answer; its log says why"
        await context.abort(*status(StatusCode.INTERNAL, reasons.ERROR_REASON_INTERNAL, text))
