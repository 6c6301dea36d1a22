"""A value that one owner sets and many read: the newest one at once, or every one in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Generic, Self, TypeVar

from election.errors import ElectionError

T = TypeVar("T")

QUEUE_LIMIT = 100_000
"""How many values a reader may lag behind before it is cut off.

When 10,000 agents lose their leases at once and come back, each has some four events. A reader that is busy meanwhile
has to get through all of them; one that has hung holds on to some 100 MB before it is let go.
"""


class TooSlow(ElectionError):
    """The reader did not read for so long that values would have been lost; it has to begin again."""


class _Link(Generic[T]):
    """A value, and the one that came after it: what no reader is before any more is forgotten by itself."""

    __slots__ = ("later", "number", "value")

    def __init__(self, value: T, number: int) -> None:
        self.value = value
        self.number = number
        self.later: _Link[T] | None = None


class Published(Generic[T]):
    """Holds the newest value. Readers never block the owner; one that lags too far behind is cut off.

    However many readers there are, each value is held once. `limit` is how many values one of them may lag behind,
    QUEUE_LIMIT where it is None.
    """

    def __init__(self, value: T, *, limit: int | None = None) -> None:
        self._newest = _Link(value, 0)
        self._limit = limit
        self._waiting: list[tuple[Callable[[T], bool], asyncio.Future[T]]] = []
        self._readings: set[Reading[T]] = set()
        self._idle: dict[asyncio.Future[None], None] = {}  # those who have read everything

    @property
    def value(self) -> T:
        """The newest value."""
        return self._newest.value

    @property
    def limit(self) -> int:
        """How many values a reader may lag behind."""
        return QUEUE_LIMIT if self._limit is None else self._limit

    @property
    def has_readers(self) -> bool:
        """Whether somebody reads at present, but for those who wait in `until`."""
        return bool(self._readings)

    def set(self, value: T) -> None:
        """Replaces the value and tells everybody who waits. Never blocks."""
        link = _Link(value, self._newest.number + 1)
        self._newest.later = self._newest = link
        for holds, future in self._waiting:
            if not future.done() and holds(value):
                future.set_result(value)
        idle, self._idle = self._idle, {}
        for waiter in idle:
            _wake(waiter)
        if link.number % (self.limit // 4 + 1) == 0:  # now and then: who hangs does not see by himself
            for reading in self._readings:
                reading.cut_off(link.number - self.limit)

    async def until(self, holds: Callable[[T], bool]) -> T:
        """Waits for the first value, beginning with the present one, for which `holds` is true."""
        if holds(self.value):
            return self.value
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        entry = (holds, future)
        self._waiting.append(entry)
        try:
            return await future
        finally:
            self._waiting.remove(entry)

    def read(self) -> Reading[T]:
        """A place among the values, from which the next one is the first that is set after this call."""
        reading = Reading(self, self._newest)
        self._readings.add(reading)
        return reading

    def values(self) -> AsyncGenerator[T]:
        """Yields the present value and then every later one, in order, until the reader stops.

        The reader is registered at the call, so nothing that is set after it is missed.

        Raises:
            TooSlow: while reading, when more than `limit` values were waiting to be read.
        """
        return self._values(self.value, self.read())

    async def _values(self, value: T, reading: Reading[T]) -> AsyncGenerator[T]:
        with reading:
            yield value
            while True:
                await reading.wait()
                yield reading.next()

    async def _wait(self, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._idle[waiter] = None
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            self._idle.pop(waiter, None)
            if timer is not None:
                timer.cancel()

    def _left(self, reading: Reading[T]) -> None:
        self._readings.discard(reading)


class Reading(Generic[T]):
    """One reader's place among the values; use it inside `with`, in one task."""

    __slots__ = ("_link", "_published")

    def __init__(self, published: Published[T], link: _Link[T]) -> None:
        self._published = published
        self._link: _Link[T] | None = link

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link = None
        self._published._left(self)

    @property
    def is_behind(self) -> bool:
        """Whether there is a value to read."""
        return self._link is None or self._link.later is not None

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until there is a value to read, for so long at most; returns whether there is."""
        if not self.is_behind:
            await self._published._wait(timeout_s)
        return self.is_behind

    def next(self) -> T:
        """The next value, which there has to be.

        Raises:
            TooSlow: more than `limit` values were waiting to be read.
        """
        self.cut_off(self._published._newest.number - self._published.limit)
        if self._link is None:
            raise TooSlow(f"more than {self._published.limit} values are waiting to be read")
        assert self._link.later is not None, "there is nothing to read"
        self._link = self._link.later
        return self._link.value

    def cut_off(self, number: int) -> None:
        """Lets go of the values when this reader has not come so far."""
        if self._link is not None and self._link.number < number:
            self._link = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
