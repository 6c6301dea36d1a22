"""What a collector does, as metrics and one span per reap; and whether its breaker is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Tracer

from election.agent_records import Tombstone
from election.breaker import Breaker
from election.clock import Clock
from election.collector import BreakerClosed, BreakerOpened, CollectorEvent, Reaped, ReapFailed
from election.leadership import Leaving
from election.published import TooSlow
from election.telemetry.terms import Standing, nanoseconds

logger = logging.getLogger("election")


class Collecting(Protocol):
    """What is read of a collector."""

    @property
    def candidate(self) -> Standing:
        """How it stands in the election of collectors."""
        ...

    def events(self) -> AsyncGenerator[CollectorEvent | None]:
        """The last thing that it did, or None, and then every later one."""
        ...


class Reaps:
    """The instruments of collectors, and the watch that feeds them."""

    def __init__(self, meter: Meter, tracer: Tracer, clock: Clock) -> None:
        self._tracer = tracer
        self._clock = clock
        self._reaped = meter.create_counter("election.reaps", "{agent}", "Agents whose state was collected")
        self._failed = meter.create_counter(
            "election.reap.failures", "{failure}", "Failures to collect the state of an agent"
        )
        meter.create_observable_gauge(
            "election.collector.breaker",
            [self._observe],
            "1",
            "1 while the breaker is open and nothing is reaped, else 0",
        )
        # Replaced and never changed: other threads read it.
        self._breakers: Mapping[str, tuple[Standing, Breaker]] = {}

    async def watch(self, collector: Collecting) -> None:
        """Follows a collector until cancelled."""
        standing = collector.candidate
        labels = {"collector": standing.id}
        self._reaped.add(0, labels)
        self._failed.add(0, labels)
        self._show(standing, Breaker())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forget(standing))
                while True:
                    try:
                        async with aclosing(collector.events()) as events:
                            self._show_breaker(standing, await anext(events))  # what it did before the watch
                            async for event in events:
                                self._record(event, labels)
                                self._show_breaker(standing, event)
                    except TooSlow as error:
                        logger.warning("the telemetry of the collector has a gap: %s", error)
        finally:
            self._breakers = {name: shown for name, shown in self._breakers.items() if name != standing.id}

    async def _forget(self, standing: Standing) -> None:
        """A collector that does not lead is not told that the breaker closes; in its next term it looks anew."""
        while True:
            try:
                async with aclosing(standing.transitions()) as transitions:
                    async for transition in transitions:
                        if isinstance(transition.state, Leaving):
                            self._show(standing, Breaker())
            except TooSlow:
                continue

    def _show_breaker(self, standing: Standing, event: CollectorEvent | None) -> None:
        if isinstance(event, BreakerOpened | BreakerClosed):
            self._show(standing, event.breaker)

    def _show(self, standing: Standing, breaker: Breaker) -> None:
        self._breakers = {**self._breakers, standing.id: (standing, breaker)}

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        """Only the collector that leads knows."""
        for standing, breaker in self._breakers.values():
            if standing.is_leader:
                reason = breaker.reason.value if breaker.open and breaker.reason else ""
                yield Observation(int(breaker.open), {"collector": standing.id, "reason": reason})

    def _record(self, event: CollectorEvent | None, labels: dict[str, str]) -> None:
        match event:
            case Reaped(tombstone):
                self._reaped.add(1, labels)
                self._trace(tombstone)
            case ReapFailed():
                self._failed.add(1, labels)

    def _trace(self, tombstone: Tombstone) -> None:
        """One span, from the tombstone's time, which is before the transaction, to the news of it."""
        now = self._clock.wall()
        began_at = min(tombstone.reaped_at or now, now)
        attributes: dict[str, str | int] = {
            "agent": tombstone.agent,
            "incarnation": tombstone.incarnation,
            "token": str(tombstone.token),
            "collector": tombstone.collector,
        }
        span = self._tracer.start_span(
            "election.reap", Context(), attributes=attributes, start_time=nanoseconds(began_at)
        )
        span.end(nanoseconds(now))
