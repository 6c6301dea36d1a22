"""A thread with an event loop, for programs that have none."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar, cast

from election.errors import ElectionError

T = TypeVar("T")

_SETTLE_S = 1.0
"""For so long what was cancelled may take to end."""


class Running(Generic[T]):
    """A coroutine that runs in the background; `ended` is called when it has ended, in whatever thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], ended: Callable[[Running[T]], object]
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._ended = threading.Event()
        self._tell = ended
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        """Called in the loop."""
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(lambda _: self.end())

    def end(self) -> None:
        """Lets go of those who wait: it has ended, or the loop has, and with it the store."""
        self._ended.set()
        self._tell(self)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; whether it has ended."""
        return self._ended.wait(timeout_s)

    def result(self) -> T:
        """Waits for the end, and returns or raises what it brought; ElectionError when the store was closed before."""
        self._ended.wait()
        if self._task is None or not self._task.done():
            raise ElectionError("this was closed while it was used: end what uses it before")
        return self._task.result()

    def cancel(self, then: Callable[[], object] = lambda: None) -> None:
        """Cancels it, and waits for its end; what it brought is dropped.

        `then` is called in the loop right after the cancellation, before anything else can happen there.
        """

        def cancel() -> None:
            cast("asyncio.Task[T]", self._task).cancel()
            then()

        self._loop.call_soon_threadsafe(cancel)
        self._ended.wait()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.exception()


class Background:
    """A thread with an event loop, of the process that made it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._running: set[Running[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="election", daemon=True)
        self._thread.start()

    @property
    def is_ours(self) -> bool:
        """Whether the thread runs in this process: threads do not outlive a fork, nor the end of the program."""
        return os.getpid() == self._process and not self._loop.is_closed() and not sys.is_finalizing()

    def begin(self, coroutine: Coroutine[Any, Any, T], ended: Callable[[], object] = lambda: None) -> Running[T]:
        """Starts a coroutine; raises ElectionError after `close`, and in a forked process.

        `ended` is called at its end, and when `close` is faster.
        """
        if not self.is_ours:
            coroutine.close()
            raise ElectionError(
                "this is closed, or was made before this process was forked: connect anew, and start processes "
                "that need a connection of their own with `spawn`"
            )

        def forget(running: Running[T]) -> None:
            self._running.discard(running)
            ended()

        running = Running(self._loop, coroutine, forget)
        self._running.add(running)
        self._loop.call_soon_threadsafe(running.start)
        return running

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

    def iterate(self, values: AsyncGenerator[T]) -> Iterator[T]:
        """What an asynchronous generator yields; it is closed when this one is."""

        async def next_value() -> tuple[T] | None:
            try:
                return (await anext(values),)
            except StopAsyncIteration:
                return None

        try:
            while (value := self.call(next_value())) is not None:
                yield value[0]
        except GeneratorExit:
            if self.is_ours:
                self.call(values.aclose())
            raise

    def soon(self, function: Callable[[], object]) -> None:
        """Calls a function in the loop, soon; safe in a signal handler. Does nothing where `begin` would raise."""
        if self.is_ours:
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Ends the loop and the thread; what still runs ends where it is.

        Calls that were cancelled have yet to hear of it: gRPC writes tracebacks where their loop is gone by then.
        """

        async def settle() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others and not self._running:
                await asyncio.wait(others, timeout=_SETTLE_S)
            self._loop.stop()

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(settle()))
        self._thread.join()
        self._loop.close()
        for running in tuple(self._running):
            running.end()
