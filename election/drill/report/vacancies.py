"""When nobody led, and which fault was the reason."""

from __future__ import annotations

from dataclasses import dataclass

from election.drill.checker.harm import harms
from election.drill.checker.terms import Term, terms
from election.drill.history import History
from election.drill.vocabulary import Done

NO_FAULT = "no fault"
"""What a vacancy is put down to that no fault explains."""


@dataclass(frozen=True, slots=True)
class Vacancy:
    """From the end of what one leader believed until the work of the next began.

    `fault` was in effect when the term ended, or had been shortly before: one that was done to the leader, or else to
    etcd; the latest of them, where there are more. That is a guess where several come together.
    """

    before: Term
    began_at_s: float
    ended_at_s: float
    fault: str
    number: int

    @property
    def lasted_s(self) -> float:
        """How long nobody led."""
        return self.ended_at_s - self.began_at_s


def vacancies(history: History) -> list[Vacancy]:
    """All that ended, in order."""
    told, reasons = terms(history), _Reasons(history)
    found = []
    last: Term | None = None
    for term in told:
        if last is not None and term.first_s > last.until_s:
            fault, number = reasons.of(last)
            found.append(Vacancy(last, last.until_s, term.first_s, fault, number))
        if last is None or term.until_s > last.until_s:
            last = term
    return found


def unfinished(history: History) -> Vacancy | None:
    """The one that lasted when the drill told its processes to leave."""
    told = terms(history)
    last = max(told, key=lambda term: term.until_s, default=None)
    over_at_s = _over_at_s(history)
    if last is None or last.until_s >= over_at_s:
        return None
    fault, number = _Reasons(history).of(last)
    return Vacancy(last, last.until_s, over_at_s, fault, number)


class _Reasons:
    """Renewals that have failed cost a term only when its deadline has come: a TTL after the fault at the most."""

    def __init__(self, history: History) -> None:
        self._harms = harms(history)
        self._late_s = history.settings.candidate_ttl_s

    def of(self, term: Term) -> tuple[str, int]:
        """The fault that explains the end of a term, and its number: one of its process first, and then the latest."""
        near = [
            each
            for each in self._harms
            if each.began_at_s <= term.until_s <= each.healed_at_s + self._late_s
            and (term.candidate in each.words or each.is_of_etcd or not each.words)
        ]
        latest = max(near, key=lambda each: (term.candidate in each.words, each.began_at_s), default=None)
        return (latest.fault, latest.number) if latest else (NO_FAULT, 0)


def _over_at_s(history: History) -> float:
    """When the processes were told to leave after the last fault; or else when the last line was written."""
    healed_s = max((fact.at_s for fact in history.facts if fact.what in (Done.HEALED, Done.ALL_HEALED)), default=0.0)
    leaves = (fact.at_s for fact in history.facts if fact.what == Done.LEAVES and fact.at_s >= healed_s)
    lines = [*history.facts[-1:], *history.told[-1:]]
    return min(leaves, default=max((fact.at_s for fact in lines), default=0.0))
