"""Keeps a model true by one watch on etcd, and tells what changes in it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby

from election.agent_records import Agent, Tombstone
from election.backoff import Backoff
from election.errors import EtcdError, RolledBack, ViewStale
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Heard, Snapshot, follow
from election.keys import CandidateKey, Keyspace
from election.model import AgentKey, Model
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.published import Published
from election.reader import (
    AgentEvent,
    AgentEventKind,
    LeaderEvent,
    Source,
    agent_change,
    complete_up_to,
    leader_change,
    reaped_event,
    vanished_event,
)

logger = logging.getLogger("election")

CATCH_UP_S = 1.5
"""How long a caller waits who has seen more than this mirror; etcd says once a second how far a silent watch is."""


_RETRY_MAX_S = 2.0
"""Much less than what makes a view stale, so that a member that takes some seconds to start does not."""


class Mirror:
    """What is below a prefix, as one watch shows it; `follow` runs for as long as it is to be kept true."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, prefix: bytes, rng: random.Random) -> None:
        self.model = Model()
        self.cluster_id = 0
        self.revision = 0
        self.heard_at_s = float("-inf")
        self.listed = asyncio.Event()
        self._client = client
        self._keyspace = keyspace
        self._prefix = prefix
        self._rng = rng
        self._leaders: dict[str, Published[LeaderEvent]] = {}
        self._agents: Published[AgentEvent | None] = Published(None)
        self._reached = Published(0)

    # --- what readers ask --------------------------------------------------------------------------------------

    def source(self, revision: int | None = None) -> Source:
        """What is told at a revision, the present one where it is None, and how old that is."""
        age_s = self._client.clock.now_s() - self.heard_at_s
        return Source(self.cluster_id, self.revision if revision is None else revision, max(age_s, 0.0))

    async def reach(self, revision: int) -> None:
        """Waits until everything up to a revision has been delivered.

        Raises:
            ViewStale: when that takes too long.
            RolledBack: when etcd itself is not there: its history was set back, or it is another etcd.
        """
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._reached.until(lambda reached: reached >= revision)
        except TimeoutError:
            _, header = await self._client.get(self._prefix)
            if header.revision < revision:
                raise RolledBack(
                    f"etcd is at revision {header.revision}, and {revision} has been seen: its history was set back, "
                    "or it is another etcd; begin again from the present"
                ) from None
            raise ViewStale(
                f"the view is at revision {self._reached.value} of etcd, and {revision} has been seen: it lags behind"
            ) from None

    async def leader_events(self, election: str) -> AsyncGenerator[LeaderEvent]:
        """Who leads an election, and every change."""
        if election not in self._leaders:
            leader = self.model.leader(election)
            self._leaders[election] = Published(LeaderEvent(leader_change(None, leader), leader, self._source_now()))
        published = self._leaders[election]
        try:
            async with aclosing(published.values()) as events:
                async for event in events:
                    yield event
        finally:
            if not published.has_readers:
                self._leaders.pop(election, None)

    def agent_events(self) -> AsyncGenerator[AgentEvent | None]:
        """What happened to an agent last, and then every change; the reader is registered at the call."""
        return self._agents.values()

    # --- what the watch tells ----------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keeps the model true until cancelled; raises EtcdError when there is no first list."""
        backoff = Backoff(0.25, _RETRY_MAX_S, self._rng)
        while True:
            try:
                async with aclosing(follow(self._client, self._prefix, backoff)) as items:
                    async for item in items:
                        self.heard_at_s = self._client.clock.now_s()
                        self._take(item)
            except EtcdError as error:
                if not self.listed.is_set():
                    raise
                logger.warning("the view of %s is interrupted: %s", self._keyspace.namespace, error)
                await self._client.clock.sleep_s(backoff.next_s())

    def _take(self, item: Snapshot | Changes | Heard) -> None:
        match item:
            case Snapshot(revision):
                self._replace(item)
                self._reached.set(revision)
                self.listed.set()
            case Changes(revision, events):
                for at, group in groupby(events, key=lambda event: event.kv.mod_revision):
                    self._change(at, list(group))
                self._reached.set(max(revision, self._reached.value))
            case Heard(revision):
                self._reached.set(max(revision, self._reached.value))

    def _replace(self, snapshot: Snapshot) -> None:
        """Begins anew from a list; watchers are told what is different from what they know."""
        before, self.model = self.model, Model()
        known_to, self.cluster_id, self.revision = self.revision, snapshot.cluster_id, snapshot.revision
        tombstones: list[tuple[int, Tombstone]] = []
        for kv in sorted(snapshot.kvs, key=lambda kv: kv.mod_revision):
            tombstone = self.model.put(self._keyspace.parse(kv.key), kv)
            if tombstone is not None and 0 < known_to < kv.mod_revision:
                tombstones.append((kv.mod_revision, tombstone))
        if not self.listed.is_set():
            return  # nobody watches yet
        self._tell_leaders(before.elections.keys() | self.model.elections.keys())
        names = {agent.id for model in (before, self.model) for agent in model.agents()}
        self._tell_agents({name: before.agent(name) for name in names}, tombstones)

    def _change(self, revision: int, events: list[KvEvent]) -> None:
        """Applies all events of one revision, and then tells what they amount to."""
        self.revision = revision
        parsed = [(self._keyspace.parse(event.kv.key), event.kv, event.type) for event in events]
        before = {key.agent: self.model.agent(key.agent) for key, _, _ in parsed if isinstance(key, AgentKey)}
        tombstones: list[tuple[int, Tombstone]] = []
        for key, kv, kind in parsed:
            if kind == KvEvent.DELETE:
                self.model.delete(key, kv)
            elif (tombstone := self.model.put(key, kv)) is not None:
                tombstones.append((revision, tombstone))
        self._tell_leaders({key.election for key, _, _ in parsed if isinstance(key, CandidateKey)})
        self._tell_agents(before, tombstones)

    def _tell_leaders(self, elections: Iterable[str]) -> None:
        for election in elections:
            if (events := self._leaders.get(election)) is None:
                continue
            known, leader = events.value.leader, self.model.leader(election)
            if leader != known:
                events.set(LeaderEvent(leader_change(known, leader), leader, self._source_now()))

    def _tell_agents(self, before: Mapping[str, Agent | None], tombstones: list[tuple[int, Tombstone]]) -> None:
        """Tells what became of agents: first what was collected, and then how they are now."""
        source = self._source_now()
        told = [
            (revision, reaped_event(tombstone, before.get(tombstone.agent), self.model.agent(tombstone.agent), source))
            for revision, tombstone in tombstones
        ]
        collected = {tombstone.agent for _, tombstone in tombstones}
        for name, agent in sorted(before.items()):
            after = self.model.agent(name)
            kind = agent_change(agent, after)
            if kind is not AgentEventKind.REAPED:
                told += [] if kind is None else [(self.revision, AgentEvent(kind, after, source))]
            elif agent is not None and name not in collected:
                told.append((self.revision, vanished_event(agent, source)))
        for complete, event in complete_up_to(told):
            self._agents.set(replace(event, source=replace(source, revision=complete)))

    def _source_now(self) -> Source:
        return Source(self.cluster_id, self.revision, 0.0)
