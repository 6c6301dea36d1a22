"""What is watched arrives as metrics and spans; whoever receives them cannot hurt what is watched."""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from election.agent_records import AgentState, Tombstone
from election.breaker import Breaker, BreakerReason
from election.collector import BreakerClosed, BreakerOpened, CollectorEvent, Reaped, ReapFailed, Suspected
from election.errors import ConfigError, LossReason, ViewStale
from election.leadership import (
    AttemptFailed,
    Campaigning,
    DeadlinePassed,
    Event,
    Following,
    Leading,
    LeaseGranted,
    Leaving,
    Proved,
    Released,
    Renewed,
    State,
    Stopped,
    WorkFailed,
)
from election.machine import Transition
from election.published import TooSlow
from election.reader import MAX_AGE_S, Answer, Source
from election.records import Election, Leader
from election.telemetry import Export, Telemetry, export
from election.token import Token

START = datetime(2026, 1, 1, tzinfo=UTC)
STANDS = {"election": "scheduler", "candidate": "a"}
CAMPAIGNING = Campaigning(lease=1, deadline_s=10.0, created=7, is_oldest=True)
LEADING = Leading(lease=1, deadline_s=10.0, token=Token(0, 7))


class SteppedClock:
    """Time that a test moves; every sleeper waits until the test wakes it."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.sleepers: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    def now_s(self) -> float:
        return self.at_s

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.at_s)

    async def sleep_s(self, duration_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.put_nowait(woken)
        await woken


class FakeCandidate:
    """Goes through given transitions, and then stands still."""

    election = "scheduler"
    id = "a"

    def __init__(self, *transitions: Transition | Exception) -> None:
        self.is_leader = False
        self.all_read = asyncio.Event()
        self._transitions = iter(transitions)

    async def transitions(self) -> AsyncGenerator[Transition]:
        for transition in self._transitions:
            if isinstance(transition, Exception):
                raise transition
            yield transition
        self.all_read.set()
        await asyncio.Event().wait()


class FakeCollector:
    """Does given things, and then nothing more."""

    def __init__(self, *events: CollectorEvent | None) -> None:
        self.candidate = FakeCandidate(at(0, None, Following()))
        self.candidate.election = "_collector"
        self.all_read = asyncio.Event()
        self._events = events

    async def events(self) -> AsyncGenerator[CollectorEvent | None]:
        for event in self._events:
            yield event
        self.all_read.set()
        await asyncio.Event().wait()


class FakeView:
    """Answers what a test sets, or raises."""

    def __init__(self) -> None:
        self.error: ViewStale | None = None
        self.source = Source(cluster_id=1, revision=1, age_s=0.0)
        self.rows: list[Election] = []
        self.fleet: dict[AgentState, int] = {}

    async def elections(self) -> Answer[tuple[Election, ...]]:
        if self.error:
            raise self.error
        return Answer(tuple(self.rows), self.source)

    async def agents_by_state(self) -> Answer[Mapping[AgentState, int]]:
        return Answer(self.fleet, self.source)


class Recorded:
    """A Telemetry whose metrics and spans stay in memory."""

    def __init__(self) -> None:
        self.clock = SteppedClock()
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self._export = Export([self._reader], [SimpleSpanProcessor(self._spans)])
        self.telemetry = Telemetry(self._export, clock=self.clock)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The attributes and data points of one metric, collected now."""
        data = self._reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [(dict(point.attributes or {}), point) for metric in metrics for point in metric.data.data_points]

    def value(self, name: str, **attributes: str) -> float | None:
        """One value of a counter or gauge; None when there is none."""
        found = [point.value for labels, point in self.points(name) if labels == attributes]
        assert len(found) <= 1
        return found[0] if found else None

    def histogram(self, name: str, **attributes: str) -> HistogramDataPoint:
        [found] = [point for labels, point in self.points(name) if labels == attributes]
        assert isinstance(found, HistogramDataPoint)
        return found


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.telemetry.close()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests has no say."""
    for signal in ("METRICS_", "TRACES_", ""):
        for name in ("ENDPOINT", "PROTOCOL", "TIMEOUT", "COMPRESSION", "HEADERS"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{signal}{name}", raising=False)
    for name in ("SDK_DISABLED", "SERVICE_NAME", "RESOURCE_ATTRIBUTES", "METRICS_EXPORTER", "TRACES_EXPORTER"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)


def at(seconds: float, event: Event | None, state: State) -> Transition:
    return Transition(START + timedelta(seconds=seconds), event, state)


def leaving(
    reason: LossReason, *, token: int = 7, margin_s: float = 5.0, error: BaseException | None = None
) -> Leaving:
    return Leaving(
        lease=1,
        token=Token(0, token) if token else None,
        reason=reason,
        noticed_at_s=5.0,
        margin_s=margin_s,
        error=error,
    )


def nanoseconds(seconds: float) -> int:
    return int(START.timestamp()) * 10**9 + round(seconds * 10**9)


@asynccontextmanager
async def running(*watches: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(watch) for watch in watches]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result


async def watch(recorded: Recorded, *transitions: Transition | Exception) -> None:
    """Follows a candidate up to its last transition, and then stops watching."""
    candidate = FakeCandidate(*transitions)
    async with running(recorded.telemetry.watch_candidate(candidate)):
        await candidate.all_read.wait()


A_TERM = (
    at(0, None, Following()),
    at(1, LeaseGranted(1, 10.0), Campaigning(lease=1, deadline_s=10.0)),
    at(2, Proved(2.0, Token(0, 7)), LEADING),
)


# --- candidates --------------------------------------------------------------------------------------------------


async def test_a_term_is_counted_timed_and_traced(recorded: Recorded) -> None:
    """From its proof to its loss, with the token and the reason."""
    await watch(recorded, *A_TERM, at(62.000001, Stopped(5.0, LossReason.RESIGNED), leaving(LossReason.RESIGNED)))

    assert recorded.value("election.terms", **STANDS) == 1
    assert recorded.value("election.losses", **STANDS, reason="resigned") == 1
    assert recorded.value("election.losses", **STANDS, reason="expired") == 0
    duration = recorded.histogram("election.term.duration", **STANDS)
    assert duration.count == 1
    assert duration.sum == pytest.approx(60.000001)
    [span] = recorded.spans
    assert span.name == "election.term"
    assert dict(span.attributes or {}) == {**STANDS, "token": "0-7", "reason": "resigned"}
    assert (span.start_time, span.end_time) == (nanoseconds(2), nanoseconds(62.000001))
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None


async def test_work_that_failed_is_an_error_of_its_span(recorded: Recorded) -> None:
    """With the exception itself."""
    error = ValueError("no such shard")
    await watch(recorded, *A_TERM, at(5, WorkFailed(5.0, error), leaving(LossReason.WORK_FAILED, error=error)))

    [span] = recorded.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "no such shard"
    [event] = span.events
    assert (event.name, event.timestamp) == ("exception", nanoseconds(5))
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ValueError"


async def test_a_loss_that_was_noticed_late_happened_at_the_deadline(recorded: Recorded) -> None:
    """A process that was stopped for a minute did not lead in it."""
    await watch(recorded, *A_TERM, at(70, DeadlinePassed(70.0), leaving(LossReason.EXPIRED, margin_s=-60.0)))

    assert recorded.spans[0].end_time == nanoseconds(10)
    assert recorded.histogram("election.term.duration", **STANDS).sum == 8.0


async def test_a_clock_that_was_set_back_makes_no_negative_term(recorded: Recorded) -> None:
    """The times of transitions are times of day."""
    await watch(recorded, *A_TERM, at(-3600, DeadlinePassed(1.0), leaving(LossReason.EXPIRED)))

    assert recorded.spans[0].end_time == recorded.spans[0].start_time
    assert recorded.histogram("election.term.duration", **STANDS).sum == 0.0


async def test_every_renewal_is_timed_once(recorded: Recorded) -> None:
    """Also one that arrives after the term; not the one that was before the watch."""
    gone = leaving(LossReason.RESIGNED)
    await watch(
        recorded,
        at(0, Renewed(9.0, 8.0), CAMPAIGNING),
        at(1, Renewed(10.0, 0.003), CAMPAIGNING),
        at(2, Proved(2.0, Token(0, 7)), LEADING),
        at(3, Renewed(12.0, 0.25), LEADING),
        at(4, Stopped(4.0, LossReason.RESIGNED), gone),
        at(5, Renewed(14.0, 0.5), gone),
    )

    renewals = recorded.histogram("election.renewal.duration", **STANDS)
    assert renewals.count == 3
    assert renewals.sum == pytest.approx(0.753)
    assert recorded.value("election.losses", **STANDS, reason="resigned") == 1


async def test_an_attempt_that_failed_is_no_lost_term(recorded: Recorded) -> None:
    """It is counted for itself, once, and an attempt that was given up on request is not counted."""
    error = OSError("unreachable")
    failed = leaving(LossReason.KEY_DELETED, token=0, error=error)
    await watch(
        recorded,
        at(0, None, Following()),
        at(1, LeaseGranted(1, 10.0), CAMPAIGNING),
        at(2, AttemptFailed(2.0, error), failed),
        at(3, Renewed(10.0, 0.1), failed),
        at(4, Released(), Following()),
        at(5, LeaseGranted(2, 20.0), CAMPAIGNING),
        at(6, Stopped(6.0, LossReason.RESIGNED), leaving(LossReason.RESIGNED, token=0)),
    )

    assert recorded.value("election.attempts.failed", **STANDS) == 1
    assert recorded.value("election.terms", **STANDS) == 0
    assert recorded.value("election.losses", **STANDS, reason="key_deleted") == 0
    assert recorded.spans == ()


async def test_two_terms_are_two_spans(recorded: Recorded) -> None:
    """Nothing of the first is left in the second."""
    await watch(
        recorded,
        *A_TERM,
        at(3, Stopped(3.0, LossReason.STEPPED_DOWN), leaving(LossReason.STEPPED_DOWN)),
        at(4, Released(), Following()),
        at(5, Proved(5.0, Token(0, 9)), replace(LEADING, token=Token(0, 9))),
        at(6, DeadlinePassed(6.0), leaving(LossReason.EXPIRED, token=9)),
    )

    assert recorded.value("election.terms", **STANDS) == 2
    attributes = [dict(span.attributes or {}) for span in recorded.spans]
    assert [(one["token"], one["reason"]) for one in attributes] == [("0-7", "stepped_down"), ("0-9", "expired")]


async def test_a_term_under_way_when_the_watch_ends_is_traced_up_to_there(recorded: Recorded) -> None:
    """Its reason is not known, and it is no loss."""
    recorded.clock.at_s = 30.0
    await watch(recorded, at(20, Renewed(30.0, 0.1), LEADING))

    [span] = recorded.spans
    assert (span.start_time, span.end_time) == (nanoseconds(20), nanoseconds(30))
    assert "reason" not in (span.attributes or {})
    assert recorded.value("election.terms", **STANDS) == 1
    assert recorded.value("election.losses", **STANDS, reason="expired") == 0


async def test_the_leader_gauge_asks_the_candidate_at_collection(recorded: Recorded) -> None:
    """So it is 0 after the deadline, although no transition has said so; and nothing when nobody is watched."""
    candidate = FakeCandidate(*A_TERM)
    async with running(recorded.telemetry.watch_candidate(candidate)):
        await candidate.all_read.wait()
        candidate.is_leader = True
        assert recorded.value("election.leader", **STANDS) == 1
        candidate.is_leader = False
        assert recorded.value("election.leader", **STANDS) == 0
    assert recorded.value("election.leader", **STANDS) is None


async def test_a_watch_that_was_cut_off_goes_on(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """It has a gap, and says so; whoever runs it beside the candidate is not harmed."""
    await watch(
        recorded,
        *A_TERM,
        TooSlow("too many"),
        at(30, None, Following()),
        at(31, Proved(31.0, Token(0, 9)), replace(LEADING, token=Token(0, 9))),
        at(32, DeadlinePassed(32.0), leaving(LossReason.EXPIRED, token=9)),
    )

    assert "the telemetry of a has a gap: too many" in caplog.text
    assert [(span.attributes or {}).get("token") for span in recorded.spans] == ["0-7", "0-9"]
    assert recorded.value("election.losses", **STANDS, reason="expired") == 1


# --- collectors --------------------------------------------------------------------------------------------------


async def test_every_reap_is_counted_and_traced(recorded: Recorded) -> None:
    """And failures are counted; what happened before the watch is neither."""
    recorded.clock.at_s = 12.0
    collector = FakeCollector(
        Reaped(Tombstone("before", 1, START, "a", Token(0, 7))),
        Suspected("w-1", 10.0),
        Reaped(Tombstone("w-1", 42, START + timedelta(seconds=10), "a", Token(0, 7))),
        ReapFailed("w-2", "etcd is away"),
    )
    async with running(recorded.telemetry.watch_collector(collector)):
        await collector.all_read.wait()
        await collector.candidate.all_read.wait()
        assert recorded.value("election.leader", election="_collector", candidate="a") == 0

    assert recorded.value("election.reaps", collector="a") == 1
    assert recorded.value("election.reap.failures", collector="a") == 1
    [span] = recorded.spans
    assert span.name == "election.reap"
    assert span.attributes == {"agent": "w-1", "incarnation": 42, "token": "0-7", "collector": "a"}
    assert (span.start_time, span.end_time) == (nanoseconds(10), nanoseconds(12))


async def test_an_open_breaker_is_shown_by_the_collector_that_leads(recorded: Recorded) -> None:
    """With its reason; and in its next term, when it may have been closed by another, only if it finds it open."""
    opened = Breaker(open=True, reason=BreakerReason.VANISHED, missing=5, known=6)
    collector = FakeCollector(BreakerOpened(opened), Suspected("w-1", 10.0))
    async with running(recorded.telemetry.watch_collector(collector)):
        await collector.all_read.wait()
        assert recorded.points("election.collector.breaker") == []
        collector.candidate.is_leader = True
        assert recorded.value("election.collector.breaker", collector="a", reason="vanished") == 1
    assert recorded.points("election.collector.breaker") == []

    closed = FakeCollector(BreakerOpened(opened), BreakerClosed(Breaker(reason=BreakerReason.OPERATOR)))
    deposed = FakeCollector(None, BreakerOpened(opened))
    deposed.candidate = FakeCandidate(at(0, None, LEADING), at(1, DeadlinePassed(1.0), leaving(LossReason.EXPIRED)))
    deposed.candidate.id = "b"
    for each in (closed, deposed):
        each.candidate.is_leader = True
    # The fake has its transitions for one reader only, and here it is not the metrics of terms.
    async with running(recorded.telemetry.watch_collector(closed), recorded.telemetry._reaps.watch(deposed)):
        await closed.all_read.wait()
        await deposed.candidate.all_read.wait()
        assert recorded.value("election.collector.breaker", collector="a", reason="") == 0
        assert recorded.value("election.collector.breaker", collector="b", reason="") == 0


# --- views -------------------------------------------------------------------------------------------------------


def leader(election: str, token: int) -> Leader:
    return Leader(election, "a", "", Token(0, token), "key", 1, START, {}, 0, proven=True)


@asynccontextmanager
async def viewed(recorded: Recorded, view: FakeView, *elections: str) -> AsyncIterator[ViewWatch]:
    async with running(recorded.telemetry.watch_view(view, *elections)):
        yield ViewWatch(await recorded.clock.sleepers.get(), recorded.clock)


class ViewWatch:
    """A watch that has looked at the view, and sleeps."""

    def __init__(self, sleeping: asyncio.Future[None], clock: SteppedClock) -> None:
        self._sleeping = sleeping
        self._clock = clock

    async def look(self) -> None:
        """Lets it look again."""
        self._sleeping.set_result(None)
        self._sleeping = await self._clock.sleepers.get()


async def test_agents_are_shown_by_state(recorded: Recorded) -> None:
    """Every state that an agent can be in has a number, also when it is 0."""
    view = FakeView()
    view.fleet = {AgentState.ALIVE: 2, AgentState.DRAINING: 3, AgentState.REAPED: 4}
    async with viewed(recorded, view) as watched:
        states = {labels["state"]: point.value for labels, point in recorded.points("election.agents")}
        assert states == {"alive": 2, "draining": 3, "suspect": 0}
        view.fleet = {AgentState.ALIVE: 2, AgentState.SUSPECT: 3}
        await watched.look()
        assert recorded.value("election.agents", state="draining") == 0
        assert recorded.value("election.agents", state="suspect") == 3


async def test_a_named_election_is_shown_while_it_is_vacant(recorded: Recorded) -> None:
    """With 0 as its token; one that is not named is not shown."""
    view = FakeView()
    view.rows = [Election("other", 1, leader("other", 3))]
    async with viewed(recorded, view, "scheduler") as watched:
        assert recorded.value("election.leader.token", election="scheduler") == 0
        assert recorded.value("election.candidates", election="scheduler") == 0
        assert recorded.value("election.leader.token", election="other") is None
        view.rows = [Election("scheduler", 2, leader("scheduler", 9))]
        await watched.look()
        assert recorded.value("election.leader.token", election="scheduler") == 9
        assert recorded.value("election.candidates", election="scheduler") == 2


async def test_without_names_every_election_is_shown(recorded: Recorded) -> None:
    """For as long as somebody stands for it."""
    view = FakeView()
    view.rows = [Election("x", 1, None), Election("y", 1, leader("y", 3))]
    async with viewed(recorded, view) as watched:
        tokens = {labels["election"]: point.value for labels, point in recorded.points("election.leader.token")}
        assert tokens == {"x": 0, "y": 3}
        view.rows.clear()
        await watched.look()
        assert recorded.points("election.leader.token") == []


async def test_a_new_leader_is_a_change(recorded: Recorded) -> None:
    """The one that led when the watch began is none, and neither is a vacancy."""
    view = FakeView()
    async with viewed(recorded, view, "x") as watched:
        counted = []
        for token in (3, 3, 0, 5, 6):
            view.rows = [Election("x", 1, leader("x", token) if token else None)]
            await watched.look()
            counted.append(recorded.value("election.leader.changes", election="x"))
        assert counted == [1, 1, 1, 2, 3]

    view.rows = [Election("x", 1, leader("x", 6))]
    async with viewed(recorded, view, "x") as watched:
        await watched.look()
        assert recorded.value("election.leader.changes", election="x") == 3


async def test_a_stale_view_shows_its_age_and_nothing_else(recorded: Recorded) -> None:
    """The age goes on, by the clock at collection; and everything comes back with the view."""
    view = FakeView()
    view.source = replace(view.source, age_s=2.0)
    view.rows = [Election("x", 1, leader("x", 3))]
    gauges = ("election.agents", "election.candidates", "election.leader.token")
    async with viewed(recorded, view) as watched:
        assert recorded.value("election.view.age") == 2.0
        view.error = ViewStale("too old")
        await watched.look()
        assert all(recorded.points(name) for name in gauges)
        recorded.clock.at_s = MAX_AGE_S + 1
        assert recorded.value("election.view.age") == MAX_AGE_S + 3
        assert not any(recorded.points(name) for name in gauges)
        view.error = None
        await watched.look()
        assert all(recorded.points(name) for name in gauges)
    assert recorded.value("election.view.age") is None


# --- where it goes -----------------------------------------------------------------------------------------------


def fetch(telemetry: Telemetry) -> str:
    with urlopen(f"http://127.0.0.1:{telemetry.metrics_port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def sample(text: str, name: str) -> float:
    """The value of the one sample with this name."""
    [line] = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return float(line.rpartition(" ")[2])


async def test_prometheus_gets_everything_over_http() -> None:
    """From another thread than that of the event loop, under the names that dashboards use."""
    candidate = FakeCandidate(*A_TERM, at(3, Renewed(12.0, 0.25), LEADING))
    candidate.is_leader = True
    collector = FakeCollector(None, ReapFailed("w-2", "etcd is away"))
    view = FakeView()
    view.rows = [Election("scheduler", 2, leader("scheduler", 7))]
    telemetry = Telemetry.from_environment(metrics_port=0)
    async with (
        telemetry,
        running(telemetry.watch_candidate(candidate), telemetry.watch_collector(collector), telemetry.watch_view(view)),
    ):
        await candidate.all_read.wait()
        await collector.all_read.wait()
        await collector.candidate.all_read.wait()
        text = await asyncio.to_thread(fetch, telemetry)

    [led] = [line for line in text.splitlines() if line.startswith("election_leader{") and "scheduler" in line]
    assert 'candidate="a"' in led
    assert led.endswith(" 1.0")
    assert sample(text, "election_reap_failures_total") == 1
    assert sample(text, "election_reaps_total") == 0
    assert sample(text, "election_renewal_duration_seconds_sum") == 0.25
    assert sample(text, "election_candidates") == 2
    assert sample(text, "election_leader_token") == 7
    assert sample(text, "election_view_age_seconds") >= 0
    for name in ("election_terms_total", "election_losses_total", "election_attempts_failed_total", "election_agents"):
        assert f"\n{name}{{" in text
    assert 'service_name="election"' in text


async def test_two_endpoints_in_one_process_have_nothing_in_common() -> None:
    """Neither a registry nor a provider is global, and one can be closed without the other."""
    candidate = FakeCandidate(*A_TERM)
    async with Telemetry.from_environment(metrics_port=0) as one:
        async with Telemetry.from_environment(metrics_port=0) as other, running(other.watch_candidate(candidate)):
            await candidate.all_read.wait()
            assert sample(await asyncio.to_thread(fetch, other), "election_terms_total") == 1
        assert await asyncio.to_thread(fetch, one) == ""


def test_a_port_in_use_is_one_clear_line() -> None:
    """It says which; and what was begun is undone."""
    telemetry = Telemetry.from_environment(metrics_port=0)
    with pytest.raises(ConfigError, match=r"^metrics cannot be served on 127\.0\.0\.1:\d+: Address already in use$"):
        Telemetry.from_environment(metrics_port=telemetry.metrics_port)
    telemetry.close()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99_999), ("203.0.113.1", 0)])
def test_an_address_that_cannot_be_listened_on_is_a_setting_that_is_wrong(host: str, port: int) -> None:
    """Whatever the operating system calls it."""
    with pytest.raises(ConfigError, match="metrics cannot be served"):
        Telemetry.from_environment(metrics_host=host, metrics_port=port)


def test_close_ends_the_http_server() -> None:
    """Its port is free again, and its thread is gone."""
    before = set(threading.enumerate())
    telemetry = Telemetry.from_environment(metrics_port=0)
    telemetry.close()
    assert set(threading.enumerate()) <= before
    Telemetry.from_environment(metrics_port=telemetry.metrics_port).close()


class OtlpCollector:
    """Takes what is exported to it."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        for service, request, response in (
            ("metrics.v1.MetricsService", ExportMetricsServiceRequest, ExportMetricsServiceResponse),
            ("trace.v1.TraceService", ExportTraceServiceRequest, ExportTraceServiceResponse),
        ):
            take = grpc.unary_unary_rpc_method_handler(
                functools.partial(self._take, response()),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            name = f"opentelemetry.proto.collector.{service}"
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": take}),))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _take(self, response: Any, request: Any, _: object) -> Any:
        self.requests.append(request)
        return response

    @contextmanager
    def serving(self) -> Iterator[None]:
        self._server.start()
        try:
            yield
        finally:
            self._server.stop(None).wait()

    def services(self) -> dict[type, str]:
        """Which service sent which kind of thing."""
        return {
            type(request): attribute.value.string_value
            for request in self.requests
            for resource in (
                request.resource_spans if isinstance(request, ExportTraceServiceRequest) else request.resource_metrics
            )
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


METRICS, TRACES = ExportMetricsServiceRequest, ExportTraceServiceRequest


@pytest.mark.parametrize(
    ("variables", "received"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "{}"}, [METRICS, TRACES]),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "{}"}, [METRICS]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "{}"}, [TRACES]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "{}", "OTEL_METRICS_EXPORTER": "none"}, [TRACES]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "{}", "OTEL_TRACES_EXPORTER": "none"}, [METRICS]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "{}", "OTEL_METRICS_EXPORTER": "otlp,prometheus"}, [METRICS, TRACES]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "{}", "OTEL_SDK_DISABLED": "true"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
        ({}, []),
    ],
)
async def test_otlp_gets_what_the_variables_ask_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], received: Sequence[type]
) -> None:
    """And nothing without being asked."""
    collector = OtlpCollector()
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(collector.endpoint))
    with collector.serving():
        async with Telemetry.from_environment(service_name="billing") as telemetry:
            candidate = FakeCandidate(*A_TERM)
            async with running(telemetry.watch_candidate(candidate)):
                await candidate.all_read.wait()
    assert collector.services() == dict.fromkeys(received, "billing")


@pytest.mark.parametrize(
    "variable", [("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,region=north")]
)
async def test_the_variables_name_the_service_before_the_program_does(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    """Both of the standard ones."""
    monkeypatch.setenv(*variable)
    candidate = FakeCandidate(*A_TERM)
    telemetry = Telemetry.from_environment(metrics_port=0)
    async with telemetry, running(telemetry.watch_candidate(candidate)):
        await candidate.all_read.wait()
        assert 'service_name="mine"' in await asyncio.to_thread(fetch, telemetry)


async def test_a_disabled_sdk_leaves_an_endpoint_with_nothing_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watches run as ever, so nobody has to ask whether it is disabled."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    candidate = FakeCandidate(*A_TERM, at(3, DeadlinePassed(3.0), leaving(LossReason.EXPIRED)))
    telemetry = Telemetry.from_environment(metrics_port=0)
    async with telemetry, running(telemetry.watch_candidate(candidate)):
        await candidate.all_read.wait()
        assert "election" not in await asyncio.to_thread(fetch, telemetry)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (("OTEL_METRICS_EXPORTER", "console"), "OTEL_METRICS_EXPORTER=console is not supported"),
        (("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), "OTLP over http/protobuf is not supported"),
        (("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"), "an OTEL_* variable cannot be used: could not convert"),
        (("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip"), "an OTEL_* variable cannot be used: Invalid value"),
    ],
)
def test_a_variable_that_cannot_be_used_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str], message: str
) -> None:
    """And nothing is left running."""
    before = set(threading.enumerate())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0.1")
    monkeypatch.setenv(*variable)
    with pytest.raises(ConfigError, match=re.escape(message)):
        Telemetry.from_environment(metrics_port=0)
    assert set(threading.enumerate()) <= before


async def test_an_otlp_collector_that_is_away_breaks_only_its_own_export(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prometheus has everything, and the loss is logged."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    candidate = FakeCandidate(*A_TERM)
    telemetry = Telemetry.from_environment(metrics_port=0)
    async with telemetry:
        async with running(telemetry.watch_candidate(candidate)):
            await candidate.all_read.wait()
        assert sample(await asyncio.to_thread(fetch, telemetry), "election_terms_total") == 1
    assert "Failed to export" in caplog.text


async def test_close_does_not_wait_for_an_otlp_collector_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes the connection and never answers; the port for Prometheus is free all the same."""
    monkeypatch.setattr(export, "CLOSE_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        candidate = FakeCandidate(*A_TERM)
        telemetry = Telemetry.from_environment(metrics_port=0)
        async with telemetry, running(telemetry.watch_candidate(candidate)):
            await candidate.all_read.wait()
        assert "the last telemetry was not exported within 0.1 s" in caplog.text
        socket.create_server(("127.0.0.1", telemetry.metrics_port or 0)).close()


def test_close_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An export that does not end is left behind, and that is said."""
    released, ended = threading.Event(), threading.Event()

    class Hanging(SpanProcessor):
        def shutdown(self) -> None:
            released.wait()
            ended.set()

    monkeypatch.setattr(export, "CLOSE_S", 0.01)
    telemetry = Telemetry(Export(span_processors=[Hanging()]))
    telemetry.close()
    assert "the last telemetry was not exported within 0.01 s" in caplog.text
    assert not ended.is_set()
    released.set()
    assert ended.wait(10)


def test_the_core_works_without_opentelemetry() -> None:
    """Nothing that `import election` brings needs the extra, and without it only telemetry is missing."""
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = sys.modules['prometheus_client'] = None\n"
        "import election\n"
        "try:\n"
        "    import election.telemetry\n"
        "except ImportError as error:\n"
        "    print(error.name)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("opentelemetry")
