"""A clock that tests move by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class HandClock:
    """Its time of day moves along."""

    def __init__(self) -> None:
        self.at_s = 100.0
        self.started = datetime(2090, 1, 31, 12, 0, tzinfo=UTC) - timedelta(seconds=self.at_s)

    def now_s(self) -> float:
        """Seconds."""
        return self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        """Nobody sleeps here."""
        raise NotImplementedError

    def wall(self) -> datetime:
        """A day that is far off, so that what ends then has not ended by the machine's own clock."""
        return self.started + timedelta(seconds=self.at_s)
