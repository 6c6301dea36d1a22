"""A process of many agents that live until it ends; prints a line when all are registered.

python -m tests.bench.crowd AGENTS TTL_S KEYS
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from election import AgentConfig, Store
from election.dev.child import connect_from_environment

_AT_ONCE = 64


async def main(agents: int, ttl_s: int, keys: int) -> None:
    """Registers so many agents, each of which stores so many keys, and does nothing more."""
    async with connect_from_environment() as store, AsyncExitStack() as stack:
        room = asyncio.Semaphore(_AT_ONCE)
        names = [f"worker-{number:06}" for number in range(agents)]
        await asyncio.gather(*(_begin(stack, store, room, name, ttl_s, keys) for name in names))
        sys.stdout.write("registered\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def _begin(
    stack: AsyncExitStack, store: Store, room: asyncio.Semaphore, name: str, ttl_s: int, keys: int
) -> None:
    async with room:
        agent = await stack.enter_async_context(store.agent(name, config=AgentConfig(ttl_s=ttl_s)))
        for number in range(keys):
            await agent.put(f"key-{number}", b"v" * 100)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
