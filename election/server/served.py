"""What the server needs of what it serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from election.agent_records import Agent, Tombstone
from election.keys import TombstoneKey
from election.reader import Answer, Reader, Source


class ServedReader(Reader, Protocol):
    """A Reader of one namespace that says how fresh it is, as `View` does."""

    @property
    def namespace(self) -> str:
        """The namespace that it reads."""
        ...

    def source(self) -> Source:
        """How fresh it is; raises ViewStale when that is too old to answer from."""
        ...

    def known_agent(self, id: str) -> tuple[Agent | None, int]:
        """An agent as memory has it, however old, and the revision up to which memory is complete."""
        ...

    def tombstone_pages(
        self, agent: str | None = None, *, after: tuple[int, TombstoneKey] | None = None
    ) -> AsyncGenerator[Answer[tuple[tuple[int, Tombstone], ...]]]:
        """The tombstones that are kept, with the revision of each: those after one, by revision and key.

        They come some at a time, all with the same source; one page or more.
        """
        ...
