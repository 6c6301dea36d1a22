"""A thread with an event loop, for programs that have none."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from election.errors import ElectionError

T = TypeVar("T")


class Running(Generic[T]):
    """A coroutine that runs in the background."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._ended = threading.Event()
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(lambda _: self._ended.set())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; whether it has ended."""
        return self._ended.wait(timeout_s)

    def result(self) -> T:
        """Waits for the end, and returns or raises what it brought."""
        self._ended.wait()
        return cast("asyncio.Task[T]", self._task).result()

    def cancel(self) -> None:
        """Cancels it, and waits for its end; what it brought is dropped."""
        self._loop.call_soon_threadsafe(lambda: cast("asyncio.Task[T]", self._task).cancel())
        self._ended.wait()
        task = cast("asyncio.Task[T]", self._task)
        if not task.cancelled():
            task.exception()


class Background:
    """A thread with an event loop, of the process that made it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="election", daemon=True)
        self._thread.start()

    @property
    def is_ours(self) -> bool:
        """Whether the thread runs in this process: threads do not outlive a fork, nor the end of the program."""
        return os.getpid() == self._process and not self._loop.is_closed() and not sys.is_finalizing()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Running[T]:
        """Starts a coroutine; raises ElectionError after `close`, and in a forked process."""
        if not self.is_ours:
            coroutine.close()
            raise ElectionError(
                "this store is closed, or was made before this process was forked: connect anew, and start processes "
                "that need a store of their own with `spawn`"
            )
        return Running(self._loop, coroutine)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end. Ctrl-C cancels it, and is passed on when it has ended."""
        running = self.begin(coroutine)
        try:
            running.wait()
        except BaseException:
            running.cancel()
            raise
        return running.result()

    def call_within(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T | None:
        """As `call`; cancels it after `timeout_s` and returns None."""

        async def bounded() -> T | None:
            try:
                async with asyncio.timeout(timeout_s):
                    return await coroutine
            except TimeoutError:
                return None

        return self.call(bounded())

    def soon(self, function: Callable[[], object]) -> None:
        """Calls a function in the loop, soon; safe in a signal handler. Does nothing where `begin` would raise."""
        if self.is_ours:
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Ends the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
