"""Draws who led, what was written, and what readers were told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from election.drill.checker.terms import Term, terms
from election.drill.history import Fact, History
from election.drill.report.canvas import Canvas, Lane
from election.drill.report.vacancies import reigns
from election.drill.vocabulary import Done, Told

_ANSWERS = {Told.WROTE: "wrote", Told.REFUSED: "refused", Told.UNSURE: "unsure"}
_UNKNOWN = "c7"
"""The colour of a leader that has told nothing of itself."""


def draw_terms(canvas: Canvas, history: History) -> None:
    """Each term in the lane of its process, with what was left until its deadline, and all of them in one lane."""
    leader = canvas.lane("leader", "leader")
    if history.settings.hurts:
        _draw_guests(canvas, leader, history)
    ends = {(fact.more["process"], fact.more["token"]): fact for fact in history.told if fact.what == Told.TERM_LOST}
    for term in terms(history):
        token, colour = str(term.token), canvas.colour(term.process)
        text = _text(term, ends.get((term.process, token)))
        lane = canvas.lane(term.process, "orchestrator")
        canvas.bar(lane, term.first_s, term.until_s, f"term {colour}", text, token)
        canvas.bar(leader, term.first_s, term.until_s, f"term {colour}", text, f"{term.candidate} {token}")
        if term.deadlines and term.deadlines[-1][1] > term.until_s:
            canvas.bar(lane, term.until_s, term.deadlines[-1][1], f"tail {colour}", f"to its deadline: {text}")
    for fact in history.facts:
        if fact.what == Done.ROBBED:
            text = f"a stranger deletes the {fact.more['how']} of {fact.who} ({fact.more['token']})"
            canvas.tick(canvas.lane(fact.who, "orchestrator"), fact.at_s, "robbed", text)


def _text(term: Term, lost: Fact | None) -> str:
    text = f"{term.process} leads with {term.token} for {term.until_s - term.first_s:.2f} s"
    if lost is not None:
        text += f"; lost: {lost.more.get('reason', '')}, {lost.more.get('remained_s', 0.0):.2f} s before its deadline"
    return text + ("; killed" if term.killed else "")


def _draw_guests(canvas: Canvas, leader: Lane, history: History) -> None:
    """Who leads where the candidates tell nothing, as etcd tells."""
    for reign in reigns(history):
        token, lane = str(reign.token), canvas.lane(reign.candidate, "orchestrator")
        text = f"{reign.candidate} leads with {token} for {reign.ended_at_s - reign.began_at_s:.2f} s, as etcd tells"
        style = f"term {canvas.colour(reign.candidate)}"
        canvas.bar(lane, reign.began_at_s, reign.ended_at_s, style, text, token)
        canvas.bar(leader, reign.began_at_s, reign.ended_at_s, style, text, f"{reign.candidate} {token}")


def draw_writes(canvas: Canvas, history: History) -> None:
    """Each write in the lane of who wrote, by how it was answered."""
    for fact in history.told:
        if fact.what in _ANSWERS:
            style, more = _ANSWERS[Told(fact.what)], fact.more
            why = f": {more['why']}" if "why" in more else ""
            text = f"{more['register']}: {style} {more['n']} with {more['token']}{why}"
            canvas.tick(canvas.lane(more["process"], "orchestrator"), fact.at_s, style, text)


def draw_readers(canvas: Canvas, history: History) -> None:
    """What each reader was told by each server, for as long as the answer stayed the same."""
    colours = {str(reign.token): canvas.colour(reign.process) for reign in reigns(history)}
    ends_s = {life.process: life.ended_at_s for life in canvas.lives}
    told: dict[tuple[str, ...], list[Fact]] = defaultdict(list)
    for fact in history.told:
        if fact.what in (Told.SAW, Told.UNTOLD):
            told[fact.more["process"], fact.more["via"], fact.more["server"]].append(fact)
    for (process, via, server), facts in told.items():
        lane = canvas.lane(f"{canvas.slots.get(process, process)} {via} {server}", "reader")
        for first, until_s in _unchanged(facts, ends_s.get(process, canvas.ended_at_s)):
            token = first.more.get("token", "")
            if first.what == Told.UNTOLD:
                style, text = "untold", f"no answer: {first.more.get('why', '')}"
            else:
                style = f"told {colours.get(token, _UNKNOWN)}" if token else "told vacant"
                text = f"told: {first.more.get('leader', '')} {token}" if token else "told: nobody leads"
            canvas.bar(lane, first.more["ended_at_s"], until_s, style, text, token)


def _unchanged(facts: list[Fact], until_s: float) -> Iterator[tuple[Fact, float]]:
    """Each answer that differs from the one before, and until when the answers stayed the same."""
    first = facts[0]
    for fact in facts[1:]:
        if (fact.what, fact.more.get("token")) != (first.what, first.more.get("token")):
            yield first, fact.more["ended_at_s"]
            first = fact
    yield first, max(until_s, first.more["ended_at_s"])
