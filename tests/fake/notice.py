"""Tells whoever waits that something has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Notice:
    """Listeners are called at once, in the order in which they came; then the waiting tasks go on."""

    def __init__(self) -> None:
        self._listeners: dict[Callable[[], None], None] = {}
        self._waiting: dict[asyncio.Future[None], None] = {}

    def give(self) -> None:
        """Something has changed."""
        for listener in list(self._listeners):
            listener()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls the listener at every change."""
        self._listeners[listener] = None

    def ignore(self, listener: Callable[[], None]) -> None:
        """Calls the listener no more; harmless when it never was."""
        self._listeners.pop(listener, None)

    async def wait(self) -> None:
        """Waits for the next change."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)
