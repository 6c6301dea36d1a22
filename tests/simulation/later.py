"""What is to be done later in a run, as long as there are faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Later:
    """Calls and tasks of a run that are of no process; what is not begun when the faults end is not done at all."""

    def __init__(self) -> None:
        self._over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def call(self, after_s: float, action: Callable[[], object]) -> None:
        """Calls something later."""

        def act() -> None:
            if not self._over:
                action()

        asyncio.get_running_loop().call_later(after_s, act)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Begins a task."""
        self._tasks.add(asyncio.get_running_loop().create_task(coroutine))

    def end(self) -> None:
        """The faults are over."""
        self._over = True
        for task in self._tasks:
            task.cancel()
