"""What runs beside a command's main call: printing and recording."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def aside(*coroutines: Coroutine[Any, Any, None] | None) -> AsyncGenerator[None]:
    """Runs coroutines (None is left out) for as long as the block lasts; one that fails ends the block.

    Errors come as those of a task group do.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines if coroutine is not None]
        await asyncio.sleep(0)  # they begin to look before anything happens
        yield
        await asyncio.sleep(0)  # and see what happened last
        for task in tasks:
            task.cancel()
