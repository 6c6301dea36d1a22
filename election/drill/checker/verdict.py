"""What is said of one invariant: it held, it was violated, or nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from election.drill.checker.violation import Violation


class State(StrEnum):
    """UNKNOWN is no success: a drill that has proved nothing has failed."""

    HELD = "held"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant: `examined` counts what it was held against; `why` says why it is unknown."""

    invariant: str
    state: State
    examined: int
    violations: tuple[Violation, ...] = ()
    why: str = ""

    @classmethod
    def of(cls, invariant: str, examined: int, violations: Iterable[Violation], holes: Iterable[str] = ()) -> Verdict:
        """Violated by any violation, whatever is missing; unknown with a hole, or when nothing was examined."""
        found, missing = tuple(violations), list(holes)
        if not examined:
            missing.append("there was nothing to examine")
        state = State.VIOLATED if found else State.UNKNOWN if missing else State.HELD
        return cls(invariant, state, examined, found, "; ".join(missing) if state is State.UNKNOWN else "")


def all_held(verdicts: Iterable[Verdict]) -> bool:
    """Whether the drill has succeeded."""
    return all(verdict.state is State.HELD for verdict in verdicts)
