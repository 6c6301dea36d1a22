"""Who may write and delete an agent's state, and for how long an agent may take itself for alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from election.agent_records import AgentRecord
from election.drill.checker.harm import times
from election.drill.checker.replay import Step, World, object_of
from election.drill.checker.violation import Violation
from election.drill.history import Change, History, Said, Stored
from election.drill.vocabulary import Done
from election.drill.workload.agent import PROCESS
from election.keys import REGISTRATION

STRANGER = "stranger"
"""Who writes the values that the drill puts by hand."""
_TAKES_OVER_S = 30.0
_WAKES_S = 2.0
"""So soon after it goes on has a member of etcd learned that it leads no more, and all have seen what it did."""


@dataclass
class Writes:
    """Judges every change of a state; call `judge` for each revision in order, and `beliefs` after the last."""

    history: History
    _gone_at_s: dict[tuple[str, int], float] = field(default_factory=dict)
    _evicted: set[tuple[str, int]] = field(default_factory=set)
    _cut_short: set[tuple[str, int]] = field(default_factory=set)
    _reaped: set[tuple[str, int]] = field(default_factory=set)
    _confirmed: set[tuple[str, str, float]] = field(default_factory=set)

    def __post_init__(self) -> None:
        said = self.history.said
        self._deletes = Counter((each.agent, each.incarnation, each.key) for each in said if each.what == "deletes")
        self._leaves = {(each.agent, each.process) for each in said if each.what == "leaves"}
        self._takeovers = [
            (fact.more["slot"], fact.at_s)
            for fact in self.history.facts
            if fact.what == Done.STARTED and fact.more.get("takeover")
        ]
        self._woken_s = times(self.history.facts, Done.WOKEN)
        self._evicted = {
            (each.who, each.more["incarnation"]) for each in self.history.facts if each.what == Done.EVICTED
        }

    def judge(self, world: World, step: Step) -> Iterator[Violation]:
        """The violations of one revision."""
        reaped = {each.agent: each.incarnation for _, _, each in step.tombstones()}
        for agent in step.agents:
            for name, change in step.states(agent).items():
                if change.after is None and agent not in reaped:
                    text = self._deleted(world, step, agent, name)
                elif change.after is not None:
                    text = self._written(world, step, agent, name, change.after)
                else:
                    text = None
                if text is not None:
                    yield Violation("write", step.number, agent, text)
            self._note(step, agent)
        self._reaped |= set(reaped.items())

    def _deleted(self, world: World, step: Step, agent: str, name: str) -> str | None:
        incarnation = world.incarnation(agent)
        if not incarnation:
            return f"{name!r} of a dead agent was deleted, and no tombstone was put"
        if _vanishes(step.liveness(agent)):
            process = process_of(agent, world.alive[agent])
            return None if (agent, process) in self._leaves else f"{name!r} was deleted, and {process} never left"
        if self._deletes[agent, incarnation, name] <= 0:
            return f"{name!r} was deleted, and incarnation {incarnation} never said so"
        self._deletes[agent, incarnation, name] -= 1
        return None

    def _written(self, world: World, step: Step, agent: str, name: str, after: Stored) -> str | None:
        value = object_of(after.value)
        by, incarnation, at_s = value.get("by"), value.get("incarnation"), value.get("at_s")
        if by == STRANGER:
            return None
        liveness = step.liveness(agent)
        if liveness is not None and liveness.after is not None:  # what it keeps is put back when it registers
            registers = process_of(agent, liveness.after)
            fits = name == REGISTRATION or by == registers
            return None if fits else f"{name!r} of {by} was written when {registers} registered"
        if name == REGISTRATION:
            return None if _vanishes(liveness) else "its registration was written by nobody who registers or leaves"
        living = world.alive.get(agent)
        if isinstance(at_s, float):
            self._confirmed.add((agent, name, at_s))
        if living is not None and (by, incarnation) == (process_of(agent, living), living.created):
            return None
        after_end = ", which was reaped before" if (agent, incarnation) in self._reaped else ""
        alive = f"{process_of(agent, living)} as incarnation {living.created}" if living else "nobody"
        return f"{name!r} was written by {by} as incarnation {incarnation}{after_end}; alive was {alive}"

    def _note(self, step: Step, agent: str) -> None:
        liveness = step.liveness(agent)
        if liveness is not None and liveness.before is not None and _ends(liveness):
            incarnation = agent, liveness.before.created
            self._gone_at_s[incarnation] = seen_at_s = step.revision.seen_at_s
            if any(who == agent and 0 < seen_at_s - at_s < _TAKES_OVER_S for who, at_s in self._takeovers):
                self._evicted.add(incarnation)
            if any(0 <= seen_at_s - at_s < _WAKES_S for at_s in self._woken_s):
                self._cut_short.add(incarnation)

    def beliefs(self) -> Iterator[Violation]:
        """What processes took themselves for, and what they were told, that etcd contradicts.

        An incarnation whose liveness key somebody else has deleted cannot know at once, and is believed. So is one
        whose lease etcd itself has ended too soon, as a leader of its own does that stood still: until the time is over
        that the last renewal has given it.
        """
        last = self.history.revisions[-1].number if self.history.revisions else 0
        for said in self.history.said:
            incarnation = said.agent, said.incarnation
            late_s = said.at_s - self._gone_at_s.get(incarnation, float("inf"))
            bound_s = self.history.settings.ttl_s if incarnation in self._cut_short else 0.0
            if said.what == "acted" and late_s > bound_s and incarnation not in self._evicted:
                yield _belief(last, said, f"took itself for alive {late_s:.3f} s after its liveness key was gone")
            if said.what == "wrote" and (said.agent, said.key, said.at_s) not in self._confirmed:
                yield _belief(last, said, f"was told that {said.key!r} was written at {said.at_s:.3f}, and it was not")


def process_of(agent: str, liveness: Stored) -> str:
    """The process that has registered with this liveness key."""
    return AgentRecord.decode(agent, liveness.value).labels.get(PROCESS, "")


def _vanishes(liveness: Change | None) -> bool:
    return liveness is not None and liveness.after is None


def _ends(liveness: Change) -> bool:
    before, after = liveness.before, liveness.after
    return before is not None and (after is None or after.created != before.created)


def _belief(revision: int, said: Said, text: str) -> Violation:
    return Violation(
        "belief", revision, said.agent, f"{said.process} as incarnation {said.incarnation} {text}", said.at_s
    )
