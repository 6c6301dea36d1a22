"""Messages: what was told arrives as it was, whatever is in it, and errors have statuses."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election.agent_records import Agent, AgentRecord, AgentState, StateEntry, Tombstone
from election.api.agents import (
    agent_event_from,
    agent_event_message,
    agent_from,
    agent_message,
    breaker_from,
    breaker_message,
    entry_from,
    entry_message,
    filter_from,
    filter_message,
    tombstone_from,
    tombstone_message,
)
from election.api.elections import (
    LeaderMessages,
    candidate_from,
    candidate_message,
    election_from,
    election_message,
    leader_event_from,
    leader_from,
    leader_message,
    source_from,
    view_message,
)
from election.api.values import seconds
from election.breaker import Breaker, BreakerReason
from election.errors import (
    ConfigError,
    ElectionError,
)
from election.pb.election.v1 import election_pb2 as pb
from election.pb.etcd.kv_pb2 import KeyValue
from election.reader import AgentEvent, AgentEventKind, AgentFilter, LeaderEvent, LeaderEventKind, Source
from election.records import Candidate, Election, Leader, leader_of
from election.token import LARGEST_EPOCH, LARGEST_REVISION, Token

texts = st.text(st.characters(codec="utf-8"), max_size=20)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC) | zones)
labels = st.dictionaries(texts, texts, max_size=3)
revisions = st.integers(0, 2**63 - 1)
priorities = st.integers(-(2**31), 2**31 - 1)
sources = st.builds(
    Source,
    cluster_id=st.integers(0, 2**64 - 1),
    revision=revisions,
    age_s=st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 1e9),
)
tokens = st.builds(Token, epoch=st.integers(0, LARGEST_EPOCH), revision=st.integers(1, LARGEST_REVISION))
leaders = st.builds(
    Leader,
    election=texts,
    id=texts,
    address=texts,
    token=tokens,
    key=texts,
    lease=revisions,
    elected_at=times,
    labels=labels,
    priority=priorities,
    proven=st.booleans(),
)
candidates = st.builds(
    Candidate,
    election=texts,
    key=texts,
    created=revisions,
    lease=revisions,
    id=texts,
    address=texts,
    labels=labels,
    priority=priorities,
    elected_at=times,
    token=st.none() | tokens,
    foreign=st.booleans(),
)
elections = st.builds(Election, name=texts, candidates=st.integers(0, 2**31 - 1), leader=st.none() | leaders)
agents = st.builds(
    Agent,
    id=texts,
    state=st.sampled_from(AgentState),
    incarnation=revisions,
    lease=revisions,
    address=texts,
    labels=labels,
    registered_at=times,
    state_keys=st.lists(texts, max_size=3).map(tuple),
)
entries = st.builds(StateEntry, key=texts, value=st.binary(max_size=40), mod_revision=revisions)
tombstones = st.builds(
    Tombstone,
    agent=texts,
    incarnation=revisions,
    reaped_at=times,
    collector=texts,
    token=tokens,
    collected=st.lists(entries, max_size=3).map(tuple),
    part=st.integers(0, 2**31 - 1),
    keep_until=times,
)
records = st.builds(
    AgentRecord,
    id=st.just(""),
    address=texts,
    labels=labels,
    registered_at=st.datetimes(timezones=st.just(UTC)),
    left_at=times,
)
breakers = st.builds(
    Breaker,
    open=st.booleans(),
    reason=st.none() | st.sampled_from(BreakerReason),
    missing=st.integers(0, 2**31 - 1),
    known=st.integers(0, 2**31 - 1),
    by=texts,
    at=times,
    until=times,
    revision=revisions,
)
filters = st.builds(
    AgentFilter, states=st.frozensets(st.sampled_from(AgentState), min_size=1), labels=st.dictionaries(texts, texts)
)


@given(sources)
def test_a_source_arrives_as_it_was(source: Source) -> None:
    """With its age to the nanosecond."""
    assert source_from(view_message(source)) == source


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_what_no_duration_holds_is_a_wrong_value(value: float) -> None:
    """Of whatever kind the error was."""
    with pytest.raises(ValueError):
        seconds(value)


@pytest.mark.parametrize(("age_s", "told_s"), [(-1.0, 0.0), (float("inf"), 315_576_000_000.0)])
def test_an_age_that_no_duration_holds_becomes_the_nearest_one(age_s: float, told_s: float) -> None:
    """A clock that went wrong fails no answer."""
    assert source_from(view_message(Source(1, 2, age_s))).age_s == told_s


@given(leaders)
def test_a_leader_arrives_as_it_was(leader: Leader) -> None:
    """Whatever is in its record."""
    assert leader_from(leader_message(leader)) == leader


@given(candidates)
def test_a_candidate_arrives_as_it_was(candidate: Candidate) -> None:
    """Ours and those of other programs."""
    assert candidate_from(candidate_message(candidate)) == candidate


@given(elections)
def test_an_election_arrives_as_it_was(election: Election) -> None:
    """With a leader or without."""
    assert election_from(election_message(election)) == election


@given(agents)
def test_an_agent_arrives_as_it_was(agent: Agent) -> None:
    """In each of its states."""
    assert agent_from(agent_message(agent)) == agent


@given(entries)
def test_a_state_entry_arrives_as_it_was(entry: StateEntry) -> None:
    """Its value is bytes and stays bytes."""
    assert entry_from(entry_message(entry)) == entry


@given(tombstones, st.none() | records)
def test_a_tombstone_arrives_as_it_was(tombstone: Tombstone, record: AgentRecord | None) -> None:
    """With everything that was collected, and with what the agent said of itself, if it did."""
    tombstone = replace(tombstone, agent_record=record and replace(record, id=tombstone.agent))
    assert tombstone_from(tombstone_message(tombstone)) == tombstone


@given(breakers)
def test_a_breaker_arrives_as_it_was(breaker: Breaker) -> None:
    """For each reason, and for none."""
    assert breaker_from(breaker_message(breaker)) == breaker


@given(filters)
def test_a_filter_arrives_as_it_was(chosen: AgentFilter) -> None:
    """One that names no state stands for all agents that are not reaped."""
    assert filter_from(filter_message(chosen)) == chosen
    everybody = filter_from(pb.ListAgentsRequest(labels=chosen.labels))
    assert everybody == AgentFilter(labels=chosen.labels)


@pytest.mark.parametrize("state", [0, 9])
def test_a_state_that_nobody_knows_cannot_be_asked_for(state: int) -> None:
    """It says which there are."""
    with pytest.raises(ConfigError, match=rf"agent state {state} is not known here: the states are 1 \(alive\), 2 "):
        filter_from(pb.ListAgentsRequest(states=[state]))  # type: ignore[list-item]


@given(st.builds(LeaderEvent, kind=st.sampled_from(LeaderEventKind), leader=st.none() | leaders, source=sources))
def test_a_leader_event_arrives_as_it_was(event: LeaderEvent) -> None:
    """Each kind, with a leader or without."""
    assert leader_event_from(LeaderMessages().event(event)) == event


@given(
    st.builds(
        AgentEvent,
        kind=st.sampled_from(AgentEventKind),
        agent=st.none() | agents,
        source=sources,
        tombstone=st.none() | tombstones,
    )
)
def test_an_agent_event_arrives_as_it_was(event: AgentEvent) -> None:
    """Each kind, with an agent and a tombstone or without."""
    assert agent_event_from(agent_event_message(event)) == event


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=10), values, max_size=3),
    max_leaves=5,
)
moments = st.datetimes(timezones=zones).map(datetime.isoformat)


@given(
    st.text(max_size=20), anything, st.dictionaries(st.text(max_size=5), anything, max_size=3), st.integers(), moments
)
def test_whatever_a_stored_record_holds_can_be_sent(
    id: str, address: Any, marks: dict[str, Any], number: int, at: str
) -> None:
    """JSON has half surrogate pairs, numbers without end, and times before the first day of UTC."""
    record = {
        "v": 1,
        "id": id,
        "address": address,
        "labels": marks,
        "priority": number,
        "elected_at": at,
        "registered_at": at,
        "reaped_at": at,
        "collector": id,
        "token": number,
        "epoch": number,
        "collected": [{"key": id, "value": "x", "mod_revision": number}],
    }
    value = json.dumps(record).encode()
    candidate = Candidate.of("e", KeyValue(key=b"\xff/\n", value=value, create_revision=5, lease=7))
    leader = leader_of([candidate])
    assert leader is not None
    agent = AgentRecord.decode("a", value)
    known = Agent("a", AgentState.ALIVE, number, 7, agent.address, agent.labels, agent.registered_at, (id,))
    candidate_message(candidate).SerializeToString()
    leader_message(leader).SerializeToString()
    agent_message(known).SerializeToString()
    tombstone_message(Tombstone.decode("a", number, value)).SerializeToString()


def test_what_a_message_cannot_hold_becomes_the_nearest_thing() -> None:
    """Text is escaped, numbers are bounded, and a time outside of UTC's calendar is left out."""
    first_day = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    candidate = Candidate("e", "k", 5, 7, "half \ud83d", labels={"\ud83d": "x"}, priority=10**30, elected_at=first_day)
    message = candidate_message(candidate)
    assert message.id == "half \\ud83d"
    assert dict(message.labels) == {"\\ud83d": "x"}
    assert message.priority == 2**31 - 1
    assert not message.HasField("elected_at")


def test_a_timestamp_outside_of_the_calendar_is_left_out() -> None:
    """A server may send a Timestamp that no calendar has."""
    message = pb.Leader(id="a")
    message.elected_at.seconds = 2**62
    assert leader_from(message).elected_at is None


@pytest.mark.parametrize(
    "read",
    [
        lambda: leader_event_from(pb.WatchLeaderResponse(kind=99)),  # type: ignore[arg-type]
        lambda: agent_event_from(pb.WatchAgentsResponse()),
        lambda: agent_from(pb.Agent(id="a")),
        lambda: breaker_from(pb.Breaker(reason=99)),  # type: ignore[arg-type]
    ],
)
def test_a_kind_from_a_newer_server_is_an_error_of_ours(read: Any) -> None:
    """It is not taken for another kind."""
    with pytest.raises(ElectionError, match="which this version does not know"):
        read()
