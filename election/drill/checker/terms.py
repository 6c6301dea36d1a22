"""The terms of leadership as the processes that led have told them: for how long each was certainly believed."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from election.drill.history import Fact, History
from election.drill.vocabulary import Done, Told
from election.token import Token

_TOLD_LATE_S = 0.5
"""By so much a process may write down a new deadline after it counts on it: other threads may act before."""
_NEVER_S = float("inf")
_OF_TERMS = (Told.TERM_BEGAN, Told.DEADLINE, Told.ACTED, Told.TERM_ENDED, Told.TERM_LOST)


@dataclass(frozen=True, slots=True)
class Term:
    """A term of one process.

    It is certain that the process took itself for the leader from `first_s` to `last_s`; it may have done so for a
    little longer. `until_s` is when it had certainly stopped, and infinity where nothing is known of that.
    """

    process: str
    candidate: str
    token: Token
    first_s: float
    last_s: float
    until_s: float
    deadlines: Sequence[tuple[float, float]]
    """When each was written down, and the latest deadline that was known then."""
    acts: Sequence[Fact]
    killed: bool

    def deadline_s(self, at_s: float) -> float:
        """The last deadline that it can have known at a moment."""
        return _known_s(self.deadlines, at_s + _TOLD_LATE_S)


def terms(history: History) -> list[Term]:
    """All terms in which a process has certainly believed, in the order in which they began.

    One whose work began after its deadline, in a process that was paused just then, never was: nothing may be done
    in it, which is told by its acts alone.
    """
    lines: dict[tuple[str, Token], list[Fact]] = defaultdict(list)
    for fact in history.told:
        if fact.what in _OF_TERMS:
            lines[fact.more["process"], Token.parse(fact.more["token"])].append(fact)
    deaths = _deaths(history)
    found = (_term(process, token, told, deaths) for (process, token), told in lines.items())
    return sorted((term for term in found if term is not None), key=lambda term: term.first_s)


def _deaths(history: History) -> dict[str, list[tuple[float, float]]]:
    """When each process was told to die, and when it was gone; a name may be used again after that."""
    killed: dict[str, float] = {}
    deaths: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for fact in history.facts:
        if fact.what == Done.KILLED:
            killed[fact.who] = fact.at_s
        elif fact.what == Done.GONE:
            deaths[fact.who].append((killed.pop(fact.who, fact.at_s), fact.at_s))
    for who, at_s in killed.items():
        deaths[who].append((at_s, _NEVER_S))
    return deaths


def _term(
    process: str, token: Token, told: Sequence[Fact], deaths: dict[str, list[tuple[float, float]]]
) -> Term | None:
    acts = [fact for fact in told if fact.what == Told.ACTED]
    began = next((fact for fact in told if fact.what == Told.TERM_BEGAN), None)
    if began is None and not acts:
        return None
    deadlines = _deadlines(told)
    start_s = min(fact.at_s for fact in told if fact is began or fact.what == Told.ACTED)
    believed = began is not None and began.at_s < _known_s(deadlines, began.at_s + _TOLD_LATE_S)
    if not believed and not acts:
        return None
    first_s = began.at_s if began is not None and believed else acts[0].more["ended_at_s"]
    killed_s, gone_s = next((each for each in deaths.get(process, ()) if each[1] > start_s), (_NEVER_S, _NEVER_S))
    ended_s = min((fact.at_s for fact in told if fact.what == Told.TERM_ENDED), default=_NEVER_S)
    lost = next((fact for fact in told if fact.what == Told.TERM_LOST), None)
    last_s = max([first_s, *(fact.at_s for fact in acts)])
    if lost is not None:  # without that line, nobody knows when it has noticed
        noticed_s = min(lost.more.get("noticed_at_s", lost.at_s), lost.at_s, ended_s)
        last_s = max(last_s, _held_s(deadlines, noticed_s))
    until_s = min(ended_s, gone_s, deadlines[-1][1] if deadlines else _NEVER_S)
    candidate = next((fact.who for fact in told if fact.who), process)
    return Term(process, candidate, token, first_s, last_s, max(until_s, last_s), deadlines, acts, killed_s <= ended_s)


def _deadlines(told: Sequence[Fact]) -> list[tuple[float, float]]:
    """Every deadline that was moved on, when it was written down."""
    found: list[tuple[float, float]] = []
    for fact in told:
        if fact.what in (Told.TERM_BEGAN, Told.DEADLINE):
            latest_s = max(fact.more["deadline_s"], found[-1][1] if found else 0.0)
            found.append((fact.at_s, latest_s))
    return found


def _known_s(deadlines: Sequence[tuple[float, float]], at_s: float) -> float:
    """The latest deadline that was written down until a moment; minus infinity before the first."""
    known = bisect_right(deadlines, at_s, key=lambda each: each[0])
    return deadlines[known - 1][1] if known else -_NEVER_S


def _held_s(deadlines: Sequence[tuple[float, float]], until_s: float) -> float:
    """The end of the time that the deadlines have covered without a gap; at most `until_s`."""
    held_s = -_NEVER_S
    for at_s, deadline_s in deadlines:
        if at_s >= until_s or (held_s > -_NEVER_S and at_s > held_s):
            break
        held_s = deadline_s
    return min(held_s, until_s)
