"""One leads, nothing is done after the deadline, and tokens grow: what the processes that led have told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from election.drill.checker.harm import Harm, harms, pauses, slots, times
from election.drill.checker.terms import Term, terms
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import Fact, History
from election.drill.vocabulary import Done
from election.token import Token

ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW = "one leader", "no act after the deadline", "tokens grow"
ROBBED_S = 5.0
"""So soon a leader whose key or lease a stranger has deleted learns of it, unless something else is wrong."""

_KNOWS_S = 3.0
"""In so long a process that has started has seen the leader alive."""


def leaders(history: History, holes: Sequence[str]) -> Iterator[Verdict]:
    """The three verdicts on terms."""
    told = terms(history)
    acts = sum(len(term.acts) for term in told)
    yield Verdict.of(ONE_LEADER, len(told), _overlaps(history, told), holes)
    yield Verdict.of(NO_ACT_AFTER, acts, _late_acts(told), holes)
    yield Verdict.of(TOKENS_GROW, len(told), _shrunk(told), holes)


def _overlaps(history: History, told: Sequence[Term]) -> Iterator[Violation]:
    """A term was certainly believed after a later one had certainly begun."""
    exempt = _Exempt(history)
    for number, term in enumerate(told):
        for later in told[number + 1 :]:
            if later.first_s >= term.last_s:
                break
            if not exempt.may_overlap(term, later):
                yield Violation(
                    ONE_LEADER,
                    0,
                    "",
                    f"{term.process} led with {term.token} for {term.last_s - later.first_s:.3f} s or longer "
                    f"after {later.process} had begun with {later.token}",
                    later.first_s,
                )


class _Exempt:
    """What nobody can prevent: a leader that is robbed learns of it late, and so does one whose etcd is set back.

    Those who have seen it alive wait for it, but who comes later knows of nobody.
    """

    def __init__(self, history: History) -> None:
        self._robberies: dict[Token, Fact] = {
            Token.parse(fact.more["token"]): fact for fact in history.facts if fact.what == Done.ROBBED
        }
        self._set_back_s = times(history.facts, Done.SET_BACK)
        self._woken_s = times(history.facts, Done.WOKEN)
        self._started_s = {fact.who: fact.at_s for fact in history.facts if fact.what == Done.STARTED}
        self._harms = harms(history)
        self._pauses = pauses(history)
        self._slots = slots(history)

    def may_overlap(self, term: Term, later: Term) -> bool:
        """Whether an earlier term may be believed after the later one has begun; no longer than its deadline."""
        if any(term.first_s <= at_s <= later.first_s for at_s in self._set_back_s):
            return True
        robbed = self._robberies.get(term.token)
        if robbed is not None and robbed.at_s <= later.first_s:
            return term.last_s <= robbed.at_s + ROBBED_S or self._is_hurt(term, robbed.at_s)
        robbed_s = (at_s for at_s in self._woken_s if term.first_s <= at_s <= later.first_s <= at_s + ROBBED_S)
        return any(self._started_s.get(later.process, 0.0) > at_s - _KNOWS_S for at_s in robbed_s)

    def _is_hurt(self, term: Term, robbed_at_s: float) -> bool:
        """Whether it was hurt otherwise since it was robbed: it may have stood still, or been cut off."""
        until_s = term.last_s
        if any(who == term.process and at_s <= until_s and robbed_at_s <= end_s for who, at_s, end_s in self._pauses):
            return True
        robbery = _latest(self._harms, robbed_at_s)
        others = frozenset(self._slots.values()) - {term.candidate}
        return any(
            each is not robbery and each.overlaps(robbed_at_s, until_s) and not self._is_elsewhere(each, term, others)
            for each in self._harms
        )

    def _is_elsewhere(self, harm: Harm, term: Term, others: frozenset[str]) -> bool:
        """Whether a fault is done to other processes only."""
        return term.candidate not in harm.words and not harm.words.isdisjoint(others)


def _latest(found: Sequence[Harm], at_s: float) -> Harm | None:
    return max((each for each in found if each.began_at_s <= at_s), key=lambda each: each.began_at_s, default=None)


def _late_acts(told: Sequence[Term]) -> Iterator[Violation]:
    """`check` has passed although it was asked after the last deadline."""
    for term in told:
        for act in term.acts:
            late_s = act.at_s - term.deadline_s(act.more["ended_at_s"])
            if late_s > 0:
                text = f"{term.process} acted with {term.token} {late_s:.3f} s after its deadline"
                yield Violation(NO_ACT_AFTER, 0, "", text, act.at_s)


def _shrunk(told: Sequence[Term]) -> Iterator[Violation]:
    highest: Term | None = None
    users: dict[Token, Term] = {}
    for term in told:
        before = users.setdefault(term.token, term)
        if before is not term:
            text = f"{term.process} led with {term.token}, which was that of {before.process}"
            yield Violation(TOKENS_GROW, 0, "", text, term.first_s)
        elif highest is not None and term.token < highest.token:
            text = f"{term.process} began with {term.token} after {highest.process} had begun with {highest.token}"
            yield Violation(TOKENS_GROW, 0, "", text, term.first_s)
        if highest is None or term.token > highest.token:
            highest = term
