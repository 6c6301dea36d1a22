"""What a candidate does, as metrics and one span per term."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Span, StatusCode, Tracer

from election.clock import Clock
from election.errors import LossReason
from election.leadership import AttemptFailed, Following, Leading, Leaving, Renewed, State
from election.machine import Transition
from election.published import TooSlow

logger = logging.getLogger("election")

_RENEWAL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TERM_BUCKETS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)
_ATTEMPT_FAILURES = (LossReason.EXPIRED, LossReason.KEY_DELETED)
"""With every other reason somebody asked the candidate to leave the queue."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Standing(Protocol):
    """What is read of a candidate."""

    election: str
    id: str

    @property
    def is_leader(self) -> bool:
        """Whether it may act at the moment of the call, which comes from any thread."""
        ...

    def transitions(self) -> AsyncGenerator[Transition]:
        """The present state, and then every later one with the event that led to it."""
        ...


class Terms:
    """The instruments of candidates, and the watch that feeds them."""

    def __init__(self, meter: Meter, tracer: Tracer, clock: Clock) -> None:
        self.tracer = tracer
        self.clock = clock
        self.begun = meter.create_counter("election.terms", "{term}", "Terms of leadership that began")
        self.lost = meter.create_counter("election.losses", "{term}", "Terms of leadership that ended, by reason")
        self.failed = meter.create_counter(
            "election.attempts.failed", "{attempt}", "Attempts that ended without a term, unasked"
        )
        self.renewal_s = meter.create_histogram(
            "election.renewal.duration",
            "s",
            "Time that etcd took to confirm a renewal of the lease",
            explicit_bucket_boundaries_advisory=_RENEWAL_BUCKETS_S,
        )
        self.term_s = meter.create_histogram(
            "election.term.duration",
            "s",
            "Length of the terms that ended",
            explicit_bucket_boundaries_advisory=_TERM_BUCKETS_S,
        )
        meter.create_observable_gauge(
            "election.leader", [self._observe], "{leader}", "1 while this candidate leads, else 0"
        )
        self._candidates: tuple[Standing, ...] = ()  # replaced and never changed: other threads read it

    async def watch(self, candidate: Standing) -> None:
        """Follows a candidate until cancelled."""
        self._candidates = (*self._candidates, candidate)
        try:
            while True:
                record = _Record(self, candidate)
                try:
                    async with aclosing(candidate.transitions()) as transitions:
                        record.begin(await anext(transitions))
                        async for transition in transitions:
                            record.follow(transition)
                    return
                except TooSlow as error:
                    logger.warning("the telemetry of %s has a gap: %s", candidate.id, error)
                finally:
                    record.cut_off()
        finally:
            self._candidates = tuple(other for other in self._candidates if other is not candidate)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for candidate in self._candidates:
            labels = {"election": candidate.election, "candidate": candidate.id}
            yield Observation(int(candidate.is_leader), labels)


@dataclass(frozen=True, slots=True)
class _Term:
    span: Span
    began_at: datetime


class _Record:
    """One candidate's past, as far as the next transition needs it."""

    def __init__(self, terms: Terms, candidate: Standing) -> None:
        self._terms = terms
        self._labels = {"election": candidate.election, "candidate": candidate.id}
        self._state: State | None = None
        self._term: _Term | None = None

    def begin(self, present: Transition) -> None:
        """Takes the present state; the event that led to it was before the watch."""
        # Prometheus cannot see the first increase of a counter that was not there before it.
        self._terms.begun.add(0, self._labels)
        self._terms.failed.add(0, self._labels)
        for reason in LossReason:
            self._terms.lost.add(0, {**self._labels, "reason": reason.value})
        self._state = present.state
        if isinstance(present.state, Leading):
            self._begin_term(present.at, present.state)

    def follow(self, transition: Transition) -> None:
        """Records one transition."""
        if isinstance(transition.event, Renewed):
            self._terms.renewal_s.record(transition.event.latency_s, self._labels)
        before, self._state = self._state, transition.state
        match before, self._state:
            case Leaving(), Leaving():
                pass
            case _, Leading() as state if self._term is None:
                self._begin_term(transition.at, state)
            case _, Leaving() as loss if self._term:
                self._end_term(self._term, transition.at, loss)
            case _, Leaving(reason=reason) if reason in _ATTEMPT_FAILURES:
                self._terms.failed.add(1, self._labels)
            case _, Following() if isinstance(transition.event, AttemptFailed):  # not even a lease was granted
                self._terms.failed.add(1, self._labels)

    def cut_off(self) -> None:
        """Ends the span of a term that is still under way: whatever follows is not seen."""
        if self._term:
            self._term.span.end(nanoseconds(max(self._terms.clock.wall(), self._term.began_at)))
            self._term = None

    def _begin_term(self, at: datetime, state: Leading) -> None:
        self._terms.begun.add(1, self._labels)
        span = self._terms.tracer.start_span(
            "election.term",
            Context(),
            attributes={**self._labels, "token": str(state.token)},
            start_time=nanoseconds(at),
        )
        self._term = _Term(span, at)

    def _end_term(self, term: _Term, noticed_at: datetime, loss: Leaving) -> None:
        # A loss that was noticed too late happened at the deadline: the candidate did not lead after it.
        late = timedelta(seconds=max(-loss.margin_s, 0.0))
        ended_at = max(noticed_at - late, term.began_at)
        self._terms.lost.add(1, {**self._labels, "reason": loss.reason.value})
        self._terms.term_s.record((ended_at - term.began_at).total_seconds(), self._labels)
        term.span.set_attribute("reason", loss.reason.value)
        if loss.reason is LossReason.WORK_FAILED and loss.error is not None:
            term.span.record_exception(loss.error, timestamp=nanoseconds(ended_at))
            term.span.set_status(StatusCode.ERROR, str(loss.error))
        term.span.end(nanoseconds(ended_at))
        self._term = None


def nanoseconds(at: datetime) -> int:
    """Nanoseconds since 1970, in whole numbers: a float would lose the microseconds."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000
