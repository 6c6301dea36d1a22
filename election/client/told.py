"""What a watch has told so far, so that a stream which another server goes on with repeats and skips nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from election.agent_records import Agent, AgentState
from election.reader import (
    AgentEvent,
    AgentEventKind,
    LeaderEvent,
    LeaderEventKind,
    Source,
    agent_change,
    leader_change,
    vanished_event,
)
from election.records import Leader


@dataclass(slots=True)
class ToldLeader:
    """What a watch of an election has told so far, so that a new stream goes on after it and repeats nothing."""

    after: int | None = None
    """The revision after which a new stream is to go on; None for the present state."""

    last: LeaderEvent | None = None
    source: Source | None = None

    def forget_revisions(self) -> bool:
        """Etcd's history was set back: whatever is told next is a RESET. False when nothing was told so far."""
        self.source = self.after = None
        return self.last is not None

    def news(self, event: LeaderEvent) -> LeaderEvent | None:
        """The event to tell for one that arrived; None when it is known or older than what was told."""
        last, source = self.last, self.source
        is_reset = event.kind is LeaderEventKind.RESET
        if source is not None and not is_reset and _is_behind(event.source, source):
            return None
        self.source, self.after = event.source, event.source.revision
        if event.kind is LeaderEventKind.HEARTBEAT:
            return event
        if last is not None:
            if source is None or (is_reset and _is_behind(event.source, source)):  # the history was set back
                event = replace(event, kind=LeaderEventKind.RESET)
            elif not is_reset or _is_same_term(last.leader, event.leader):
                if event.leader == last.leader:
                    return None
                event = replace(event, kind=leader_change(last.leader, event.leader))
        self.last = event
        return event


@dataclass(slots=True)
class ToldAgents:
    """What a watch of agents has told so far: a new stream goes on after it, and its list is compared with it."""

    after: int | None = None
    """The revision after which a new stream is to go on; None where what was reaped before is of no interest."""

    source: Source | None = None
    is_synced: bool = False
    known: dict[str, Agent] = field(default_factory=dict)
    # The tombstones that were told since `after`: of a revision that was not completed, they come again.
    reaped: set[tuple[str, int, int]] = field(default_factory=set)
    listed: dict[str, Agent] = field(default_factory=dict)

    def begin(self) -> None:
        """A new stream begins; a list that the one before did not finish is void."""
        self.listed = {}

    def forget_revisions(self) -> bool:
        """Etcd's history was set back: what is told next is compared only. False when nothing was told so far."""
        self.source = self.after = None
        self.reaped = set()
        return self.is_synced

    def news(self, event: AgentEvent) -> list[AgentEvent]:
        """The events to tell for one that arrived."""
        if event.kind is AgentEventKind.RESET:
            self._reset(event.source)
            return []
        if event.kind is AgentEventKind.HEARTBEAT:
            return [event]
        if event.kind is AgentEventKind.SYNCED:
            return self._synced(event)
        if event.agent is None:
            return []
        if event.kind is AgentEventKind.PRESENT:
            self.listed[event.agent.id] = event.agent
            return []
        if self._is_behind(event.source):
            return []
        if event.kind is AgentEventKind.REAPED:
            is_new = self._is_new_reap(event, event.agent)
        else:
            is_new = self.known.get(event.agent.id) != event.agent
            self.known[event.agent.id] = event.agent
            self._advance(event.source)
        return [event] if is_new else []

    def _reset(self, source: Source) -> None:
        """The stream begins anew after what was told; or before it, when etcd's history was set back."""
        if self._is_behind(source):
            self.forget_revisions()
        self.begin()

    def _synced(self, event: AgentEvent) -> list[AgentEvent]:
        if self._is_behind(event.source):
            return []
        before, self.known = self.known, self.listed
        self._advance(event.source)
        if not self.is_synced:
            self.is_synced = True
            return [*(AgentEvent(AgentEventKind.PRESENT, agent, event.source) for agent in self.known.values()), event]
        changes = (
            _change(before.get(name), self.known.get(name), event.source)
            for name in sorted(before.keys() | self.known.keys())
        )
        return [change for change in changes if change is not None]

    def _is_new_reap(self, event: AgentEvent, agent: Agent) -> bool:
        key = (agent.id, agent.incarnation, event.tombstone.part if event.tombstone else 0)
        is_new = key not in self.reaped
        self._advance(event.source)
        self.reaped.add(key)
        known = self.known.get(agent.id)
        if agent.state is AgentState.SUSPECT:  # more parts follow
            self.known[agent.id] = agent
        elif known is not None and known.incarnation <= agent.incarnation:
            del self.known[agent.id]
        return is_new

    def _advance(self, source: Source) -> None:
        if source.revision != self.after:
            self.reaped = set()
        self.source, self.after = source, source.revision

    def _is_behind(self, source: Source) -> bool:
        return self.source is not None and _is_behind(source, self.source)


def _is_behind(source: Source, told: Source) -> bool:
    return source.cluster_id == told.cluster_id and source.revision < told.revision


def _is_same_term(before: Leader | None, after: Leader | None) -> bool:
    return before is not None and after is not None and before.token == after.token


def _change(before: Agent | None, after: Agent | None, source: Source) -> AgentEvent | None:
    """What became of an agent between two lists, as one event."""
    kind = agent_change(before, after)
    if kind is AgentEventKind.REAPED and before is not None:
        return vanished_event(before, source)
    return None if kind is None else AgentEvent(kind, after, source)
