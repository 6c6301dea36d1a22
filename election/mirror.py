"""Keeps a model true by one watch on etcd, and tells what changes in it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby

from election.agent_records import Agent, Tombstone
from election.applied import Applied, Dater
from election.backoff import Backoff
from election.errors import EtcdError, RolledBack, ViewStale
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Heard, Snapshot, follow
from election.keys import CandidateKey, Keyspace
from election.leader_history import LeaderHistory
from election.model import AgentKey, Model
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.published import Published, Reading
from election.reader import (
    AgentEvent,
    AgentEventKind,
    LeaderEvent,
    LeaderEventKind,
    Source,
    agent_change,
    complete_up_to,
    leader_change,
    reaped_event,
    vanished_event,
)
from election.records import Leader

logger = logging.getLogger("election")

CATCH_UP_S = 1.5
"""How long a caller waits who has seen more than this mirror."""

LEADER_QUEUE_LIMIT = 256
"""How many changes of one election a reader may lag behind; terms take seconds, so one that lags so far has hung."""

_RETRY_MAX_S = 2.0
"""Much less than what makes a view stale, so that a member that takes some seconds to start does not."""

_AGES_PER_S = 100
"""So many steps of a second are told apart."""

_STEP_S = 0.25
"""Heartbeats that are due within so long are sent together: a wake-up for each would cost as much again."""


def in_step(heartbeat_s: float | None) -> float | None:
    """How long to wait for a heartbeat, so that all that are due at about the same time are due at the same."""
    if heartbeat_s is None:
        return None
    now_s = asyncio.get_running_loop().time()
    return math.ceil((now_s + heartbeat_s) / _STEP_S) * _STEP_S - now_s


class Mirror:
    """What is below a prefix, as one watch shows it; `follow` runs for as long as it is to be kept true."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, prefix: bytes, rng: random.Random) -> None:
        self.model = Model()
        self.cluster_id = 0
        self.revision = 0
        self.as_of_s = float("-inf")
        self.listed = asyncio.Event()
        self.times_set_back = 0
        self._client = client
        self._keyspace = keyspace
        self._prefix = prefix
        self._rng = rng
        self._history = LeaderHistory()
        self._leaders: dict[str, Published[Applied[LeaderEvent] | None]] = {}  # of the elections that somebody watches
        self._agents: Published[Applied[AgentEvent] | None] = Published(None)
        self._beat = Applied(LeaderEvent(LeaderEventKind.HEARTBEAT, None, Source(0, 0, 0.0)), 0.0)
        self._leader_dater, self._agent_dater = Dater[LeaderEvent](), Dater[AgentEvent]()
        self._reached = Published(0)

    # --- what readers ask --------------------------------------------------------------------------------------

    def source(self, revision: int | None = None, as_of_s: float | None = None) -> Source:
        """What is told at a revision, the present one where it is None, and how old that is.

        It is as old as the mirror, unless newer changes are known, and it is told as of an earlier moment.
        """
        return Source(self.cluster_id, self.revision if revision is None else revision, self._age_s(as_of_s))

    def dated_agent(self, applied: Applied[AgentEvent], *, is_newest: bool) -> AgentEvent:
        """A change of an agent, as old as it is when it is told; those who are told at once get the same one."""
        return self._agent_dater.dated(applied, self._age_s(None if is_newest else applied.as_of_s))

    def _dated_leader(self, applied: Applied[LeaderEvent], *, is_newest: bool) -> LeaderEvent:
        return self._leader_dater.dated(applied, self._age_s(None if is_newest else applied.as_of_s))

    def _age_s(self, as_of_s: float | None = None) -> float:
        """How long nothing was heard, or for how long something is known.

        It is no less, and at most a step more, so that answers to many are the same one.
        """
        age_s = self._client.clock.now_s() - (self.as_of_s if as_of_s is None else as_of_s)
        return max(math.ceil(age_s * _AGES_PER_S) / _AGES_PER_S, 0.0) if self.listed.is_set() else age_s

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

    async def leader_events(
        self, election: str, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        """Who leads an election, or what has changed after a revision, and every change; heartbeats when it is silent.

        The revision is one that this mirror has reached. Each is as old as it is when it is told.
        """
        published = self._leaders.setdefault(election, Published(None, limit=LEADER_QUEUE_LIMIT))
        try:
            with published.read() as reading:
                missed = self._missed(election, after)
                for waiting, event in zip(reversed(range(len(missed))), missed, strict=True):
                    yield self._dated_leader(event, is_newest=not waiting and not reading.is_behind)
                if not missed and heartbeat_s is not None:
                    yield self._heartbeat(after)
                while True:
                    if not await reading.wait(in_step(heartbeat_s)):
                        yield self._heartbeat(after)
                    elif (change := reading.next()) is not None and not _is_seen(change.event, after):
                        after = None
                        yield self._dated_leader(change, is_newest=not reading.is_behind)
        finally:
            if not published.has_readers:
                self._leaders.pop(election, None)

    def _missed(self, election: str, after: int | None) -> tuple[Applied[LeaderEvent], ...]:
        """What a watch begins with."""
        if after is not None and (known := self._history.after(election, after)) is not None:
            return known
        leader = self.model.leader(election)
        kind = leader_change(None, leader) if after is None else LeaderEventKind.RESET
        return (Applied(LeaderEvent(kind, leader, self._source_now()), self.as_of_s),)

    def _heartbeat(self, after: int | None) -> LeaderEvent:
        """Nothing has happened, nor up to the revision after which a watch goes on, which this mirror has reached.

        It is the same one for all watches, of whichever election, until something happens.
        """
        source = replace(self._source_now(), revision=max(self.revision, after or 0))
        if self._beat.event.source != source:
            self._beat = Applied(LeaderEvent(LeaderEventKind.HEARTBEAT, None, source), self.as_of_s)
        return self._dated_leader(self._beat, is_newest=True)

    def agent_events(self) -> Reading[Applied[AgentEvent] | None]:
        """Every change of an agent after the call, and a RESET where some are not known."""
        return self._agents.read()

    # --- what the watch tells ----------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keeps the model true until cancelled; raises EtcdError when there is no first list."""
        backoff = Backoff(0.25, _RETRY_MAX_S, self._rng)
        while True:
            try:
                async with aclosing(follow(self._client, self._prefix, backoff)) as items:
                    async for item in items:
                        self._take(item)
            except EtcdError as error:
                if not self.listed.is_set():
                    raise
                logger.warning("the view of %s is interrupted: %s", self._keyspace.namespace, error)
                await self._client.clock.sleep_s(backoff.next_s())

    def _take(self, item: Snapshot | Changes | Heard) -> None:
        match item:
            case Snapshot(revision):
                self.as_of_s = item.as_of_s
                self._replace(item)
                self._reached.set(revision)
                self.listed.set()
            case Changes(revision, events):
                for at, group in groupby(events, key=lambda event: event.kv.mod_revision):
                    if at == revision:  # what was before may have been over by then
                        self.as_of_s = item.as_of_s
                    self._change(at, list(group))
                self._reached.set(max(revision, self._reached.value))
            case Heard(revision):
                self.as_of_s = item.as_of_s
                self._reached.set(max(revision, self._reached.value))

    def _replace(self, snapshot: Snapshot) -> None:
        """Begins anew from a list; watchers are told so where they may have missed something."""
        before, self.model = self.model, Model()
        is_other = self.cluster_id not in (0, snapshot.cluster_id)
        set_back = snapshot.set_back or is_other or snapshot.revision < self._reached.value
        self.times_set_back += set_back
        self.cluster_id, self.revision = snapshot.cluster_id, snapshot.revision
        for kv in sorted(snapshot.kvs, key=lambda kv: kv.mod_revision):
            self.model.put(self._keyspace.parse(kv.key), kv)
        unbroken = frozenset() if set_back else _same_terms(before, self.model)
        self._history.begin(self.revision, unbroken)
        for election in unbroken:
            self._tell_leader(election, before.leader(election))
        for election in self._leaders.keys() - unbroken:
            reset = LeaderEvent(LeaderEventKind.RESET, self.model.leader(election), self._source_now())
            self._leaders[election].set(Applied(reset, self.as_of_s))
        self._agents.set(Applied(AgentEvent(AgentEventKind.RESET, None, self._source_now()), self.as_of_s))

    def _change(self, revision: int, events: list[KvEvent]) -> None:
        """Applies all events of one revision, and then tells what they amount to."""
        self.revision = revision
        parsed = [(self._keyspace.parse(event.kv.key), event.kv, event.type) for event in events]
        leaders = {
            key.election: self.model.leader(key.election) for key, _, _ in parsed if isinstance(key, CandidateKey)
        }
        before = {key.agent: self.model.agent(key.agent) for key, _, _ in parsed if isinstance(key, AgentKey)}
        tombstones: list[Tombstone] = []
        for key, kv, kind in parsed:
            if kind == KvEvent.DELETE:
                self.model.delete(key, kv)
            elif (tombstone := self.model.put(key, kv)) is not None:
                tombstones.append(tombstone)
        for election, leader in leaders.items():
            self._tell_leader(election, leader)
        self._tell_agents(before, tombstones)

    def _tell_leader(self, election: str, before: Leader | None) -> None:
        """Tells and remembers what became of an election's leader."""
        after = self.model.leader(election)
        if after == before:
            return
        event = Applied(LeaderEvent(leader_change(before, after), after, self._source_now()), self.as_of_s)
        self._history.add(election, event)
        if (watched := self._leaders.get(election)) is not None:
            watched.set(event)

    def _tell_agents(self, before: Mapping[str, Agent | None], tombstones: list[Tombstone]) -> None:
        """Tells what became of agents: first what was collected, and then how they are now."""
        source = self._source_now()
        told = [
            reaped_event(tombstone, before.get(tombstone.agent), self.model.agent(tombstone.agent), source)
            for tombstone in tombstones
        ]
        collected = {tombstone.agent for tombstone in tombstones}
        for name, agent in sorted(before.items()):
            after = self.model.agent(name)
            kind = agent_change(agent, after)
            if kind is not AgentEventKind.REAPED:
                told += [] if kind is None else [AgentEvent(kind, after, source)]
            elif agent is not None and name not in collected:
                told.append(vanished_event(agent, source))
        for complete, event in complete_up_to((self.revision, event) for event in told):
            event = replace(event, source=replace(source, revision=complete))
            self._agents.set(Applied(event, self.as_of_s))

    def _source_now(self) -> Source:
        """What is told now; its age is said when it is told to somebody."""
        return Source(self.cluster_id, self.revision, 0.0)


def _is_seen(change: LeaderEvent, after: int | None) -> bool:
    """Whether a change is not after a revision that was reached: signs of life can run ahead of it (etcd #15220)."""
    return after is not None and change.kind is not LeaderEventKind.RESET and change.source.revision <= after


def _same_terms(before: Model, after: Model) -> frozenset[str]:
    """The elections in which the same term goes on in both, so that there was no other one in between.

    Keys that are made later are younger, and who leads has the oldest. Changes of its record may have been missed.
    """
    return frozenset(
        election
        for election in before.elections
        if (leader := before.leader(election)) is not None
        and (now := after.leader(election)) is not None
        and (now.key, now.token) == (leader.key, leader.token)
    )
