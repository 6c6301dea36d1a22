"""What was measured: one series of numbers, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PERCENTILES = (50, 90, 99, 100)
"""What every table and document shows; 100 is the maximum."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One series, in milliseconds, in the order in which it was measured."""

    name: str
    values_ms: Sequence[float]

    def percentile_ms(self, percent: float) -> float:
        """The smallest value that so many percent of the values do not exceed: a value that was measured.

        So the 99th percentile of 100 values is the second largest, and that of 10 the largest.
        """
        ranked = sorted(self.values_ms)
        return ranked[max(math.ceil(len(ranked) * percent / 100), 1) - 1]

    def document(self) -> dict[str, Any]:
        """The series as JSON, every value with it."""
        return {
            "name": self.name,
            "samples": len(self.values_ms),
            **{f"p{percent}_ms": round(self.percentile_ms(percent), 3) for percent in PERCENTILES[:-1]},
            "max_ms": round(max(self.values_ms), 3),
            "values_ms": [round(value, 3) for value in self.values_ms],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one series compares to another, percentile by percentile; `goal` is the most that each should be."""

    name: str
    ours: Samples
    other: Samples
    percents: tuple[int, ...]
    goal: float | None = None

    def of(self, percent: int) -> float:
        """The one's percentile over the other's."""
        return self.ours.percentile_ms(percent) / self.other.percentile_ms(percent)

    @property
    def met(self) -> bool:
        """Whether every ratio is within the goal."""
        return self.goal is None or all(self.of(percent) <= self.goal for percent in self.percents)

    def document(self) -> dict[str, Any]:
        """The ratios as JSON."""
        ratios = {f"p{percent}": round(self.of(percent), 3) for percent in self.percents}
        goal = {} if self.goal is None else {"goal": self.goal, "met": self.met}
        return {"name": self.name, **ratios, **goal}


class Bound(StrEnum):
    """On which side of its goal a figure should be."""

    AT_MOST = "or less"
    AT_LEAST = "or more"


@dataclass(frozen=True, slots=True)
class Figure:
    """A single number, by its name and unit, and what it should be."""

    name: str
    value: float
    goal: float
    bound: Bound

    @property
    def met(self) -> bool:
        """Whether the number is on the right side of its goal."""
        return self.value <= self.goal if self.bound is Bound.AT_MOST else self.value >= self.goal

    def document(self) -> dict[str, Any]:
        """The figure as JSON."""
        goal = {"goal": self.goal, "bound": self.bound.value, "met": self.met}
        return {"name": self.name, "value": round(self.value, 3), **goal}


@dataclass(frozen=True, slots=True)
class Measured:
    """One part of the bench: its series, how they compare, and single numbers by their name and unit."""

    title: str
    series: tuple[Samples, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    figures: tuple[Figure, ...] = ()

    def document(self) -> dict[str, Any]:
        """The part as JSON."""
        return {
            "title": self.title,
            "series": [each.document() for each in self.series],
            "ratios": [each.document() for each in self.ratios],
            "numbers": {name: round(number, 3) for name, number in self.numbers},
            "figures": [each.document() for each in self.figures],
        }
