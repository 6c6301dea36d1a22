"""What can be asked of the system, and how it answers; and what a change between two answers is called.

`Reader` has two sources: `View` (views.py) over etcd itself, and `Client` (client/client.py) over the gRPC API.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar

from election.agent_records import Agent, AgentRecord, AgentState, StateEntry, Tombstone
from election.breaker import Breaker
from election.fields import Labels
from election.records import Candidate, Election, Leader
from election.token import Token

MAX_AGE_S = 10.0
"""A view that is older than this answers nothing any more."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from: complete up to `revision`, and `age_s` old (0: etcd was asked for it).

    An event has the age that it has when it is told, or sent by a server. One that is told while newer ones wait behind
    it is as old as what was known when it was seen; what was reaped before a watch began, as old as the watch.

    It is no older than that, also where a network, a member of etcd that lags behind or a pause of the process has held
    something up: the age counts from when a linearizable read of etcd began, and everything was delivered since up to
    where etcd was then.
    In etcd before 3.4.25 and 3.5.8 a watch can say that it has delivered what it has not yet (#15220).
    """

    cluster_id: int
    revision: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """An answer and where it comes from."""

    value: T
    source: Source


class LeaderEventKind(StrEnum):
    """What happened to the leadership of an election.

    RESET: what happened in between is not known, whole terms perhaps; this is the present state. HEARTBEAT: nothing
    did; it is told only to those who ask for it.
    """

    ELECTED = "elected"
    UPDATED = "updated"
    VACATED = "vacated"
    RESET = "reset"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class LeaderEvent:
    """A change of leadership, seen at a revision.

    `leader` is None with VACATED, with RESET where nobody leads, and with HEARTBEAT, which only has a source. Once it
    has been told, everything up to `source.revision` has: a watch can go on after that.
    """

    kind: LeaderEventKind
    leader: Leader | None
    source: Source


class AgentEventKind(StrEnum):
    """What happened to an agent. PRESENT and SYNCED are the beginning of every watch.

    RESET: what happened since the last event is not known. The watch begins anew after that one: what was REAPED since
    then, every agent that is there as PRESENT, and SYNCED. HEARTBEAT: nothing happened; it is told only to those who
    ask for it.
    """

    RESET = "reset"
    PRESENT = "present"
    SYNCED = "synced"
    JOINED = "joined"
    UPDATED = "updated"
    STALE = "stale"
    RECOVERED = "recovered"
    REAPED = "reaped"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """A change of an agent, which is None exactly with RESET, SYNCED and HEARTBEAT; `tombstone` is there with REAPED.

    Once it has been told, the watch has told every change up to `source.revision`: a watch can go on after that. Of
    several changes in one revision only the last one completes it.

    A state that is collected in parts is told as one REAPED for each; the agent is SUSPECT in all but the last one,
    where that is known. A tombstone without a `reaped_at` stands for one that is not there: the agent left and left
    nothing behind, or the retention of its tombstone is over.
    """

    kind: AgentEventKind
    agent: Agent | None
    source: Source
    tombstone: Tombstone | None = None


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents to list: those in one of the states that have all of the labels.

    An empty label value stands for any, and a reaped agent has the labels that it had.
    """

    states: frozenset[AgentState] = frozenset({AgentState.ALIVE, AgentState.DRAINING, AgentState.SUSPECT})
    labels: Labels = field(default_factory=dict)

    def takes(self, agent: Agent) -> bool:
        """Whether the agent fits."""
        return agent.state in self.states and all(
            name in agent.labels and value in ("", agent.labels[name]) for name, value in self.labels.items()
        )


NOT_REAPED = AgentFilter()
"""All agents of which there is more than a tombstone."""


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """Whether a token is that of the present leader."""

    current: bool
    leader: Leader | None


class Reader(Protocol):
    """What can be asked. Every method raises ElectionError kinds only, ViewStale among them.

    An answer is from memory unless it is asked for `linearizable`: then it holds whatever had happened when the
    question was asked, its source has an age of 0, and EtcdUnavailable is raised when etcd cannot be asked.
    """

    async def leader(self, election: str, *, linearizable: bool = False) -> Answer[Leader | None]:
        """Who leads; None when nobody does."""
        ...

    def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        """Who leads now (ELECTED or VACATED), and then every change.

        With `after`, the revision of an event that was seen before: exactly the changes that came later; where these
        are not known any more, RESET with the present state, and then every change. Raises RolledBack for a revision
        that etcd has not come to, and ViewStale for one that this reader has not come to.

        With `heartbeat_s`, a HEARTBEAT whenever nothing was told for so long, and at once where a watch that goes on
        has nothing to tell.
        """
        ...

    async def elections(self, *, linearizable: bool = False) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, by name."""
        ...

    async def candidates(self, election: str, *, linearizable: bool = False) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, oldest first."""
        ...

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader, read from etcd and not from memory."""
        ...

    async def agents(
        self, chosen: AgentFilter = NOT_REAPED, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, ...]]:
        """The agents that fit, by id; those that are alive, draining or suspect where nothing else is asked for."""
        ...

    async def agent(
        self, id: str, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent, and its state, which is always read from etcd; None when it is not known."""
        ...

    def watch_agents(self, *, after: int | None = None, heartbeat_s: float | None = None) -> AsyncGenerator[AgentEvent]:
        """Every agent (PRESENT), one SYNCED, and then every change.

        With `after`, the revision of an event that was seen before, the REAPED events that came later are told first:
        those of every tombstone that is still kept, all of them with 0. Raises RolledBack for one that etcd has not
        come to, and ViewStale for one that this reader has not come to. With `heartbeat_s`, a HEARTBEAT whenever
        nothing was told for so long.
        """
        ...

    async def tombstones(self, agent: str | None = None) -> Answer[tuple[Tombstone, ...]]:
        """The tombstones that are kept, of one agent or of all, the oldest reap first; read from etcd."""
        ...

    async def breaker(self) -> Answer[Breaker]:
        """Whether collectors may reap at present, read from etcd."""
        ...


def complete_up_to(told: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """For each thing that is told of a revision, the revision that is complete once it has been told."""
    rows = list(told)
    following = [revision for revision, _ in rows[1:]]
    for (revision, item), later in zip_longest(rows, following):
        yield (revision - 1 if later == revision else revision), item


def reaped_event(tombstone: Tombstone, before: Agent | None, after: Agent | None, source: Source) -> AgentEvent:
    """What is told of a tombstone, given what the agent was before it was put, if that is known, and is after."""
    record = tombstone.agent_record
    if record is None and before is not None and before.incarnation == tombstone.incarnation:
        record = AgentRecord(before.id, before.address, before.labels, before.registered_at)
    more = after is not None and after.state is AgentState.SUSPECT and after.incarnation == tombstone.incarnation
    agent = Agent(
        id=tombstone.agent,
        state=AgentState.SUSPECT if more else AgentState.REAPED,
        incarnation=tombstone.incarnation,
        address=record.address if record else "",
        labels=record.labels if record else {},
        registered_at=record.registered_at if record else None,
        state_keys=tuple(sorted(entry.key for entry in tombstone.collected)),
    )
    return AgentEvent(AgentEventKind.REAPED, agent, source, tombstone)


def vanished_event(before: Agent, source: Source) -> AgentEvent:
    """What is told of an agent that is not there any more, and has no tombstone."""
    record = AgentRecord(before.id, before.address, before.labels, before.registered_at)
    tombstone = Tombstone(
        before.id, before.incarnation, reaped_at=None, collector="", token=Token(0, 0), agent_record=record
    )
    return reaped_event(tombstone, None, None, source)


def leader_change(before: Leader | None, after: Leader | None) -> LeaderEventKind:
    """What a change of an election's leader is called; the two are not equal."""
    if after is None:
        return LeaderEventKind.VACATED
    same_term = before is not None and before.token == after.token
    return LeaderEventKind.UPDATED if same_term else LeaderEventKind.ELECTED


def agent_change(before: Agent | None, after: Agent | None) -> AgentEventKind | None:
    """What a change of an agent is called; None for one that watches do not tell, such as that of its state's keys."""
    if before is None or before.state is AgentState.REAPED:
        if after is None or after.state is AgentState.REAPED:
            return None
        return AgentEventKind.STALE if after.state is AgentState.SUSPECT else AgentEventKind.JOINED
    if after is None or after.state is AgentState.REAPED:
        return AgentEventKind.REAPED
    was_suspect, is_suspect = before.state is AgentState.SUSPECT, after.state is AgentState.SUSPECT
    if was_suspect != is_suspect:
        return AgentEventKind.STALE if is_suspect else AgentEventKind.RECOVERED
    if is_suspect or replace(before, state_keys=()) == replace(after, state_keys=()):
        return None
    return AgentEventKind.UPDATED if before.incarnation == after.incarnation else AgentEventKind.JOINED
