"""What a collector does, as metrics and one span per reap."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import Tracer

from election.clock import Clock
from election.collector import CollectorEvent, Reaped, ReapFailed
from election.published import TooSlow
from election.records import Tombstone
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

    async def watch(self, collector: Collecting) -> None:
        """Follows a collector until cancelled."""
        labels = {"collector": collector.candidate.id}
        self._reaped.add(0, labels)
        self._failed.add(0, labels)
        while True:
            try:
                async with aclosing(collector.events()) as events:
                    await anext(events)  # what it did before the watch
                    async for event in events:
                        self._record(event, labels)
                return
            except TooSlow as error:
                logger.warning("the telemetry of the collector has a gap: %s", error)

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
