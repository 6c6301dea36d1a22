"""When nobody led, and which fault was the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from election.drill.checker.guests import changes
from election.drill.checker.harm import harms
from election.drill.checker.terms import terms
from election.drill.history import History
from election.drill.vocabulary import Done
from election.token import Token

NO_FAULT = "no fault"
"""What a vacancy is put down to that no fault explains."""


@dataclass(frozen=True, slots=True)
class Reign:
    """A time in which somebody led: as the process has told, or as etcd tells where the process tells nothing."""

    candidate: str
    process: str
    token: Token
    began_at_s: float
    ended_at_s: float


@dataclass(frozen=True, slots=True)
class Vacancy:
    """From the end of what one leader believed until the work of the next began.

    `fault` was in effect when the term ended, or had been shortly before: one that was done to the leader, or else to
    etcd; the latest of them, where there are more. That is a guess where several come together.
    """

    before: Reign
    began_at_s: float
    ended_at_s: float
    fault: str
    number: int

    @property
    def lasted_s(self) -> float:
        """How long nobody led."""
        return self.ended_at_s - self.began_at_s


def reigns(history: History) -> list[Reign]:
    """All of them, in the order in which they began."""
    if history.settings.hurts:
        return list(_of_guests(history))
    return [Reign(term.candidate, term.process, term.token, term.first_s, term.until_s) for term in terms(history)]


def vacancies(history: History) -> list[Vacancy]:
    """All that ended, in order."""
    reasons = _Reasons(history)
    found = []
    last: Reign | None = None
    for reign in reigns(history):
        if last is not None and reign.began_at_s > last.ended_at_s:
            found.append(Vacancy(last, last.ended_at_s, reign.began_at_s, *reasons.of(last)))
        if last is None or reign.ended_at_s > last.ended_at_s:
            last = reign
    return found


def unfinished(history: History) -> Vacancy | None:
    """The one that lasted when the drill told its processes to leave."""
    last = max(reigns(history), key=lambda reign: reign.ended_at_s, default=None)
    over_at_s = _over_at_s(history)
    if last is None or last.ended_at_s >= over_at_s:
        return None
    return Vacancy(last, last.ended_at_s, over_at_s, *_Reasons(history).of(last))


def _of_guests(history: History) -> Iterator[Reign]:
    """Those of candidates that are not of the drill."""
    before: tuple[str, Token, float] | None = None
    for at_s, leading in changes(history):
        if before is not None:
            candidate, token, began_at_s = before
            yield Reign(candidate, candidate, token, began_at_s, at_s)
        before = None if leading.token is None else (leading.candidate, leading.token, at_s)
    if before is not None:
        candidate, token, began_at_s = before
        yield Reign(candidate, candidate, token, began_at_s, _over_at_s(history))


class _Reasons:
    """Renewals that have failed cost a term only when its deadline has come: a TTL after the fault at the most."""

    def __init__(self, history: History) -> None:
        self._harms = harms(history)
        self._late_s = history.settings.candidate_ttl_s

    def of(self, reign: Reign) -> tuple[str, int]:
        """The fault that explains the end of a term, and its number: one of its process first, and then the latest."""
        near = [
            each
            for each in self._harms
            if each.began_at_s <= reign.ended_at_s <= each.healed_at_s + self._late_s
            and (reign.candidate in each.words or each.is_of_etcd or not each.words)
        ]
        latest = max(near, key=lambda each: (reign.candidate in each.words, each.began_at_s), default=None)
        return (latest.fault, latest.number) if latest else (NO_FAULT, 0)


def _over_at_s(history: History) -> float:
    """When the processes were told to leave after the last fault; or else when the last line was written."""
    healed_s = max((fact.at_s for fact in history.facts if fact.what in (Done.HEALED, Done.ALL_HEALED)), default=0.0)
    leaves = (fact.at_s for fact in history.facts if fact.what == Done.LEAVES and fact.at_s >= healed_s)
    lines = [*history.facts[-1:], *history.told[-1:]]
    return min(leaves, default=max((fact.at_s for fact in lines), default=0.0))
