"""The one place where records and events become messages of `election.v1` and back, and errors gRPC statuses.

What comes out of etcd may have been written by anyone, so everything that a record can hold can be sent: text that
is not Unicode is escaped, a number that is too big becomes the biggest, a time that has no UTC form is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from election.errors import (
    AccessDenied,
    AgentExists,
    AgentLost,
    ConfigError,
    Deposed,
    ElectionError,
    EtcdUnavailable,
    NoSpace,
    NotLeader,
    ViewStale,
)
from election.pb.election.v1 import election_pb2 as pb
from election.published import TooSlow
from election.reader import AgentEvent, AgentEventKind, LeaderEvent, LeaderEventKind, Source
from election.records import Agent, AgentState, Candidate, Election, Leader, StateEntry, Tombstone
from election.token import Token

Told = TypeVar("Told", bound=AgentState | AgentEventKind | LeaderEventKind)

VIEW_METADATA = "election-view-bin"
"""The trailing metadata of a NOT_FOUND that holds the View: also the answer that there is nothing has an age."""

_LONGEST_S = 315_576_000_000.0
"""The longest Duration that protobuf defines, some 10,000 years."""

_STATES = {
    AgentState.ALIVE: pb.Agent.STATE_ALIVE,
    AgentState.DRAINING: pb.Agent.STATE_DRAINING,
    AgentState.SUSPECT: pb.Agent.STATE_SUSPECT,
    AgentState.REAPED: pb.Agent.STATE_REAPED,
}
_LEADER_KINDS = {
    LeaderEventKind.ELECTED: pb.WatchLeaderResponse.KIND_ELECTED,
    LeaderEventKind.UPDATED: pb.WatchLeaderResponse.KIND_UPDATED,
    LeaderEventKind.VACATED: pb.WatchLeaderResponse.KIND_VACATED,
}
_AGENT_KINDS = {
    AgentEventKind.PRESENT: pb.WatchAgentsResponse.KIND_PRESENT,
    AgentEventKind.SYNCED: pb.WatchAgentsResponse.KIND_SYNCED,
    AgentEventKind.JOINED: pb.WatchAgentsResponse.KIND_JOINED,
    AgentEventKind.UPDATED: pb.WatchAgentsResponse.KIND_UPDATED,
    AgentEventKind.STALE: pb.WatchAgentsResponse.KIND_STALE,
    AgentEventKind.RECOVERED: pb.WatchAgentsResponse.KIND_RECOVERED,
    AgentEventKind.REAPED: pb.WatchAgentsResponse.KIND_REAPED,
}
# The first that fits is taken.
_CODES: tuple[tuple[type[ElectionError], StatusCode], ...] = (
    (ConfigError, StatusCode.INVALID_ARGUMENT),
    (ViewStale, StatusCode.UNAVAILABLE),
    (EtcdUnavailable, StatusCode.UNAVAILABLE),
    (TooSlow, StatusCode.RESOURCE_EXHAUSTED),
    (AccessDenied, StatusCode.PERMISSION_DENIED),
    (AgentExists, StatusCode.ALREADY_EXISTS),
    (AgentLost, StatusCode.FAILED_PRECONDITION),
    (Deposed, StatusCode.FAILED_PRECONDITION),
    (NotLeader, StatusCode.FAILED_PRECONDITION),
    (NoSpace, StatusCode.FAILED_PRECONDITION),
)
_ERRORS: dict[StatusCode, type[ElectionError]] = {
    StatusCode.INVALID_ARGUMENT: ConfigError,
    StatusCode.UNAVAILABLE: ViewStale,
    StatusCode.RESOURCE_EXHAUSTED: TooSlow,
    StatusCode.ALREADY_EXISTS: AgentExists,
}

# --- records to messages -------------------------------------------------------------------------------------


def view_message(source: Source) -> pb.View:
    """Where an answer comes from."""
    age_s = min(max(source.age_s, 0.0), _LONGEST_S)
    age = Duration()
    age.FromNanoseconds(round(age_s * 1e9))
    return pb.View(cluster_id=source.cluster_id, revision=source.revision, age=age)


def leader_message(leader: Leader) -> pb.Leader:
    """The candidate that leads."""
    return pb.Leader(
        election=leader.election,
        id=_text(leader.id),
        address=_text(leader.address),
        token=int(leader.token),
        key=_text(leader.key),
        lease=leader.lease,
        elected_at=_timestamp(leader.elected_at),
        labels={_text(name): _text(value) for name, value in leader.labels.items()},
        priority=_number(leader.priority, 32),
        proven=leader.proven,
    )


def candidate_message(candidate: Candidate) -> pb.Candidate:
    """A candidate in its queue."""
    return pb.Candidate(
        election=candidate.election,
        id=_text(candidate.id),
        address=_text(candidate.address),
        key=_text(candidate.key),
        create_revision=candidate.created,
        lease=candidate.lease,
        labels={_text(name): _text(value) for name, value in candidate.labels.items()},
        priority=_number(candidate.priority, 32),
        elected_at=_timestamp(candidate.elected_at),
        foreign=candidate.foreign,
        token=int(candidate.token) if candidate.token else 0,
    )


def election_message(election: Election) -> pb.ListElectionsResponse.Election:
    """An election with its leader, if there is one."""
    leader = leader_message(election.leader) if election.leader else None
    return pb.ListElectionsResponse.Election(name=election.name, candidates=election.candidates, leader=leader)


def agent_message(agent: Agent) -> pb.Agent:
    """An agent, without the values of its state."""
    return pb.Agent(
        id=agent.id,
        state=_STATES[agent.state],
        incarnation=_number(agent.incarnation, 64),
        lease=agent.lease,
        address=_text(agent.address),
        labels={_text(name): _text(value) for name, value in agent.labels.items()},
        registered_at=_timestamp(agent.registered_at),
        state_keys=map(_text, agent.state_keys),
    )


def entry_message(entry: StateEntry) -> pb.StateEntry:
    """One value of an agent's state."""
    return pb.StateEntry(key=_text(entry.key), value=entry.value, mod_revision=_number(entry.mod_revision, 64))


def tombstone_message(tombstone: Tombstone) -> pb.Tombstone:
    """What is left of a reaped agent."""
    return pb.Tombstone(
        agent=tombstone.agent,
        incarnation=_number(tombstone.incarnation, 64),
        reaped_at=_timestamp(tombstone.reaped_at),
        collector=_text(tombstone.collector),
        token=int(tombstone.token),
        collected=map(entry_message, tombstone.collected),
    )


def leader_event_message(event: LeaderEvent) -> pb.WatchLeaderResponse:
    """One message of WatchLeader."""
    leader = leader_message(event.leader) if event.leader else None
    return pb.WatchLeaderResponse(view=view_message(event.source), kind=_LEADER_KINDS[event.kind], leader=leader)


def agent_event_message(event: AgentEvent) -> pb.WatchAgentsResponse:
    """One message of WatchAgents."""
    return pb.WatchAgentsResponse(
        view=view_message(event.source),
        kind=_AGENT_KINDS[event.kind],
        agent=agent_message(event.agent) if event.agent else None,
        tombstone=tombstone_message(event.tombstone) if event.tombstone else None,
    )


# --- messages to records -------------------------------------------------------------------------------------


def source_from(message: pb.View) -> Source:
    """Where an answer comes from."""
    return Source(message.cluster_id, message.revision, message.age.ToNanoseconds() / 1e9)


def leader_from(message: pb.Leader) -> Leader:
    """The candidate that leads."""
    return Leader(
        election=message.election,
        id=message.id,
        address=message.address,
        token=Token.of_int(message.token),
        key=message.key,
        lease=message.lease,
        elected_at=_time(message.elected_at) if message.HasField("elected_at") else None,
        labels=dict(message.labels),
        priority=message.priority,
        proven=message.proven,
    )


def candidate_from(message: pb.Candidate) -> Candidate:
    """A candidate in its queue."""
    return Candidate(
        election=message.election,
        key=message.key,
        created=message.create_revision,
        lease=message.lease,
        id=message.id,
        address=message.address,
        labels=dict(message.labels),
        priority=message.priority,
        elected_at=_time(message.elected_at) if message.HasField("elected_at") else None,
        token=Token.of_int(message.token) if message.token else None,
        foreign=message.foreign,
    )


def election_from(message: pb.ListElectionsResponse.Election) -> Election:
    """An election with its leader, if there is one."""
    leader = leader_from(message.leader) if message.HasField("leader") else None
    return Election(message.name, message.candidates, leader)


def agent_from(message: pb.Agent) -> Agent:
    """An agent; raises ElectionError for a state that this version does not know."""
    return Agent(
        id=message.id,
        state=_known(_STATES, message.state, "agent state"),
        incarnation=message.incarnation,
        lease=message.lease,
        address=message.address,
        labels=dict(message.labels),
        registered_at=_time(message.registered_at) if message.HasField("registered_at") else None,
        state_keys=tuple(message.state_keys),
    )


def entry_from(message: pb.StateEntry) -> StateEntry:
    """One value of an agent's state."""
    return StateEntry(message.key, message.value, message.mod_revision)


def tombstone_from(message: pb.Tombstone) -> Tombstone:
    """What is left of a reaped agent."""
    return Tombstone(
        agent=message.agent,
        incarnation=message.incarnation,
        reaped_at=_time(message.reaped_at) if message.HasField("reaped_at") else None,
        collector=message.collector,
        token=Token.of_int(message.token),
        collected=tuple(map(entry_from, message.collected)),
    )


def leader_event_from(message: pb.WatchLeaderResponse) -> LeaderEvent:
    """One message of WatchLeader; raises ElectionError for a kind that this version does not know."""
    leader = leader_from(message.leader) if message.HasField("leader") else None
    return LeaderEvent(_known(_LEADER_KINDS, message.kind, "leader event"), leader, source_from(message.view))


def agent_event_from(message: pb.WatchAgentsResponse) -> AgentEvent:
    """One message of WatchAgents; raises ElectionError for a kind or state that this version does not know."""
    return AgentEvent(
        kind=_known(_AGENT_KINDS, message.kind, "agent event"),
        agent=agent_from(message.agent) if message.HasField("agent") else None,
        source=source_from(message.view),
        tombstone=tombstone_from(message.tombstone) if message.HasField("tombstone") else None,
    )


# --- errors --------------------------------------------------------------------------------------------------


def status_of(error: ElectionError) -> tuple[StatusCode, str]:
    """The status that tells a caller of an error, with its text in one line.

    An error without a status of its own is INTERNAL with its text: it was raised on purpose, and says what is wrong.
    """
    code = next((code for kind, code in _CODES if isinstance(error, kind)), StatusCode.INTERNAL)
    return code, " ".join(str(error).split())


def error_from(code: StatusCode, text: str) -> ElectionError:
    """The error that a status stands for.

    A status that stands for several errors gives the one that calls of `Reader` raise; one that stands for none
    gives ElectionError with the status in its text.
    """
    if code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED):
        return AccessDenied(text)
    kind = _ERRORS.get(code)
    return ElectionError(f"the server answered {code.name}: {text}") if kind is None else kind(text)


# --- values --------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """The text, with what is not Unicode escaped: JSON can hold half of a surrogate pair, a message cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _number(number: int, bits: int) -> int:
    limit = 1 << (bits - 1)
    return min(max(number, -limit), limit - 1)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    try:
        utc = time.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar, in another zone
        return None
    stamp = Timestamp()
    stamp.FromDatetime(utc)
    return stamp


def _time(stamp: Timestamp) -> datetime | None:
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None


def _known(known: Mapping[Told, int], number: int, kind: str) -> Told:
    for value, each in known.items():
        if each == number:
            return value
    raise ElectionError(f"the server sent {kind} {number}, which this version does not know: update the client")
