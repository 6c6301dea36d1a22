"""A process that serves the API as `election serve` does; prints its address, and goes on until it is ended."""

from __future__ import annotations

import asyncio
import sys

from election.dev.child import connect_from_environment
from election.server.serving import GrpcServer, spare_what_is_there


async def main() -> None:
    """Serves the namespace of the environment on a free port."""
    async with connect_from_environment() as store, store.view() as view, GrpcServer(view, port=0) as server:
        spare_what_is_there()
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
