"""The picture of time, as data that the page draws: lanes of bars and ticks, in seconds since the drill began."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from election.drill.checker import Verdict
from election.drill.checker.agents import until_set_back
from election.drill.checker.deadlines import stale_times
from election.drill.checker.harm import harms, pauses
from election.drill.checker.replay import outcomes
from election.drill.checker.terms import Term, terms
from election.drill.history import Fact, History
from election.drill.report.figures import span
from election.drill.report.lives import lives
from election.drill.report.vacancies import unfinished, vacancies
from election.drill.vocabulary import Done, Told

_ANSWERS = {Told.WROTE: "wrote", Told.REFUSED: "refused", Told.UNSURE: "unsure"}
_ROLES = ("etcd", "orchestrator", "blocking orchestrator", "register", "server", "reader", "collector")
"""From the top to the bottom; agents follow."""
_MOST_AGENTS = 80
_ETCD = "etcd"
_MARKS = {Done.SET_BACK: "etcd set back", Done.EPOCH_RAISED: "epoch raised", Done.ROBBED: "robbed"}


@dataclass
class Lane:
    """A row of the picture. A bar is [from, until, style, label, text], a tick is [at, style, text]."""

    name: str
    kind: str
    bars: list[list[Any]] = field(default_factory=list)
    ticks: list[list[Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        self.bars.sort(key=lambda bar: bar[0])
        self.ticks.sort(key=lambda tick: tick[0])
        return {"name": self.name, "kind": self.kind, "bars": self.bars, "ticks": self.ticks}


class Picture:
    """Made once, for `document`."""

    def __init__(self, history: History, verdicts: Sequence[Verdict]) -> None:
        self._history = history
        self._verdicts = verdicts
        self._began_at_s, self._ended_at_s = span(history)
        self._lives = lives(history, self._ended_at_s)
        self._lane_of = {life.process: life.slot for life in self._lives}
        self._lanes: dict[str, Lane] = {}
        self._terms = terms(history)
        self._colours: dict[str, int] = {}

    def document(self) -> dict[str, Any]:
        """Everything that is drawn, as JSON."""
        leader = Lane("leader", "leader")
        self._draw_etcd()
        self._draw_lives()
        self._draw_terms(leader)
        self._draw_writes()
        self._draw_readers()
        self._draw_collectors()
        lanes = sorted(self._lanes.values(), key=lambda lane: (_rank(lane.kind), lane.name))
        lanes = [leader, *lanes, *self._agents()]
        return {
            "end": self._at(self._ended_at_s),
            "lanes": [lane.document() for lane in lanes],
            "faults": self._faults([lane.name for lane in lanes]),
            "vacancies": self._vacancies(),
            "violations": [
                [self._at(each.at_s), verdict.invariant, each.text]
                for verdict in self._verdicts
                for each in verdict.violations
            ],
            "marks": [
                [self._at(fact.at_s), _MARKS[Done(fact.what)], fact.who]
                for fact in self._history.facts
                if fact.what in _MARKS
            ],
        }

    def _at(self, at_s: float) -> float:
        return round(min(max(at_s, self._began_at_s), self._ended_at_s) - self._began_at_s, 3)

    def _lane(self, process: str, kind: str) -> Lane:
        name = self._lane_of.get(process, process)
        return self._lanes.setdefault(name, Lane(name, kind))

    def _colour(self, process: str) -> str:
        lane = self._lane_of.get(process, process)
        return f"c{self._colours.setdefault(lane, len(self._colours)) % 8}"

    def _draw_etcd(self) -> None:
        """When etcd did not answer somebody who has asked it all the time, past the links that are cut."""
        probes = [fact for fact in self._history.facts if fact.what == Done.PROBED]
        if not probes:
            return
        lane = self._lane(_ETCD, _ETCD)
        lane.bars.append([self._at(probes[0].at_s), self._at(probes[-1].at_s), "life", "", "etcd is read"])
        down_s: float | None = None
        for probe in (*probes, None):
            if probe is not None and not probe.more["ok"]:
                down_s = probe.at_s if down_s is None else down_s
            elif down_s is not None:
                until_s = self._at(probe.more["ended_at_s"] if probe is not None else self._ended_at_s)
                lane.bars.append([self._at(down_s), until_s, "down", "", "etcd does not answer"])
                down_s = None

    # --- processes ---------------------------------------------------------------------------------------------

    def _draw_lives(self) -> None:
        for life in self._lives:
            if life.role in _ROLES and life.role != "reader":
                began_at_s, ended_at_s = self._at(life.began_at_s), self._at(life.ended_at_s)
                lane = self._lane(life.process, life.role)
                lane.bars.append([began_at_s, ended_at_s, "life", "", f"{life.process} ({life.role}) runs"])
                if life.end in ("killed", "ended by itself"):
                    lane.ticks.append([ended_at_s, "killed", f"{life.process} {life.end}"])
        for who, from_s, until_s in pauses(self._history):
            if self._lane_of.get(who, who) in self._lanes:
                text = f"{who} stands still"
                self._lane(who, "").bars.append([self._at(from_s), self._at(until_s), "paused", "", text])

    def _draw_terms(self, leader: Lane) -> None:
        ends = {
            (fact.more["process"], fact.more["token"]): fact
            for fact in self._history.told
            if fact.what == Told.TERM_LOST
        }
        for life in self._lives:
            if "orchestrator" in life.role:
                self._colour(life.process)
        for term in self._terms:
            lost = ends.get((term.process, str(term.token)))
            from_s, until_s = self._at(term.first_s), self._at(term.until_s)
            text = _term(term, lost)
            style = f"term {self._colour(term.process)}"
            lane = self._lane(term.process, "orchestrator")
            lane.bars.append([from_s, until_s, style, str(term.token), text])
            leader.bars.append([from_s, until_s, style, f"{term.candidate} {term.token}", text])
            if term.deadlines and (deadline_s := self._at(term.deadlines[-1][1])) > until_s:
                lane.bars.append(
                    [until_s, deadline_s, f"tail {self._colour(term.process)}", "", f"until its deadline: {text}"]
                )

    def _draw_writes(self) -> None:
        for fact in self._history.told:
            if fact.what in _ANSWERS:
                style, more = _ANSWERS[Told(fact.what)], fact.more
                text = f"{more['register']} {style} {more['n']} with {more['token']}"
                if why := more.get("why"):
                    text += f": {why}"
                self._lane(more["process"], "orchestrator").ticks.append([self._at(fact.at_s), style, text])

    # --- readers and collectors --------------------------------------------------------------------------------

    def _draw_readers(self) -> None:
        """What each reader was told by each server, for as long as the answer stayed the same."""
        leaders = {str(term.token): term.process for term in self._terms}
        answers: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
        for fact in self._history.told:
            if fact.what in (Told.SAW, Told.UNTOLD):
                process, via, server = (fact.more[name] for name in ("process", "via", "server"))
                name = f"{self._lane_of.get(process, process)} {via} {server}"
                token, colour = fact.more.get("token", ""), "vacant"
                if token:
                    colour = self._colour(leaders[token]) if token in leaders else "c7"
                kind = "untold" if fact.what == Told.UNTOLD else f"told {colour}"
                answer = answers[name]
                if not answer or answer[-1][1:] != (kind, token):
                    answer.append((fact.more.get("ended_at_s", fact.at_s), kind, token))
        for name, changes in answers.items():
            lane = self._lanes.setdefault(name, Lane(name, "reader"))
            untils_s = [*(at_s for at_s, _, _ in changes[1:]), self._ended_at_s]
            for (at_s, kind, token), until_s in zip(changes, untils_s, strict=True):
                text = "no answer" if kind == "untold" else f"told: {token or 'nobody leads'}"
                lane.bars.append([self._at(at_s), self._at(until_s), kind, token, text])

    def _draw_collectors(self) -> None:
        """Which collector leads, as etcd tells."""
        leading: tuple[str, int] | None = None
        since_s = 0.0
        for step, world in outcomes(until_set_back(self._history)):
            if (now := world.collector()) != leading:
                self._collects(leading, since_s, step.revision.seen_at_s)
                leading, since_s = now, step.revision.seen_at_s
        self._collects(leading, since_s, self._ended_at_s)

    def _collects(self, leading: tuple[str, int] | None, from_s: float, until_s: float) -> None:
        if leading is not None:
            name, revision = leading
            text = f"{name} collects, with token {revision}"
            self._lane(name, "collector").bars.append([self._at(from_s), self._at(until_s), "collects", "", text])

    # --- agents --------------------------------------------------------------------------------------------------

    def _agents(self) -> list[Lane]:
        """Alive, stale, and reaped, as etcd tells."""
        history = until_set_back(self._history)
        lanes: dict[str, Lane] = {}
        alive: dict[str, tuple[int, float]] = {}

        def end(agent: str, at_s: float) -> None:
            incarnation, since_s = alive.pop(agent)
            bar = [self._at(since_s), self._at(at_s), "alive", "", f"{agent} is alive as {incarnation}"]
            lanes[agent].bars.append(bar)

        seen_at_s = self._began_at_s
        for step, world in outcomes(history):
            seen_at_s = step.revision.seen_at_s
            for agent in step.agents:
                lanes.setdefault(agent, Lane(agent, "agent"))
                incarnation = world.incarnation(agent)
                if agent in alive and alive[agent][0] != incarnation:
                    end(agent, seen_at_s)
                if incarnation and agent not in alive:
                    alive[agent] = (incarnation, seen_at_s)
            for agent in {tombstone.agent for _, _, tombstone in step.tombstones()}:
                lane = lanes.setdefault(agent, Lane(agent, "agent"))
                lane.ticks.append([self._at(seen_at_s), "reaped", f"{agent} was reaped"])
        for agent in list(alive):
            end(agent, max(seen_at_s, min(self._ended_at_s, history.facts[-1].at_s if history.facts else seen_at_s)))
        for stale in stale_times(history):
            until_s = min(stale.ended_at_s, self._ended_at_s)
            text = (
                f"{stale.agent} is dead, and its state is there: {stale.end} after {until_s - stale.began_at_s:.1f} s"
            )
            lanes[stale.agent].bars.append([self._at(stale.began_at_s), self._at(until_s), "stale", "", text])
        return sorted(lanes.values(), key=lambda lane: (len(lane.name), lane.name))[:_MOST_AGENTS]

    # --- what was done -------------------------------------------------------------------------------------------

    def _faults(self, lanes: Sequence[str]) -> list[list[Any]]:
        """[from, until, row, name, on, number, lanes]: those that overlap are in different rows."""
        rows: list[float] = []
        found = []
        for harm in harms(self._history):
            from_s, until_s = self._at(harm.began_at_s), self._at(harm.healed_at_s)
            row = next((number for number, free_s in enumerate(rows) if free_s <= from_s), len(rows))
            rows[row : row + 1] = [until_s]
            hurt = harm.words | ({_ETCD} if harm.is_of_etcd else set())
            where = [number for number, name in enumerate(lanes) if name in hurt]
            found.append([from_s, until_s, row, harm.fault, harm.on, harm.number, where])
        return found

    def _vacancies(self) -> list[list[Any]]:
        found = vacancies(self._history)
        if (last := unfinished(self._history)) is not None:
            found.append(last)
        return [[self._at(each.began_at_s), self._at(each.ended_at_s), each.fault, each.number] for each in found]


def _term(term: Term, lost: Fact | None) -> str:
    text = f"{term.process} leads with {term.token} for {term.until_s - term.first_s:.2f} s"
    if lost is not None:
        text += f"; lost: {lost.more.get('reason', '')}, {lost.more.get('remained_s', 0.0):.2f} s before its deadline"
    return text + ("; killed" if term.killed else "")


def _rank(kind: str) -> int:
    return _ROLES.index("orchestrator" if kind == "blocking orchestrator" else kind) if kind in _ROLES else len(_ROLES)
