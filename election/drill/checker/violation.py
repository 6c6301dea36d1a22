"""A promise that a history breaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """Which rule, where in the history, about whom, and what was found there.

    `revision` is 0 for what is not about a change of etcd, and `at_s` where it is to be looked for in time.
    """

    rule: str
    revision: int
    agent: str
    text: str
    at_s: float = 0.0

    def __str__(self) -> str:
        where = f", revision {self.revision}" if self.revision else f", at {self.at_s:.3f} s"
        of = f", agent {self.agent}" if self.agent else ""
        return f"{self.rule}{where}{of}: {self.text}"
