"""The one module that reads a clock.

Decisions use `Clock.now_s`, which counts the time that the machine was suspended; asyncio's own clock
(`CLOCK_MONOTONIC`) does not. Wall time is for people to look at, never for a decision.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the rest of the project may know of time."""

    def now_s(self) -> float:
        """Seconds since some fixed moment; never goes back, and goes on while the machine is suspended."""
        ...

    def wall(self) -> datetime:
        """The time of day, in UTC, for records that people read."""
        ...

    async def sleep_s(self, duration_s: float) -> None:
        """Waits; may wake late (never early, short of cancellation), and later still after a suspend."""
        ...


class BootClock:
    """The machine's `CLOCK_BOOTTIME`, with asyncio's sleep."""

    def now_s(self) -> float:
        """Seconds since the machine booted, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """The time of day in UTC."""
        return datetime.now(UTC)

    async def sleep_s(self, duration_s: float) -> None:
        """Waits on asyncio's clock, which stands still while the machine is suspended."""
        await asyncio.sleep(duration_s)


async def pause(clock: Clock, duration_s: float, unless: asyncio.Event) -> None:
    """Waits for a time, but no longer than until something has happened."""
    waits = {asyncio.create_task(clock.sleep_s(duration_s)), asyncio.create_task(unless.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
