"""What a caller may be: each role may do what those below it may, and more."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """The roles, ordered: a larger one may do everything that a smaller one may."""

    READER = 1
    """Gets, lists, watches, and checks tokens."""
    AGENT = 2
    """And holds a session, under its own id only."""
    CANDIDATE = 3
    """And campaigns."""
    ADMIN = 4
    """And steps down, transfers, pauses, resumes, drains and reaps."""

    def __str__(self) -> str:
        return self.name.lower()
