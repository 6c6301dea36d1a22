"""The read model: who leads, who stands, which agents are there, from one watch on etcd."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import TracebackType
from typing import Self

from election.backoff import Backoff
from election.errors import EtcdError, ViewStale
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Snapshot, follow
from election.keys import REGISTRATION, AliveKey, CandidateKey, Keyspace, StateKey, TombstoneKey
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.pb.etcd.kv_pb2 import KeyValue
from election.published import Published
from election.reader import (
    MAX_AGE_S,
    AgentEvent,
    AgentEventKind,
    Answer,
    LeaderEvent,
    Source,
    TokenCheck,
    agent_change,
    leader_change,
)
from election.records import (
    Agent,
    AgentRecord,
    AgentState,
    Candidate,
    Election,
    Leader,
    StateEntry,
    Tombstone,
    leader_of,
)
from election.token import Token

logger = logging.getLogger("election")


@dataclass(frozen=True, slots=True)
class _Alive:
    incarnation: int
    lease: int
    record: AgentRecord


@dataclass(slots=True)
class _Model:
    """The namespace as the watch has shown it so far."""

    elections: dict[str, dict[bytes, Candidate]] = field(default_factory=dict)
    alive: dict[str, _Alive] = field(default_factory=dict)
    stored: dict[str, dict[str, int]] = field(default_factory=dict)
    registered: dict[str, AgentRecord] = field(default_factory=dict)
    reaped: dict[str, int] = field(default_factory=dict)  # the newest incarnation with a tombstone

    def put(self, key: object, kv: KeyValue) -> None:
        match key:
            case CandidateKey(election):
                self.elections.setdefault(election, {})[kv.key] = Candidate.of(election, kv)
            case AliveKey(agent):
                record = AgentRecord.decode(agent, kv.value)
                self.alive[agent] = _Alive(kv.create_revision, kv.lease, record)
            case StateKey(agent, name):
                self.stored.setdefault(agent, {})[name] = kv.mod_revision
                if name == REGISTRATION:
                    self.registered[agent] = AgentRecord.decode(agent, kv.value)
            case TombstoneKey(agent, incarnation):
                self.reaped[agent] = max(incarnation, self.reaped.get(agent, 0))

    def delete(self, key: object, kv: KeyValue) -> None:
        match key:
            case CandidateKey(election) if queue := self.elections.get(election):
                queue.pop(kv.key, None)
                if not queue:
                    del self.elections[election]
            case AliveKey(agent):
                self.alive.pop(agent, None)
            case StateKey(agent, name) if names := self.stored.get(agent):
                names.pop(name, None)
                if not names:
                    del self.stored[agent]
                    self.registered.pop(agent, None)
            case TombstoneKey(agent, incarnation) if self.reaped.get(agent) == incarnation:
                del self.reaped[agent]

    def known(self) -> set[str]:
        """The ids of all agents that are alive or have state."""
        return self.alive.keys() | self.stored.keys()

    def agent(self, id: str) -> Agent | None:
        names = tuple(sorted(self.stored.get(id, {}).keys() - {REGISTRATION}))
        if alive := self.alive.get(id):
            return _agent(alive.record, AgentState.ALIVE, alive.incarnation, alive.lease, names)
        if id in self.stored:
            incarnation = self.stored[id].get(REGISTRATION, 0)
            return _agent(self.registered.get(id, AgentRecord(id)), AgentState.SUSPECT, incarnation, 0, names)
        if id in self.reaped:
            return _agent(AgentRecord(id), AgentState.REAPED, self.reaped[id], 0, ())
        return None

    def leader(self, election: str) -> Leader | None:
        return leader_of(self.elections.get(election, {}).values())


def _agent(record: AgentRecord, state: AgentState, incarnation: int, lease: int, names: tuple[str, ...]) -> Agent:
    return Agent(record.id, state, incarnation, lease, record.address, record.labels, record.registered_at, names)


class View:
    """A Reader over etcd that keeps what it watches in memory; one watch, however many ask.

    `prefix` bounds what is watched (all of the namespace where it is None). Use inside `async with`: entering
    waits for the first list, and raises EtcdError when there is none.
    """

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        *,
        prefix: bytes | None = None,
        max_age_s: float = MAX_AGE_S,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._prefix = prefix or keyspace.root
        self._max_age_s = max_age_s
        self._rng = rng or random.Random()
        self._model = _Model()
        self._cluster_id = 0
        self._revision = 0
        self._heard_at_s = float("-inf")
        self._leaders: dict[str, Published[LeaderEvent]] = {}
        self._agents: Published[AgentEvent | None] = Published(None)
        self._listed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow(), name="view")
        listed = asyncio.create_task(self._listed.wait())
        try:
            await asyncio.wait({self._following, listed}, return_when=asyncio.FIRST_COMPLETED)
            if self._following.done():
                await self._following
        except BaseException:
            self._following.cancel()
            raise
        finally:
            listed.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
            if not self._following.cancelled():
                self._following.result()

    # --- questions -------------------------------------------------------------------------------------------

    def source(self) -> Source:
        """How fresh the view is; raises ViewStale when that is too old to answer from."""
        age_s = self._client.clock.now_s() - self._heard_at_s
        if age_s > self._max_age_s:
            raise ViewStale(
                f"etcd has not been heard for {age_s:.1f} s (the limit is {self._max_age_s:g} s): "
                "an answer from memory might not be true any more"
            )
        return Source(self._cluster_id, self._revision, max(age_s, 0.0))

    async def leader(self, election: str) -> Answer[Leader | None]:
        """Who leads, from memory."""
        self._keyspace.campaign(election)
        return Answer(self._model.leader(election), self.source())

    async def elections(self) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, from memory."""
        rows = sorted(self._model.elections.items())
        return Answer(
            tuple(Election(name, len(queue), leader_of(queue.values())) for name, queue in rows), self.source()
        )

    async def candidates(self, election: str) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, from memory."""
        self._keyspace.campaign(election)
        queue = self._model.elections.get(election, {}).values()
        return Answer(tuple(sorted(queue, key=lambda candidate: candidate.created)), self.source())

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader: one linearizable read of etcd."""
        listed = await self._client.list(self._keyspace.campaign(election))
        leader = leader_of(Candidate.of(election, kv) for kv in listed.kvs)
        current = leader is not None and leader.token == token
        return Answer(TokenCheck(current, leader), Source(listed.header.cluster_id, listed.header.revision, 0.0))

    async def agents(self) -> Answer[tuple[Agent, ...]]:
        """The agents that are alive, draining or suspect, from memory."""
        return Answer(self._present_agents(), self.source())

    async def agent(self, id: str) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent from memory, with its state's values from one linearizable read of etcd."""
        prefix = self._keyspace.states(id)
        listed = await self._client.list(prefix)
        agent = self._model.agent(id)
        if agent is None:
            return Answer(None, self.source())
        entries = (StateEntry.of(prefix, kv) for kv in listed.kvs)
        return Answer((agent, tuple(entry for entry in entries if entry.key != REGISTRATION)), self.source())

    # --- watches ---------------------------------------------------------------------------------------------

    async def watch_leader(self, election: str) -> AsyncGenerator[LeaderEvent]:
        """Who leads now, and then every change; raises TooSlow for a reader that lags too far behind."""
        self._keyspace.campaign(election)
        self.source()
        published = self._leader_events(election)
        try:
            async with aclosing(published.values()) as events:
                yield replace(await anext(events), source=self.source())
                async for event in events:
                    yield replace(event, source=self._stamp(event.source))
        finally:
            if not published.has_readers:
                self._leaders.pop(election, None)

    async def watch_agents(self) -> AsyncGenerator[AgentEvent]:
        """Every agent, one SYNCED, and then every change; raises TooSlow for a reader that lags too far behind."""
        source = self.source()
        present = self._present_agents()
        async with aclosing(self._agents.values()) as events:
            await anext(events)  # what happened last, before this watch began
            for agent in present:
                yield AgentEvent(AgentEventKind.PRESENT, agent, source)
            yield AgentEvent(AgentEventKind.SYNCED, None, source)
            async for event in events:
                if event is not None:
                    yield event

    def _stamp(self, source: Source) -> Source:
        age_s = max(self._client.clock.now_s() - self._heard_at_s, 0.0)
        return replace(source, age_s=age_s)

    def _present_agents(self) -> tuple[Agent, ...]:
        return tuple(agent for agent in map(self._model.agent, sorted(self._model.known())) if agent is not None)

    def _leader_events(self, election: str) -> Published[LeaderEvent]:
        if election not in self._leaders:
            leader = self._model.leader(election)
            self._leaders[election] = Published(LeaderEvent(leader_change(None, leader), leader, self._source_now()))
        return self._leaders[election]

    # --- what the watch tells --------------------------------------------------------------------------------

    async def _follow(self) -> None:
        backoff = Backoff(0.25, 5.0, self._rng)
        while True:
            try:
                async with aclosing(follow(self._client, self._prefix, backoff)) as items:
                    async for item in items:
                        self._heard_at_s = self._client.clock.now_s()
                        if isinstance(item, Snapshot):
                            self._replace(item)
                            self._listed.set()
                        elif isinstance(item, Changes):
                            for revision, group in groupby(item.events, key=lambda event: event.kv.mod_revision):
                                self._change(revision, list(group))
            except EtcdError as error:
                if not self._listed.is_set():
                    raise
                logger.warning("the view of %s is interrupted: %s", self._keyspace.namespace, error)
                await self._client.clock.sleep_s(backoff.next_s())

    def _replace(self, snapshot: Snapshot) -> None:
        """Begins anew from a list; watchers are told what is different from what they know."""
        before, self._model = self._model, _Model()
        tombstones: dict[str, Tombstone] = {}
        for kv in snapshot.kvs:
            key = self._keyspace.parse(kv.key)
            self._model.put(key, kv)
            if isinstance(key, TombstoneKey) and 0 < self._revision < kv.mod_revision:
                tombstones[key.agent] = Tombstone.decode(key.agent, key.incarnation, kv.value)
        self._cluster_id, self._revision = snapshot.cluster_id, snapshot.revision
        self._tell_leaders(before.elections.keys() | self._model.elections.keys())
        for name in sorted(before.known() | self._model.known() | tombstones.keys()):
            self._tell_agent(before.agent(name), self._model.agent(name), tombstones.get(name))

    def _change(self, revision: int, events: list[KvEvent]) -> None:
        """Applies all events of one revision, and then tells what they amount to."""
        self._revision = revision
        parsed = [(self._keyspace.parse(event.kv.key), event) for event in events]
        agents = {key.agent for key, _ in parsed if isinstance(key, AliveKey | StateKey | TombstoneKey)}
        before = {name: self._model.agent(name) for name in agents}
        tombstones: dict[str, Tombstone] = {}
        for key, event in parsed:
            if event.type == KvEvent.DELETE:
                self._model.delete(key, event.kv)
                continue
            self._model.put(key, event.kv)
            if isinstance(key, TombstoneKey):
                tombstones[key.agent] = Tombstone.decode(key.agent, key.incarnation, event.kv.value)
        self._tell_leaders({key.election for key, _ in parsed if isinstance(key, CandidateKey)})
        for name in sorted(agents):
            self._tell_agent(before[name], self._model.agent(name), tombstones.get(name))

    def _tell_leaders(self, elections: Iterable[str]) -> None:
        for election in elections:
            if (events := self._leaders.get(election)) is None:
                continue
            known, leader = events.value.leader, self._model.leader(election)
            if leader != known:
                events.set(LeaderEvent(leader_change(known, leader), leader, self._source_now()))

    def _tell_agent(self, before: Agent | None, after: Agent | None, tombstone: Tombstone | None) -> None:
        source = self._source_now()
        if tombstone is not None:
            agent = replace(before, state=AgentState.REAPED, lease=0) if before else Agent(
                tombstone.agent, AgentState.REAPED, tombstone.incarnation
            )  # fmt: skip
            self._agents.set(AgentEvent(AgentEventKind.REAPED, agent, source, tombstone))
        kind = agent_change(before, after)
        if kind is not None and kind is not AgentEventKind.REAPED:  # a reap is told by its tombstone
            self._agents.set(AgentEvent(kind, after, source))

    def _source_now(self) -> Source:
        return Source(self._cluster_id, self._revision, 0.0)
