"""Draws who collected, and which agents were alive, stale and reaped, as etcd tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from election.drill.checker.agents import until_set_back
from election.drill.checker.deadlines import stale_times
from election.drill.checker.replay import outcomes
from election.drill.history import History
from election.drill.report.canvas import Canvas


def draw_fleet(canvas: Canvas, history: History) -> None:
    """Until etcd is set back, and from when its revisions were seen again."""
    before = until_set_back(history)
    after = replace(history, revisions=history.later)
    before_s = max((fact.at_s for fact in before.facts), default=canvas.ended_at_s)
    for part, until_s in ((before, before_s if history.later else canvas.ended_at_s), (after, canvas.ended_at_s)):
        _draw_collectors(canvas, part, until_s)
        _draw_agents(canvas, part, until_s)


def _draw_collectors(canvas: Canvas, history: History, until_s: float) -> None:
    leading: tuple[str, int] | None = None
    since_s = 0.0

    def end(at_s: float) -> None:
        if leading is not None:
            text = f"{leading[0]} collects, with token {leading[1]}"
            canvas.bar(canvas.lane(leading[0], "collector"), since_s, at_s, "collects", text)

    for step, world in outcomes(history):
        if (now := world.collector()) != leading:
            end(step.revision.seen_at_s)
            leading, since_s = now, step.revision.seen_at_s
    end(until_s)


def _draw_agents(canvas: Canvas, history: History, until_s: float) -> None:
    for agent, incarnation, from_s, to_s in _lives(history, until_s):
        canvas.bar(canvas.lane(agent, "agent"), from_s, to_s, "alive", f"{agent} is alive as {incarnation}")
    for stale in stale_times(history):
        to_s = min(stale.ended_at_s, until_s)
        text = f"{stale.agent} is dead, and its state is there; {stale.end} after {to_s - stale.began_at_s:.1f} s"
        canvas.bar(canvas.lane(stale.agent, "agent"), stale.began_at_s, to_s, "stale", text)
        if stale.end == "reaped":
            canvas.tick(canvas.lane(stale.agent, "agent"), to_s, "reaped", f"{stale.agent} was reaped")


def _lives(history: History, until_s: float) -> Iterator[tuple[str, int, float, float]]:
    """Every agent, its incarnation, and from when until when etcd held that."""
    alive: dict[str, tuple[int, float]] = {}
    for step, world in outcomes(history):
        seen_at_s = step.revision.seen_at_s
        for agent in step.agents:
            incarnation = world.incarnation(agent)
            if agent in alive and alive[agent][0] != incarnation:
                yield agent, *alive.pop(agent), seen_at_s
            if incarnation and agent not in alive:
                alive[agent] = (incarnation, seen_at_s)
    for agent, life in alive.items():
        yield agent, *life, until_s
