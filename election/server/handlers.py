"""A service's methods as gRPC takes them, where bytes that are no message reach the handler as such.

gRPC itself would answer them with UNKNOWN, and write a traceback into the log for each: anybody could fill it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from election.errors import ConfigError

Context = grpc.aio.ServicerContext[Any, Any]
Handle = Callable[[Any, Context], Any]
"""A coroutine function, or an asynchronous generator function for an answer of several messages. Its first argument is
a request or Unreadable, or an iterator of these."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic when it runs


FIRST_S = 10.0
"""A stream on which nothing is said for so long at its beginning is not kept open."""


class Unreadable(ConfigError):
    """Stands for a request of a kind, where the caller's bytes are none."""


def generic_handler(service: ServiceDescriptor, handles: Mapping[str, Handle]) -> grpc.GenericRpcHandler:
    """Serves each method of a service by the handle of its name."""
    made = {method.name: _handler(method, handles[method.name]) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, made)


async def readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A caller's messages; raises Unreadable for one that is none."""
    async for request in requests:
        if isinstance(request, Unreadable):
            raise request
        yield request


async def first_of(requests: AsyncIterator[Any]) -> Any | None:
    """A caller's first message; None where it says none within FIRST_S seconds, or has half-closed the stream."""
    try:
        async with asyncio.timeout(FIRST_S):
            return await anext(requests, None)
    except TimeoutError:
        return None


def _handler(method: MethodDescriptor, handle: Handle) -> _Handler:
    codec = (_reader(method.input_type), GetMessageClass(method.output_type).SerializeToString)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(handle, *codec)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(handle, *codec)
    return grpc.unary_unary_rpc_method_handler(handle, *codec)


def _reader(kind: Descriptor) -> Callable[[bytes], Any]:
    parse = GetMessageClass(kind).FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Unreadable(f"the bytes that were sent are no {kind.full_name}")

    return read
