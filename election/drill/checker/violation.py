"""A promise that a history breaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """Which rule, where in the history, about whom, and what was found there."""

    rule: str
    revision: int
    agent: str
    text: str

    def __str__(self) -> str:
        of = f", agent {self.agent}" if self.agent else ""
        return f"{self.rule}, revision {self.revision}{of}: {self.text}"
