"""Remembers the highest fencing token that a resource has seen."""

from __future__ import annotations

import threading
from typing import Protocol

from election.token import Token


class HighWater(Protocol):
    """A mark for each name that only rises."""

    def advance(self, name: str, token: Token) -> Token:
        """Raises the mark of a name to the token if that is larger, in one step; returns the mark after it."""
        ...


class AsyncHighWater(Protocol):
    """The same, for stores that are asked over the network."""

    async def advance(self, name: str, token: Token) -> Token:
        """Raises the mark of a name to the token if that is larger, in one step; returns the mark after it."""
        ...


class MemoryHighWater:
    """Marks in memory: gone with the process, and known to no other one."""

    def __init__(self) -> None:
        self._marks: dict[str, Token] = {}
        self._lock = threading.Lock()

    def advance(self, name: str, token: Token) -> Token:
        """Raises the mark of a name to the token if that is larger; returns the mark after it."""
        with self._lock:
            mark = self._marks[name] = max(token, self._marks.get(name, token))
            return mark
