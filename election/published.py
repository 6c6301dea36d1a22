"""A value that one owner sets and many read: the newest one at once, or every one in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

from election.errors import ElectionError

T = TypeVar("T")

QUEUE_LIMIT = 100_000
"""How many values a reader may lag behind before it is cut off.

When 10,000 agents lose their leases at once and come back, each has some four events. A reader that is busy meanwhile
has to get through all of them; one that has hung holds on to some 100 MB before it is let go.
"""


class TooSlow(ElectionError):
    """The reader did not read for so long that values would have been lost; it has to begin again."""


class Published(Generic[T]):
    """Holds the newest value. Readers never block the owner; one that lags too far behind is cut off."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._waiting: list[tuple[Callable[[T], bool], asyncio.Future[T]]] = []
        self._readers: list[tuple[deque[T], asyncio.Event]] = []

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    @property
    def has_readers(self) -> bool:
        """Whether somebody reads `values` at present."""
        return bool(self._readers)

    def set(self, value: T) -> None:
        """Replaces the value and tells everybody who waits. Never blocks."""
        self._value = value
        for holds, future in self._waiting:
            if not future.done() and holds(value):
                future.set_result(value)
        for queue, wake in self._readers:
            if len(queue) <= QUEUE_LIMIT:
                queue.append(value)
            wake.set()

    async def until(self, holds: Callable[[T], bool]) -> T:
        """Waits for the first value, beginning with the present one, for which `holds` is true."""
        if holds(self._value):
            return self._value
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        entry = (holds, future)
        self._waiting.append(entry)
        try:
            return await future
        finally:
            self._waiting.remove(entry)

    def values(self) -> AsyncGenerator[T]:
        """Yields the present value and then every later one, in order, until the reader stops.

        The reader is registered at the call, so nothing that is set after it is missed.

        Raises:
            TooSlow: while reading, when more than QUEUE_LIMIT values were waiting to be read.
        """
        entry = (deque([self._value]), asyncio.Event())
        self._readers.append(entry)
        return self._read(entry)

    async def _read(self, entry: tuple[deque[T], asyncio.Event]) -> AsyncGenerator[T]:
        queue, wake = entry
        try:
            while True:
                while queue:
                    if len(queue) > QUEUE_LIMIT:
                        raise TooSlow(f"more than {QUEUE_LIMIT} values are waiting to be read")
                    yield queue.popleft()
                wake.clear()
                await wake.wait()
        finally:
            self._readers.remove(entry)
