"""A service that keeps rows, behind the fence for gRPC and, where it writes, the one for SQL."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import click
import grpc
import grpc.aio

from election.drill.workload.registers import METHOD, SqliteRegister
from election.fencing.rpc import claim_of
from election.fencing.rpc_server_aio import AioServerFence
from election.highwater import FileHighWater


async def _serve(port: int, election: str, path: Path) -> None:
    register = SqliteRegister(path)
    register.create()

    async def write(value: bytes, context: Any) -> bytes:
        claim = claim_of(context)
        assert claim is not None, "the fence lets nothing through without a claim"
        await asyncio.to_thread(register.write, claim, value)
        return b""

    _, service, method = METHOD.split("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(write)}
    fence = AioServerFence(election, store=FileHighWater(path.with_suffix(".marks")))
    server = grpc.aio.server(interceptors=[fence])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    await stopped.wait()
    await server.stop(1.0)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--election", required=True)
@click.option("--sqlite", type=click.Path(path_type=Path), required=True)
def main(port: int, election: str, sqlite: Path) -> None:
    """Serves until SIGTERM."""
    asyncio.run(_serve(port, election, sqlite))


if __name__ == "__main__":
    main()
