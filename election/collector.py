"""Collects what agents leave behind when their leases end: once, and never from a living agent.

Any number of collectors may run; the one that leads the election `_collector` works. It notices vanished liveness
keys in its watch and by listing everything again at an interval, waits the grace, and reaps an agent in one
transaction, which etcd refuses when the agent is back, when its state has changed, or when this collector does not
lead any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from election.backoff import Backoff
from election.candidate import Candidate
from election.config import CandidateConfig, CollectorConfig
from election.epoch import EpochGuard
from election.errors import Deposed, ElectionError, EtcdError, LossReason, NotLeader
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.etcd.lease import let_go
from election.etcd.watch import Changes, Snapshot, follow
from election.fencing.txn import fenced_txn
from election.keys import COLLECTOR_ELECTION, REGISTRATION, AliveKey, Keyspace, StateKey, TombstoneKey
from election.machine import Transition
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.pb.etcd.kv_pb2 import KeyValue
from election.published import Published
from election.records import StateEntry, Tombstone
from election.term import Term

logger = logging.getLogger("election")

_COMPARED_KEYS = 100
"""etcd takes 128 comparisons in a transaction; a few are for the leader's and the liveness key."""

_TOMBSTONE_BYTES = 1280 * 1024
"""etcd takes requests of 1.5 MiB, the comparisons included, and a tombstone holds all values of a state."""


@dataclass(frozen=True, slots=True)
class Suspected:
    """An agent's liveness key is gone; it is reaped in `grace_s` seconds unless it comes back."""

    agent: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """A suspect is alive again; nothing of it was touched."""

    agent: str


@dataclass(frozen=True, slots=True)
class Reaped:
    """An agent's state was collected."""

    tombstone: Tombstone


@dataclass(frozen=True, slots=True)
class ReapFailed:
    """An agent's state could not be collected; it is tried again at the next reconcile."""

    agent: str
    error: str


CollectorEvent = Suspected | Recovered | Reaped | ReapFailed


@dataclass(slots=True)
class _Fleet:
    """What the collector knows: who is alive, who has state, and since when somebody with state is not alive."""

    alive: set[str] = field(default_factory=set)
    stored: dict[str, set[str]] = field(default_factory=dict)
    vanished_at_s: dict[str, float] = field(default_factory=dict)
    revision: int = 0

    def put(self, key: object) -> None:
        match key:
            case AliveKey(agent):
                self.alive.add(agent)
            case StateKey(agent, name):
                self.stored.setdefault(agent, set()).add(name)

    def delete(self, key: object) -> None:
        match key:
            case AliveKey(agent):
                self.alive.discard(agent)
            case StateKey(agent, name) if names := self.stored.get(agent):
                names.discard(name)
                if not names:
                    del self.stored[agent]

    def suspects(self) -> set[str]:
        return self.stored.keys() - self.alive


class Collector:
    """Stands for the election of collectors and collects while it leads; made by `Store.collector`."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        *,
        id: str,
        config: CollectorConfig | None = None,
        candidate_config: CandidateConfig | None = None,
        guard: EpochGuard | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._config = config or CollectorConfig()
        self._rng = rng or random.Random()
        self._published: Published[CollectorEvent | None] = Published(None)
        self.candidate = Candidate(
            client, keyspace, COLLECTOR_ELECTION, id=id, config=candidate_config, guard=guard, rng=self._rng
        )

    def events(self) -> AsyncGenerator[CollectorEvent | None]:
        """What this collector does from now on; first the last thing that it did, or None."""
        return self._published.values()

    def transitions(self) -> AsyncGenerator[Transition]:
        """How this collector stands in the election of collectors."""
        return self.candidate.transitions()

    async def run(self) -> None:
        """Collects whenever this collector leads, until `leave`; raises and is cancelled as `Candidate.lead`."""
        await self.candidate.lead(self._collect)

    def leave(self) -> None:
        """Asks `run` to return."""
        self.candidate.leave(LossReason.RESIGNED)

    # --- one term ----------------------------------------------------------------------------------------------

    async def _collect(self, term: Term) -> None:
        fleet = _Fleet()
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            observing = group.create_task(self._observe(fleet, changed))
            try:
                await self._sweep(term, fleet, changed)
            except (NotLeader, Deposed) as error:  # the candidate hears of it as well: resign, and stand again
                logger.warning("%s", error)
            observing.cancel()

    async def _observe(self, fleet: _Fleet, changed: asyncio.Event) -> None:
        """Keeps `fleet` true: from the watch, and from a new list at every reconcile interval."""
        backoff = Backoff(0.25, 5.0, self._rng)
        while True:
            try:
                async with (
                    asyncio.timeout(self._config.reconcile_s),
                    aclosing(follow(self._client, self._keyspace.agents, backoff)) as items,
                ):
                    async for item in items:
                        if isinstance(item, Snapshot):
                            self._replace(fleet, item)
                        elif isinstance(item, Changes):
                            self._change(fleet, item)
                        self._compare(fleet)
                        changed.set()
            except TimeoutError:
                continue
            except EtcdError as error:
                logger.warning("the collector cannot watch the agents: %s", error)
                await self._client.clock.sleep_s(backoff.next_s())

    def _replace(self, fleet: _Fleet, snapshot: Snapshot) -> None:
        fleet.alive.clear()
        fleet.stored.clear()
        for kv in snapshot.kvs:
            key = self._keyspace.parse(kv.key)
            fleet.put(key)
            if isinstance(key, TombstoneKey) and 0 < fleet.revision < kv.mod_revision:
                self._tell_reaped(key, kv)
        fleet.revision = snapshot.revision

    def _change(self, fleet: _Fleet, changes: Changes) -> None:
        fleet.revision = changes.revision
        for event in changes.events:
            key = self._keyspace.parse(event.kv.key)
            if event.type == KvEvent.DELETE:
                fleet.delete(key)
                if isinstance(key, AliveKey):
                    self._compare(fleet)  # an agent that is back in the same answer has a new grace all the same
            else:
                fleet.put(key)
                if isinstance(key, TombstoneKey):
                    self._tell_reaped(key, event.kv)

    def _compare(self, fleet: _Fleet) -> None:
        """Begins the grace of agents that are newly suspect, and ends that of agents that are not any more."""
        suspects = fleet.suspects()
        for agent in fleet.vanished_at_s.keys() - suspects:
            del fleet.vanished_at_s[agent]
            if agent in fleet.alive:
                self._published.set(Recovered(agent))
        for agent in sorted(suspects - fleet.vanished_at_s.keys()):
            fleet.vanished_at_s[agent] = self._client.clock.now_s()
            self._published.set(Suspected(agent, self._config.grace_s))

    def _tell_reaped(self, key: TombstoneKey, kv: KeyValue) -> None:
        """Reports a reap once, from its tombstone: a reap whose answer was lost is not missed so."""
        tombstone = Tombstone.decode(key.agent, key.incarnation, kv.value)
        if tombstone.collector == self.candidate.id:
            self._published.set(Reaped(tombstone))

    async def _sweep(self, term: Term, fleet: _Fleet, changed: asyncio.Event) -> None:
        """Reaps each suspect when its grace is over, until cancelled; raises NotLeader or Deposed after a loss."""
        clock = self._client.clock
        while True:
            changed.clear()
            now_s = clock.now_s()
            due_at_s = {agent: since_s + self._config.grace_s for agent, since_s in fleet.vanished_at_s.items()}
            for agent in sorted(agent for agent, at_s in due_at_s.items() if at_s <= now_s):
                try:
                    await self._reap(term, agent)
                except EtcdError as error:
                    logger.warning("agent %s could not be reaped: %s", agent, error)
                    self._published.set(ReapFailed(agent, str(error)))
                    # Its grace begins anew, so a failure is tried again after a while and not at once.
                    fleet.vanished_at_s[agent] = clock.now_s()
            waiting_s = [at_s - clock.now_s() for at_s in due_at_s.values() if at_s > now_s]
            try:
                async with asyncio.timeout(max(min(waiting_s, default=self._config.reconcile_s), 0.01)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _reap(self, term: Term, agent: str) -> None:
        """Collects one agent in one transaction, or nothing at all when it came back or changed.

        Raises:
            NotLeader, Deposed: this collector does not lead any more.
            EtcdError: etcd could not be used, or the state does not fit into one transaction.
        """
        prefix = self._keyspace.states(agent)
        listed = await self._client.list(prefix)
        if not listed.kvs:
            return
        entries = tuple(StateEntry.of(prefix, kv) for kv in listed.kvs)
        incarnation = next((entry.mod_revision for entry in entries if entry.key == REGISTRATION), 0)
        tombstone = Tombstone(
            agent=agent,
            incarnation=incarnation,
            reaped_at=self._client.clock.wall(),
            collector=self.candidate.id,
            token=term.token,
            collected=tuple(entry for entry in entries if entry.key != REGISTRATION),
        )
        value = tombstone.encode()
        if len(value) > _TOMBSTONE_BYTES:
            raise EtcdError(f"the tombstone of {agent!r} would have {len(value)} bytes, too many: its state stays")
        key = self._keyspace.tombstone(agent, incarnation)
        retention = (await self._client.lease_grant(self._config.retention_s)).ID
        # The lease is given back only after a definite refusal: a transaction whose fate is not known may still put
        # the tombstone, which would go with it.
        try:
            kept = await fenced_txn(
                self._client,
                term,
                [
                    txn.absent(self._keyspace.alive(agent)),
                    txn.nothing_newer(prefix, listed.header.revision),
                    *(txn.modified_at(kv.key, kv.mod_revision) for kv in listed.kvs[:_COMPARED_KEYS]),
                ],
                [txn.delete_prefix(prefix), txn.put(key, value, lease=retention)],
            )
        except ElectionError as error:
            if not (isinstance(error, EtcdError) and error.indefinite):
                await let_go(self._client, retention, whose=f"the tombstone of {agent}")
            raise
        if not kept.succeeded:
            await let_go(self._client, retention, whose=f"the tombstone of {agent}")
