"""SIGINT and SIGTERM end a running command in good order; a second one ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from election.cli.exits import OK


@contextmanager
def on_signal(leave: Callable[[], object]) -> Generator[None]:
    """Calls `leave` at the first SIGINT or SIGTERM; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        leave()

    for number in numbers:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def until_signal(running: Coroutine[Any, Any, None]) -> int:
    """Runs something until it ends or a signal comes; raises what it raises."""
    task = asyncio.ensure_future(running)
    with on_signal(task.cancel):
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return OK
