"""The one place where agents, tombstones and the breaker become messages of `election.v1` and back."""

from __future__ import annotations

from election.agent_records import Agent, AgentRecord, AgentState, StateEntry, Tombstone
from election.api import values
from election.api.elections import source_from, view_message
from election.api.resources import agent_name, tombstone_name
from election.breaker import Breaker, BreakerReason
from election.errors import ConfigError
from election.pb.election.v1 import election_pb2 as pb
from election.reader import NOT_REAPED, AgentEvent, AgentEventKind, AgentFilter
from election.token import Token

_STATES = {
    AgentState.ALIVE: pb.Agent.STATE_ALIVE,
    AgentState.DRAINING: pb.Agent.STATE_DRAINING,
    AgentState.SUSPECT: pb.Agent.STATE_SUSPECT,
    AgentState.REAPED: pb.Agent.STATE_REAPED,
}
_AGENT_KINDS = {
    AgentEventKind.PRESENT: pb.WatchAgentsResponse.KIND_PRESENT,
    AgentEventKind.SYNCED: pb.WatchAgentsResponse.KIND_SYNCED,
    AgentEventKind.JOINED: pb.WatchAgentsResponse.KIND_JOINED,
    AgentEventKind.UPDATED: pb.WatchAgentsResponse.KIND_UPDATED,
    AgentEventKind.STALE: pb.WatchAgentsResponse.KIND_STALE,
    AgentEventKind.RECOVERED: pb.WatchAgentsResponse.KIND_RECOVERED,
    AgentEventKind.REAPED: pb.WatchAgentsResponse.KIND_REAPED,
    AgentEventKind.RESET: pb.WatchAgentsResponse.KIND_RESET,
    AgentEventKind.HEARTBEAT: pb.WatchAgentsResponse.KIND_HEARTBEAT,
}
_REASONS = {reason: pb.Breaker.Reason.Value(f"REASON_{reason.name}") for reason in BreakerReason}

# --- records to messages -------------------------------------------------------------------------------------


def agent_message(agent: Agent) -> pb.Agent:
    """An agent, without the values of its state."""
    return pb.Agent(
        id=agent.id,
        state=_STATES[agent.state],
        incarnation=values.number(agent.incarnation, 64),
        lease=agent.lease,
        address=values.text(agent.address),
        labels=values.labels(agent.labels),
        registered_at=values.timestamp(agent.registered_at),
        state_keys=map(values.text, agent.state_keys),
        name=agent_name(agent.id),
    )


def entry_message(entry: StateEntry) -> pb.StateEntry:
    """One value of an agent's state."""
    return pb.StateEntry(
        key=values.text(entry.key), value=entry.value, mod_revision=values.number(entry.mod_revision, 64)
    )


def tombstone_message(tombstone: Tombstone) -> pb.Tombstone:
    """What is left of a reaped agent."""
    record = tombstone.agent_record or AgentRecord(tombstone.agent)
    return pb.Tombstone(
        agent=tombstone.agent,
        incarnation=values.number(tombstone.incarnation, 64),
        reaped_at=values.timestamp(tombstone.reaped_at),
        collector=values.text(tombstone.collector),
        token=int(tombstone.token),
        collected=map(entry_message, tombstone.collected),
        part=values.number(tombstone.part, 32),
        keep_until=values.timestamp(tombstone.keep_until),
        address=values.text(record.address),
        labels=values.labels(record.labels),
        registered_at=values.timestamp(record.registered_at),
        left_at=values.timestamp(record.left_at),
        name=tombstone_name(tombstone.agent, tombstone.incarnation, tombstone.part),
    )


def breaker_message(breaker: Breaker) -> pb.Breaker:
    """Whether collectors may reap."""
    return pb.Breaker(
        open=breaker.open,
        reason=_REASONS[breaker.reason] if breaker.reason else pb.Breaker.REASON_UNSPECIFIED,
        missing=values.number(breaker.missing, 32),
        known=values.number(breaker.known, 32),
        by=values.text(breaker.by),
        at=values.timestamp(breaker.at),
        until=values.timestamp(breaker.until),
        revision=breaker.revision,
    )


def filter_message(chosen: AgentFilter) -> pb.ListAgentsRequest:
    """Which agents to list; raises ValueError for labels that are not Unicode."""
    return pb.ListAgentsRequest(states=[_STATES[state] for state in chosen.states], labels=chosen.labels)


def agent_event_message(event: AgentEvent, namespace: str = "") -> pb.WatchAgentsResponse:
    """One message of WatchAgents."""
    return pb.WatchAgentsResponse(
        view=view_message(event.source, namespace),
        kind=_AGENT_KINDS[event.kind],
        agent=agent_message(event.agent) if event.agent else None,
        tombstone=tombstone_message(event.tombstone) if event.tombstone else None,
    )


# --- messages to records -------------------------------------------------------------------------------------


def agent_from(message: pb.Agent) -> Agent:
    """An agent; raises ElectionError for a state that this version does not know."""
    return Agent(
        id=message.id,
        state=values.known(_STATES, message.state, "agent state"),
        incarnation=message.incarnation,
        lease=message.lease,
        address=message.address,
        labels=dict(message.labels),
        registered_at=values.time(message.registered_at) if message.HasField("registered_at") else None,
        state_keys=tuple(message.state_keys),
    )


def entry_from(message: pb.StateEntry) -> StateEntry:
    """One value of an agent's state."""
    return StateEntry(message.key, message.value, message.mod_revision)


def tombstone_from(message: pb.Tombstone) -> Tombstone:
    """What is left of a reaped agent."""
    record = AgentRecord(
        message.agent,
        message.address,
        dict(message.labels),
        values.time(message.registered_at) if message.HasField("registered_at") else None,
        values.time(message.left_at) if message.HasField("left_at") else None,
    )
    return Tombstone(
        agent=message.agent,
        incarnation=message.incarnation,
        reaped_at=values.time(message.reaped_at) if message.HasField("reaped_at") else None,
        collector=message.collector,
        token=Token.of_int(message.token),
        collected=tuple(map(entry_from, message.collected)),
        part=message.part,
        keep_until=values.time(message.keep_until) if message.HasField("keep_until") else None,
        agent_record=None if record == AgentRecord(message.agent) else record,
    )


def breaker_from(message: pb.Breaker) -> Breaker:
    """Whether collectors may reap; raises ElectionError for a reason that this version does not know."""
    return Breaker(
        open=message.open,
        reason=values.known(_REASONS, message.reason, "breaker reason") if message.reason else None,
        missing=message.missing,
        known=message.known,
        by=message.by,
        at=values.time(message.at) if message.HasField("at") else None,
        until=values.time(message.until) if message.HasField("until") else None,
        revision=message.revision,
    )


def filter_from(message: pb.ListAgentsRequest) -> AgentFilter:
    """Which agents to list; raises ConfigError for a state that this version does not know."""
    numbers = {number: state for state, number in _STATES.items()}
    for number in message.states:
        if number not in numbers:
            known = ", ".join(f"{each} ({state.value})" for each, state in numbers.items())
            raise ConfigError(f"agent state {number} is not known here: the states are {known}")
    states = frozenset(numbers[number] for number in message.states) or NOT_REAPED.states
    return AgentFilter(states, dict(message.labels))


def agent_event_from(message: pb.WatchAgentsResponse) -> AgentEvent:
    """One message of WatchAgents; raises ElectionError for a kind or state that this version does not know."""
    return AgentEvent(
        kind=values.known(_AGENT_KINDS, message.kind, "agent event"),
        agent=agent_from(message.agent) if message.HasField("agent") else None,
        source=source_from(message.view),
        tombstone=tombstone_from(message.tombstone) if message.HasField("tombstone") else None,
    )
