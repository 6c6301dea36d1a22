"""Pauses between attempts: doubling, bounded, with jitter, from a generator that can be seeded."""

from __future__ import annotations

import random


class Backoff:
    """The pauses of one series of failures.

    Each pause is drawn from between half of the nominal one and the whole, so that candidates that lost at the
    same moment do not come back at the same moment.
    """

    def __init__(self, first_s: float, longest_s: float, rng: random.Random) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._rng = rng
        self._nominal_s = first_s

    def next_s(self) -> float:
        """The next pause, in seconds."""
        nominal_s = self._nominal_s
        self._nominal_s = min(nominal_s * 2, self._longest_s)
        return nominal_s * (0.5 + self._rng.random() / 2)

    def reset(self) -> None:
        """Begins again with the first pause: something succeeded."""
        self._nominal_s = self._first_s
