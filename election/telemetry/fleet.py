"""What a view shows of elections and agents, as gauges."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from election.agent_records import AgentState
from election.clock import Clock
from election.errors import ElectionError
from election.reader import MAX_AGE_S, Answer
from election.records import Election

logger = logging.getLogger("election")

REFRESH_S = 1.0
"""How often the view is read. Several changes of leader in between count as one."""

_SHOWN_STATES = (AgentState.ALIVE, AgentState.DRAINING, AgentState.SUSPECT)


class Showing(Protocol):
    """What is read of a view."""

    async def elections(self) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for."""
        ...

    async def agents_by_state(self) -> Answer[Mapping[AgentState, int]]:
        """How many agents there are; read each second, it must not cost more with more of them."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the view showed when it had heard from etcd last; the clock is that of this process."""

    heard_at_s: float
    agents: Mapping[AgentState, int]
    elections: tuple[Election, ...]


class Fleet:
    """The instruments of a view, and the watch that feeds them.

    The view belongs to the event loop and the gauges are read in other threads, so they read a copy, which is
    replaced as a whole.
    """

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._clock = clock
        self._seen: _Seen | None = None
        self._changes = meter.create_counter("election.leader.changes", "{change}", "New leaders of an election")
        meter.create_observable_gauge("election.agents", [self._observe_agents], "{agent}", "Agents, by state")
        meter.create_observable_gauge(
            "election.candidates", [self._observe_candidates], "{candidate}", "Candidates of an election"
        )
        meter.create_observable_gauge(
            "election.leader.token",
            [self._observe_tokens],
            "1",
            "The leader's fencing token as a number, 0 when vacant",
        )
        meter.create_observable_gauge(
            "election.view.age", [self._observe_age], "s", "Time since the view has heard from etcd"
        )

    async def watch(self, view: Showing, elections: Sequence[str]) -> None:
        """Reads the view again and again, until cancelled."""
        try:
            while True:
                try:
                    seen = await self._read(view, elections)
                except ElectionError as error:  # the age says so too
                    logger.debug("telemetry cannot read the view: %s", error)
                else:
                    if self._seen:
                        self._count_changes(self._seen, seen)
                    self._seen = seen
                await self._clock.sleep_s(REFRESH_S)
        finally:
            self._seen = None

    async def _read(self, view: Showing, elections: Sequence[str]) -> _Seen:
        answer = await view.elections()
        rows = {row.name: row for row in answer.value}
        shown = tuple(rows.get(name, Election(name, 0, None)) for name in elections or rows)
        agents = (await view.agents_by_state()).value
        return _Seen(self._clock.now_s() - answer.source.age_s, agents, shown)

    def _count_changes(self, before: _Seen, after: _Seen) -> None:
        tokens = {election.name: election.leader.token for election in before.elections if election.leader}
        for election in after.elections:
            is_new = election.leader is not None and election.leader.token != tokens.get(election.name)
            self._changes.add(int(is_new), {"election": election.name})

    # --- called in other threads -----------------------------------------------------------------------------

    def _fresh(self) -> _Seen | None:
        """What was seen, unless it is too old to be shown: judged now, as the task that reads can be late."""
        seen = self._seen
        if seen is None or self._clock.now_s() - seen.heard_at_s > MAX_AGE_S:
            return None
        return seen

    def _observe_agents(self, _: CallbackOptions) -> Iterable[Observation]:
        if seen := self._fresh():
            for state in _SHOWN_STATES:
                yield Observation(seen.agents.get(state, 0), {"state": state.value})

    def _observe_candidates(self, _: CallbackOptions) -> Iterable[Observation]:
        if seen := self._fresh():
            for election in seen.elections:
                yield Observation(election.candidates, {"election": election.name})

    def _observe_tokens(self, _: CallbackOptions) -> Iterable[Observation]:
        if seen := self._fresh():
            for election in seen.elections:
                yield Observation(int(election.leader.token) if election.leader else 0, {"election": election.name})

    def _observe_age(self, _: CallbackOptions) -> Iterable[Observation]:
        if seen := self._seen:
            yield Observation(max(self._clock.now_s() - seen.heard_at_s, 0.0))
