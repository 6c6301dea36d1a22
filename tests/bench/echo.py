"""A process that serves the least that grpc.aio can: an answer, and a stream of one empty message that stays.

It prints its address, and goes on until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio

ECHO, ANSWER, STREAM = "/bench.Bare/Echo", "/bench.Bare/Answer", "/bench.Bare/Stream"


class _Bare(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == ECHO:
            return grpc.unary_unary_rpc_method_handler(_echo)
        if details.method == ANSWER:
            return grpc.unary_unary_rpc_method_handler(_answer)
        return grpc.unary_stream_rpc_method_handler(_stream)


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _answer(request: bytes, context: Any) -> bytes:
    return bytes(int(request))


async def _stream(request: bytes, context: Any) -> None:
    await context.write(request)
    await asyncio.Event().wait()


async def main() -> None:
    """Serves on a free port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Bare(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
