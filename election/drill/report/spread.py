"""Times that were measured, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Durations, from the shortest to the longest; there is at least one where a percentile is asked for."""

    values_s: tuple[float, ...]

    @classmethod
    def of(cls, values_s: Iterable[float]) -> Spread:
        """Of durations in any order."""
        return cls(tuple(sorted(values_s)))

    def __len__(self) -> int:
        return len(self.values_s)

    def percentile_s(self, percent: float) -> float:
        """The smallest duration that so many percent do not exceed: one that was measured; 100 is the longest."""
        return self.values_s[max(math.ceil(len(self.values_s) * percent / 100), 1) - 1]

    def document(self) -> dict[str, Any]:
        """As JSON, every value with it."""
        if not self.values_s:
            return {"count": 0}
        shown = {"p50_s": 50, "p90_s": 90, "p99_s": 99, "max_s": 100}
        return {
            "count": len(self),
            **{name: round(self.percentile_s(percent), 3) for name, percent in shown.items()},
            "values_s": [round(value, 3) for value in self.values_s],
        }
