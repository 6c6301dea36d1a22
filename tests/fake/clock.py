"""Virtual time: an event loop whose clock jumps to the next timer when nothing else is left to do."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_GRACE_FOR_THREADS_S = 0.2
_SMALLEST_SLEEP_S = 1e-6


class NothingLeftToHappen(RuntimeError):
    """Every task waits for another one, and no timer is set: the test would hang for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: it tells the loop how long it would have waited."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            # No timer at all. Only another thread could wake the loop now; it gets a moment of real time.
            ready = super().select(_GRACE_FOR_THREADS_S)
            if not ready:
                raise NothingLeftToHappen("no task can go on, and no timer is set")
            return ready
        if timeout > 0:
            self._jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which time is a number. It begins at 0 and no sleep takes any real time.

    It knows only of its own timers and callbacks, so nothing in it may wait for sockets.
    """

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._virtual_s

    def _jump(self, duration_s: float) -> None:
        self._virtual_s += duration_s


class VirtualClock:
    """One machine's clock over the running loop's time: `now_s = loop time * rate + offset`.

    Several of them with different rates are machines whose clocks drift apart.
    """

    def __init__(self, *, rate: float = 1.0, offset_s: float = 0.0) -> None:
        self._rate = rate
        self._offset_s = offset_s
        self._jumped_s = 0.0

    def now_s(self) -> float:
        """Seconds on this clock. Only inside of a running loop."""
        return asyncio.get_running_loop().time() * self._rate + self._offset_s

    def wall(self) -> datetime:
        """A time of day that is the same in every run."""
        return _EPOCH + timedelta(seconds=self.now_s() + self._jumped_s)

    def jump_wall(self, duration_s: float) -> None:
        """Somebody sets the time of day."""
        self._jumped_s += duration_s

    async def sleep_s(self, duration_s: float) -> None:
        """Waits until this clock has moved on by so much."""
        wake_at_s = self.now_s() + duration_s
        await asyncio.sleep(max(duration_s, 0) / self._rate)
        if (missing_s := wake_at_s - self.now_s()) > 0:  # the last digits of floating point
            await asyncio.sleep(missing_s / self._rate + _SMALLEST_SLEEP_S)

    def skip(self, duration_s: float) -> None:
        """The machine was suspended for so long: its clock has moved on, and none of its timers has."""
        self._offset_s += duration_s


def run_virtual(main: Coroutine[Any, Any, T], *, limit_s: float = 86_400.0) -> T:
    """Runs a coroutine in a virtual loop of its own.

    Raises:
        TimeoutError: when it has not ended after `limit_s` of virtual time.
        NothingLeftToHappen: when it never will.
    """

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            return await main

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(limited())
    finally:
        main.close()


def virtual(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Makes an ordinary test of one that is a coroutine; it runs in virtual time and may take fixtures."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run
