"""What a watch has told so far, so that a stream which another server goes on with repeats and skips nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from election.reader import AgentEvent, AgentEventKind, LeaderEvent, Source, agent_change, leader_change
from election.records import Agent, AgentState, Tombstone
from election.token import Token


@dataclass(slots=True)
class ToldLeader:
    """What a watch of an election has told so far, so that a new stream repeats nothing."""

    last: LeaderEvent | None = None

    def news(self, event: LeaderEvent) -> LeaderEvent | None:
        """The event to tell for one that arrived; None when it is known or older than what was told."""
        last = self.last
        if last is not None:
            if _is_behind(event.source, last.source) and not _is_later_term(event, last):
                return None
            if event.leader == last.leader:
                self.last = replace(last, source=event.source)
                return None
            event = replace(event, kind=leader_change(last.leader, event.leader))
        self.last = event
        return event


@dataclass(slots=True)
class ToldAgents:
    """What a watch of agents has told so far; a new stream's list is compared with it."""

    source: Source | None = None
    known: dict[str, Agent] = field(default_factory=dict)
    # Those reaped at the revision told last; a stream that begins in the middle of it tells them again.
    reaped: set[tuple[str, int]] = field(default_factory=set)
    listed: dict[str, Agent] = field(default_factory=dict)

    def begin(self) -> None:
        """A new stream begins; a list that the one before did not finish is void."""
        self.listed = {}

    def news(self, event: AgentEvent) -> list[AgentEvent]:
        """The events to tell for one that arrived."""
        if event.kind is AgentEventKind.SYNCED:
            return self._synced(event)
        if event.agent is None:
            return []
        if event.kind is AgentEventKind.PRESENT:
            self.listed[event.agent.id] = event.agent
            return []
        return [event] if self._is_new(event, event.agent) else []

    def _synced(self, event: AgentEvent) -> list[AgentEvent]:
        if self.source is None:
            self.source, self.known = event.source, self.listed
            present = [AgentEvent(AgentEventKind.PRESENT, agent, event.source) for agent in self.listed.values()]
            return [*present, event]
        if _is_behind(event.source, self.source):
            return []
        before, self.known = self.known, self.listed
        self._advance(event.source)
        changes = (
            _change(before.get(name), self.known.get(name), event.source)
            for name in sorted(before.keys() | self.known.keys())
        )
        return [change for change in changes if change is not None]

    def _is_new(self, event: AgentEvent, agent: Agent) -> bool:
        if self.source is not None and _is_behind(event.source, self.source):
            return False
        self._advance(event.source)
        if event.kind is AgentEventKind.REAPED:
            again = (agent.id, agent.incarnation) in self.reaped
            self.reaped.add((agent.id, agent.incarnation))
            self.known.pop(agent.id, None)
            return not again
        again = self.known.get(agent.id) == agent
        self.known[agent.id] = agent
        return not again

    def _advance(self, source: Source) -> None:
        if self.source is None or source.revision != self.source.revision:
            self.reaped = set()
        self.source = source


def _is_behind(source: Source, told: Source) -> bool:
    return source.cluster_id == told.cluster_id and source.revision < told.revision


def _is_later_term(event: LeaderEvent, told: LeaderEvent) -> bool:
    """Whether etcd's history was set back, and somebody leads in a new epoch since."""
    return event.leader is not None and told.leader is not None and event.leader.token > told.leader.token


def _change(before: Agent | None, after: Agent | None, source: Source) -> AgentEvent | None:
    """What became of an agent between two lists, as one event; of a reap that was missed, no more is known."""
    kind = agent_change(before, after)
    if kind is None:
        return None
    if kind is not AgentEventKind.REAPED:
        return AgentEvent(kind, after, source)
    assert before is not None
    unknown = Tombstone(before.id, before.incarnation, reaped_at=None, collector="", token=Token(0, 0))
    return AgentEvent(kind, replace(before, state=AgentState.REAPED, lease=0), source, unknown)
