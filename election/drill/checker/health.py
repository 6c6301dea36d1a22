"""When all was well: etcd served, no member was stopped, a proven collector led and ran, and the breaker was closed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from election.drill.checker.replay import outcomes
from election.drill.history import Fact, History
from election.drill.vocabulary import Done

_UNSEEN_S = 1.5
"""Nobody knows whether all was well when etcd was not read for so long, though it should have been."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A time in which all was well without a break."""

    began_at_s: float
    ended_at_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Who collects from a moment on, and under which token; and whether the breaker is open."""

    at_s: float
    collector: str | None
    token: int
    breaker_is_open: bool


@dataclass
class _Health:
    """What is known at one moment."""

    etcd_since_s: float | None = None
    disturbed_at_s: float = 0.0
    probed_at_s: float = 0.0
    unwell: bool = True
    standing: Standing = field(default_factory=lambda: Standing(0.0, None, 0, breaker_is_open=False))
    paused: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def take(self, event: Fact | Standing) -> float | None:
        """Learns something; returns when a time in which all was well ended at the latest, if it did."""
        if isinstance(event, Standing):
            self.standing = event
            return event.at_s
        match event.what:
            case Done.DISTURBED:
                self.disturbed_at_s, self.unwell, self.etcd_since_s = event.at_s, event.more["unwell"], None
                return event.at_s
            case Done.PROBED:
                return self._probed(event)
            case Done.KILLED | Done.LEAVES | Done.PAUSED:
                (self.paused if event.what == Done.PAUSED else self.ended).add(event.who)
                return event.at_s if event.who == self.standing.collector else None
            case Done.RESUMED:
                self.paused.discard(event.who)
        return None

    def _probed(self, event: Fact) -> float | None:
        seen_s, self.probed_at_s = self.probed_at_s, event.more["ended_at_s"]
        if not event.more["ok"]:
            self.etcd_since_s = None
            return event.at_s
        if self.etcd_since_s is not None and event.at_s > seen_s + _UNSEEN_S:  # the whole machine has stood still
            self.etcd_since_s = event.more["ended_at_s"]
            return seen_s
        if self.etcd_since_s is None and not self.unwell and event.at_s > self.disturbed_at_s:
            self.etcd_since_s = event.more["ended_at_s"]
        return None

    @property
    def is_well(self) -> bool:
        """Whether all is well."""
        standing = self.standing
        collects = standing.collector is not None and standing.collector not in self.paused | self.ended
        return self.etcd_since_s is not None and collects and not standing.breaker_is_open


def well(history: History) -> list[Interval]:
    """The times in which all was well, in order."""
    events: list[Fact | Standing] = [*history.facts, *_standings(history)]
    events.sort(key=lambda event: event.at_s)
    health = _Health()
    since_s: float | None = None
    intervals = []
    for event in events:
        ended_at_s = health.take(event)
        if since_s is not None and ended_at_s is not None:
            if ended_at_s > since_s:
                intervals.append(Interval(since_s, ended_at_s))
            since_s = None
        if since_s is None and health.is_well:
            since_s = max(event.at_s, health.etcd_since_s or 0.0)
    if since_s is not None and events[-1].at_s > since_s:
        intervals.append(Interval(since_s, events[-1].at_s))
    return intervals


def _standings(history: History) -> Iterator[Standing]:
    """Every change of who collects or of the breaker, when the observer has seen it."""
    before: tuple[str | None, int, bool] | None = None
    for step, world in outcomes(history):
        collector, token = world.collector() or (None, 0)
        if collector is not None and world.has_given_up(collector):
            collector = None
        now = (collector, token, world.breaker_is_open())
        if now != before:
            before = now
            yield Standing(step.revision.seen_at_s, *now)
