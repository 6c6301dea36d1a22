"""The picture of time, as data that the page draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from election.drill.checker import Verdict
from election.drill.checker.harm import harms, pauses
from election.drill.history import History
from election.drill.report.canvas import ROLES, Canvas, Lane
from election.drill.report.fleet import draw_fleet
from election.drill.report.reigns import draw_readers, draw_terms, draw_writes
from election.drill.report.vacancies import unfinished, vacancies
from election.drill.vocabulary import Done

_ETCD = "etcd"
_MARKS = {Done.SET_BACK: "etcd set back", Done.EPOCH_RAISED: "epoch raised"}
_BLOCKING = "blocking orchestrator"
"""Has the lane of an orchestrator."""


def picture(history: History, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that is drawn, as JSON; times are in seconds since the drill began."""
    canvas = Canvas(history)
    canvas.lane("leader", "leader")
    _draw_etcd(canvas, history)
    draw_terms(canvas, history)
    draw_writes(canvas, history)
    draw_readers(canvas, history)
    draw_fleet(canvas, history)
    _draw_processes(canvas, history)
    lanes = canvas.lanes
    open_end = unfinished(history)
    return {
        "end": canvas.at(canvas.ended_at_s),
        "lanes": [lane.document() for lane in lanes],
        "faults": _faults(canvas, history, lanes),
        "vacancies": [
            [canvas.at(each.began_at_s), canvas.at(each.ended_at_s), each.fault, each.number]
            for each in (*vacancies(history), *([open_end] if open_end else []))
        ],
        "violations": [
            [canvas.at(each.at_s), verdict.invariant, each.text] for verdict in verdicts for each in verdict.violations
        ],
        "marks": [[canvas.at(fact.at_s), _MARKS[Done(fact.what)]] for fact in history.facts if fact.what in _MARKS],
    }


def _draw_etcd(canvas: Canvas, history: History) -> None:
    """When etcd did not answer somebody who has asked it all the time, past the links that are cut."""
    probes = [fact for fact in history.facts if fact.what == Done.PROBED]
    if not probes:
        return
    lane = canvas.lane(_ETCD, _ETCD)
    canvas.bar(lane, probes[0].at_s, probes[-1].at_s, "life", "etcd is read")
    down_s: float | None = None
    for probe in probes:
        if not probe.more["ok"]:
            down_s = probe.at_s if down_s is None else down_s
        elif down_s is not None:
            canvas.bar(lane, down_s, probe.more["ended_at_s"], "down", "etcd does not answer")
            down_s = None
    if down_s is not None:
        canvas.bar(lane, down_s, canvas.ended_at_s, "down", "etcd does not answer")


def _draw_processes(canvas: Canvas, history: History) -> None:
    """When each process was there, and when it stood still."""
    stood_still = pauses(history)
    for life in canvas.lives:
        role = "orchestrator" if life.role == _BLOCKING else life.role
        if role == "reader" or role not in ROLES:
            continue  # a reader has lanes for what it was told
        lane = canvas.lane(life.process, role)
        if life.role != "agent":  # has a lane of what etcd tells of it
            canvas.bar(lane, life.began_at_s, life.ended_at_s, "life", f"{life.process} ({life.role}) runs")
        if life.end in ("killed", "ended by itself"):
            canvas.tick(lane, life.ended_at_s, "killed", f"{life.process}: {life.end}")
        for process, from_s, until_s in stood_still:
            if process == life.process:
                canvas.bar(lane, from_s, until_s, "paused", f"{process} stands still")


def _faults(canvas: Canvas, history: History, lanes: Sequence[Lane]) -> list[list[Any]]:
    """[from, until, row, name, on, number, lanes]: those that overlap are in different rows."""
    rows: list[float] = []
    found = []
    for harm in harms(history):
        from_s, until_s = canvas.at(harm.began_at_s), canvas.at(harm.healed_at_s)
        row = next((number for number, free_s in enumerate(rows) if free_s <= from_s), len(rows))
        rows[row : row + 1] = [until_s]
        hurt = harm.words | ({_ETCD} if harm.is_of_etcd else set())
        where = [number for number, lane in enumerate(lanes) if lane.name in hurt]
        found.append([from_s, until_s, row, harm.fault, harm.on, harm.number, where])
    return found
