"""Judges the history of a drill: one verdict for each invariant."""

from __future__ import annotations

from collections.abc import Iterator

from election.drill.checker.agents import agents, left_behind, until_set_back
from election.drill.checker.fences import fencing
from election.drill.checker.guests import guests
from election.drill.checker.leaders import leaders
from election.drill.checker.progress import progress
from election.drill.checker.readings import readings
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import History
from election.drill.vocabulary import Done

NOTHING_LEFT = "nothing left over"
_ORCHESTRATORS = ("orchestrator", "blocking orchestrator")
_START_S = 15.0
"""A process that has lived for so long has said something."""


def check(history: History) -> list[Verdict]:
    """The verdict on every invariant; a pure function of the history."""
    if history.settings.hurts:
        return [*guests(history), readings(history, list(_silent(history, "reader"))), _remains(history)]
    led = list(_silent(history, *_ORCHESTRATORS))
    return [
        *leaders(history, led),
        *fencing(history, led),
        readings(history, list(_silent(history, "reader"))),
        *agents(history),
        progress(history, led),
        _remains(history),
    ]


def _silent(history: History, *roles: str) -> Iterator[str]:
    """The processes of these roles of which no line is there."""
    spoke = {fact.more["process"] for fact in history.told}
    ends_s = {fact.who: fact.at_s for fact in history.facts if fact.what in (Done.KILLED, Done.LEAVES, Done.ENDED)}
    last_s = max((fact.at_s for fact in history.facts), default=0.0)
    for fact in history.facts:
        if fact.what != Done.STARTED or fact.more["role"] not in roles or fact.who in spoke:
            continue
        if (lived_s := ends_s.get(fact.who, last_s) - fact.at_s) >= _START_S:
            yield f"{fact.who} has said nothing in {lived_s:.0f} s"


def _remains(history: History) -> Verdict:
    """What the runner has found at the end, and what is in etcd then."""
    told = [fact for fact in history.facts if fact.what == Done.LEFT_OVER]
    found = [Violation(NOTHING_LEFT, 0, "", text, fact.at_s) for fact in told for text in fact.more["texts"]]
    holes = [f"{len(told)} times it was told what is left over"] if len(told) > 1 else []
    return Verdict.of(NOTHING_LEFT, len(told), [*found, *left_behind(until_set_back(history))], holes)
