"""How fast the collector may reap."""

from __future__ import annotations

from election.clock import Clock


class Pace:
    """A token bucket: what is not used within a second is not saved up."""

    def __init__(self, rate_per_s: float | None, clock: Clock) -> None:
        self._rate_per_s = rate_per_s
        self._clock = clock
        self._most = max(rate_per_s or 0.0, 1.0)
        self._saved = 1.0
        self._at_s = clock.now_s()

    def allows(self) -> int | None:
        """How many may be reaped now; None for any number."""
        if self._rate_per_s is None:
            return None
        now_s = self._clock.now_s()
        self._saved = min(self._saved + (now_s - self._at_s) * self._rate_per_s, self._most)
        self._at_s = now_s
        return int(self._saved)

    def spend(self, number: int) -> None:
        """So many are being reaped."""
        self._saved -= number

    def next_s(self) -> float:
        """Seconds until one more may be reaped."""
        return 0.0 if self._rate_per_s is None else max((1.0 - self._saved) / self._rate_per_s, 0.0)
