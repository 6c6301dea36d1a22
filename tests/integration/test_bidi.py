"""Calls in both directions that a server refuses while their caller writes, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from election.bidi import BidiCall

WHY = "not yours"


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """To a server that takes two messages, and ends the call at the third: as the caller has asked for."""

    async def converse(requests: AsyncIterator[BytesValue], context: Any) -> AsyncIterator[BytesValue]:
        first, _, _ = await anext(requests), await anext(requests), await anext(requests)
        if first.value != b"ok":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, WHY, (("x-why", "because"),))
        yield first

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        converse, request_deserializer=BytesValue.FromString, response_serializer=BytesValue.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Bidi", {"Converse": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)


def call_on(channel: grpc.aio.Channel) -> BidiCall[BytesValue, BytesValue]:
    method: Any = channel.stream_stream(
        "/test.Bidi/Converse",
        request_serializer=BytesValue.SerializeToString,
        response_deserializer=BytesValue.FromString,
    )
    return BidiCall(method(timeout=10))


async def write_until_it_ends(call: BidiCall[BytesValue, BytesValue], message: bytes) -> grpc.aio.AioRpcError:
    """What a write says, at last."""
    try:
        while True:
            await call.write(BytesValue(value=message))
    except grpc.aio.AioRpcError as error:
        return error


async def test_a_refusal_that_meets_a_write_is_told(channel: grpc.aio.Channel) -> None:
    """Plain `grpc.aio` says INTERNAL of 9 of 10 of these calls."""
    for _ in range(100):
        call = call_on(channel)
        written = await write_until_it_ends(call, b"x")
        with pytest.raises(grpc.aio.AioRpcError) as read:
            await call.read()
        error = read.value
        assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, WHY)
        assert ("x-why", "because") in list(error.trailing_metadata())
        # a call that ended between two writes raises nothing of its own: the reader is told why
        assert written.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)


async def test_an_end_that_meets_a_write_is_no_error(channel: grpc.aio.Channel) -> None:
    """Plain `grpc.aio` says INTERNAL of 9 of 10 of these, too."""
    for _ in range(100):
        call = call_on(channel)
        writing = asyncio.create_task(write_until_it_ends(call, b"ok"))
        while await call.read() is not None:
            pass
        await writing
        assert await call.read() is None
