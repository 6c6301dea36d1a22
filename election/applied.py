"""How old an event is when it is told, which may be long after what it tells of was over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from election.reader import AgentEvent, LeaderEvent

Event = TypeVar("Event", LeaderEvent, AgentEvent)


@dataclass(frozen=True, slots=True)
class Applied(Generic[Event]):
    """An event as it was taken in, and until when everything was known then, by the clock of whoever took it in.

    Whatever ended it came after that. So it is as old as that moment where newer ones wait behind it, which is the
    time since it was taken in at least; and as old as the newest knowledge where none does.
    """

    event: Event
    as_of_s: float


class Dater(Generic[Event]):
    """Gives events their age; those who are told one at once get the same object, so that its message is made once."""

    def __init__(self) -> None:
        self._last: tuple[Applied[Event], Event] | None = None

    def dated(self, applied: Applied[Event], age_s: float) -> Event:
        """The event, so many seconds old."""
        if self._last is None or self._last[0] is not applied or self._last[1].source.age_s != age_s:
            event = applied.event
            self._last = applied, replace(event, source=replace(event.source, age_s=age_s))
        return self._last[1]
