"""How long what the dead leave lies around, and whether that is too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from election.drill.checker.health import Interval, well
from election.drill.checker.replay import outcomes
from election.drill.checker.violation import Violation
from election.drill.checker.writes import process_of
from election.drill.history import History
from election.drill.vocabulary import Done


@dataclass(frozen=True, slots=True)
class Stale:
    """A time in which there was state of an agent that was not alive.

    `began_at_s` is when the process was killed, where that is known, and when etcd's change was seen otherwise.
    `unheard` is one that began without the end of a lease, with state that somebody put: collectors find it when they
    list everything. It ended between `ended_after_s` and `ended_at_s`; `end` is `reaped`, `back`, or `open` at the end
    of the history.
    """

    agent: str
    revision: int
    began_at_s: float
    ended_after_s: float
    ended_at_s: float
    unheard: bool = False
    end: str = "open"

    @property
    def lay_s(self) -> float:
        """How long it was there."""
        return self.ended_at_s - self.began_at_s


@dataclass(frozen=True, slots=True)
class Collected:
    """A stale agent that was reaped while all was well, and how long that took from when it could have been."""

    agent: str
    took_s: float


def stale_times(history: History) -> list[Stale]:
    """All of them, in the order in which they began."""
    killed_at_s = {fact.who: fact.at_s for fact in history.facts if fact.what == Done.KILLED}
    begun: dict[str, Stale] = {}
    ended: list[Stale] = []
    process: dict[str, str] = {}
    written_s = 0.0
    for step, world in outcomes(history):
        seen_at_s = step.revision.seen_at_s
        written_s = max(written_s, step.written_s)
        reaped = {each.agent for _, _, each in step.tombstones()}
        for agent in step.agents:
            if agent in world.alive:
                process[agent] = process_of(agent, world.alive[agent])
            if agent in begun and not world.is_stale(agent):
                end = "reaped" if agent in reaped else "back"
                ended.append(replace(begun.pop(agent), ended_after_s=written_s, ended_at_s=seen_at_s, end=end))
            elif agent not in begun and world.is_stale(agent):
                began_at_s = min(killed_at_s.get(process.pop(agent, ""), seen_at_s), seen_at_s)
                unheard = step.liveness(agent) is None
                begun[agent] = Stale(agent, step.number, began_at_s, float("inf"), float("inf"), unheard)
    return sorted([*ended, *begun.values()], key=lambda each: each.began_at_s)


def overdue(history: History) -> Iterator[Violation]:
    """What lay around for longer than the bound, within one time in which all was well."""
    settings = history.settings
    intervals = well(history)
    for stale in stale_times(history):
        bound_s = settings.bound_s + (settings.reconcile_s if stale.unheard else 0)
        lay_s = max((_lay_s(stale, interval) for interval in intervals), default=0.0)
        if lay_s > bound_s:
            text = f"its state lay around for {lay_s:.1f} s while all was well; the bound is {bound_s:g} s"
            yield Violation("overdue", stale.revision, stale.agent, text, stale.began_at_s)


def collected(history: History) -> list[Collected]:
    """All that was reaped while all was well, of what collectors have heard."""
    found = []
    intervals = well(history)
    for stale in stale_times(history):
        for interval in intervals:
            if (
                stale.end == "reaped"
                and not stale.unheard
                and interval.began_at_s <= stale.ended_at_s <= interval.ended_at_s
            ):
                began_at_s = max(stale.began_at_s, interval.began_at_s)
                found.append(Collected(stale.agent, stale.ended_at_s - began_at_s))
    return found


def _lay_s(stale: Stale, interval: Interval) -> float:
    """For how long of the interval it was certainly there."""
    return min(stale.ended_after_s, interval.ended_at_s) - max(stale.began_at_s, interval.began_at_s)
