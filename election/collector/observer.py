"""What a collector sees: liveness keys in a watch, all state in a list now and then, and what operators tell it.

It watches liveness keys only, so what the living store costs it nothing. No event is relied on alone: at every
reconcile interval the liveness keys are listed anew, and the names of all stored keys at the same revision.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from election.backoff import Backoff
from election.collector.events import BreakerClosed, BreakerOpened, CollectorEvent, Foreign, Recovered, Suspected
from election.collector.judge import accepts
from election.collector.suspects import Suspect, Suspects
from election.config import CollectorConfig
from election.errors import Compacted, EtcdError
from election.etcd.client import EtcdClient, Repeat
from election.etcd.txn import get, names
from election.etcd.watch import Changes, Heard, Snapshot, follow
from election.keys import REGISTRATION, AliveKey, Keyspace, ReapRequestKey, StateKey, range_end
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.pb.etcd.kv_pb2 import KeyValue
from election.published import Published
from election.records import AgentRecord, Breaker, ReapRequest, printable

logger = logging.getLogger("election")

_PAGE = 5_000
_LOOKED_AT_ONCE = 60
"""Agents whose registrations are read in one transaction, which etcd lets have 128 operations."""

_FOREIGN_SHOWN = 20
_MOST_BEHIND_S = 1.0


@dataclass(frozen=True, slots=True)
class _Gone:
    """At which revision a liveness key was deleted, and when that was heard."""

    at: int
    since_s: float


class Observer:
    """Keeps `suspects` and `breaker` true, and sets `changed`; run it beside what uses them."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        config: CollectorConfig,
        published: Published[CollectorEvent | None],
        rng: random.Random,
    ) -> None:
        self.suspects = Suspects()
        self.breaker = Breaker()
        self.changed = asyncio.Event()
        self._client = client
        self._keyspace = keyspace
        self._config = config
        self._tell = published.set
        self._rng = rng
        self._orders: dict[str, ReapRequest] = {}
        self._breaker_over_at_s = float("inf")
        self._breaker_seen_at = 0
        self._foreign: tuple[str, ...] = ()
        self._orders_listed = asyncio.Event()
        self._agents_listed = False
        self._gone: dict[str, _Gone] = {}
        """Those who vanished and were not looked at yet, in the order in which they did."""
        self._somebody_is_gone = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether everything has been listed once."""
        return self._agents_listed

    @property
    def is_behind(self) -> bool:
        """Whether it has not been found out for too long who of those that vanished is a suspect."""
        oldest = next(iter(self._gone.values()), None)
        if oldest is None:
            return False
        return self._client.clock.now_s() - oldest.since_s >= min(self._config.grace_s, _MOST_BEHIND_S)

    @property
    def breaker_seen_at(self) -> int:
        """The revision up to which the breaker's state is known."""
        return self._breaker_seen_at

    @property
    def breaker_over_at_s(self) -> float:
        """When the breaker has been open for as long as it may be; infinity for never."""
        return self._breaker_over_at_s

    def heard_breaker(self, breaker: Breaker, revision: int) -> None:
        """The breaker's state at a revision, from etcd or from who has just written it."""
        if revision < self._breaker_seen_at:
            return
        before, self.breaker, self._breaker_seen_at = self.breaker, breaker, revision
        if breaker != before:
            self._breaker_over_at_s = self._over_at_s(breaker)
        if breaker.open and (not before.open or breaker.reason is not before.reason):
            self._tell(BreakerOpened(breaker))
        elif before.open and not breaker.open:
            self._tell(BreakerClosed(breaker))
        self.changed.set()

    def _over_at_s(self, breaker: Breaker) -> float:
        """The end of the hold on our own clock, so that a wall clock that jumps cannot end it early."""
        if not breaker.open or breaker.until is None:
            return float("inf")
        left_s = (breaker.until - self._client.clock.wall()).total_seconds()
        whole_s = (breaker.until - breaker.at).total_seconds() if breaker.at else left_s
        return self._client.clock.now_s() + min(max(left_s, 0.0), max(whole_s, 0.0))

    async def run(self) -> None:
        """Observes until it is cancelled; what etcd refuses is logged, and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._keyspace.collector, self._see_orders, None))
            await self._orders_listed.wait()
            group.create_task(self._look_after_the_gone())
            group.create_task(self._follow(self._keyspace.alive_prefix, self._see_agents, self._config.reconcile_s))

    async def _follow(
        self, prefix: bytes, see: Callable[[Snapshot | Changes], Awaitable[None]], again_s: float | None
    ) -> None:
        """Shows what is below a prefix, from a new list every `again_s` seconds."""
        backoff = Backoff(0.25, 5.0, self._rng)
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with (
                    asyncio.timeout(None) as limit,
                    aclosing(follow(self._client, prefix, backoff)) as items,
                ):
                    async for item in items:
                        if isinstance(item, Heard):
                            continue
                        await see(item)
                        if isinstance(item, Snapshot) and again_s is not None:
                            limit.reschedule(loop.time() + again_s)
                        self.changed.set()
            except (TimeoutError, Compacted):  # the latter in a list that took too long
                continue
            except EtcdError as error:
                logger.warning("the collector cannot watch %s: %s", prefix.decode(), error)
                await self._client.clock.sleep_s(backoff.next_s())

    # --- operators -------------------------------------------------------------------------------------------

    async def _see_orders(self, item: Snapshot | Changes) -> None:
        if isinstance(item, Snapshot):
            self._orders = {}
            found = next((kv for kv in item.kvs if kv.key == self._keyspace.breaker), None)
            self.heard_breaker(Breaker.of(found), item.revision)
            for kv in item.kvs:
                self._see_order(kv)
            for agent in [each.agent for each in self.suspects.missing.values() if each.ordered]:
                if agent not in self._orders:
                    self._withdraw(agent)
            self._orders_listed.set()
            return
        for event in item.events:
            written = event.type == KvEvent.PUT
            if event.kv.key == self._keyspace.breaker:
                self.heard_breaker(Breaker.of(event.kv if written else None), event.kv.mod_revision)
            elif written:
                self._see_order(event.kv)
            elif isinstance(key := self._keyspace.parse(event.kv.key), ReapRequestKey):
                self._orders.pop(key.agent, None)
                self._withdraw(key.agent)

    def _see_order(self, kv: KeyValue) -> None:
        key = self._keyspace.parse(kv.key)
        if isinstance(key, ReapRequestKey) and (order := ReapRequest.decode(key.agent, kv.value)):
            self._orders[key.agent] = order
            if suspect := self.suspects.missing.get(key.agent):
                self._obey(suspect)

    def _obey(self, suspect: Suspect) -> None:
        """Ends the grace of a suspect that an operator wants reaped."""
        order = self._orders.get(suspect.agent)
        if order is not None and order.incarnation == suspect.incarnation:
            self.suspects.order(suspect, self._client.clock.now_s())

    def _withdraw(self, agent: str) -> None:
        """Nobody waits any more for the reap of an agent that is still a suspect."""
        if (suspect := self.suspects.missing.get(agent)) is not None:
            self.suspects.withdraw(suspect)

    # --- agents ----------------------------------------------------------------------------------------------

    async def _see_agents(self, item: Snapshot | Changes) -> None:
        now_s = self._client.clock.now_s()
        if isinstance(item, Snapshot):
            self._gone.clear()  # the list finds them all
            await self._list(item)
            self._agents_listed = True
            return
        for event in item.events:
            key = self._keyspace.parse(event.kv.key)
            if not isinstance(key, AliveKey):
                continue
            self._gone.pop(key.agent, None)
            if event.type == KvEvent.DELETE:
                self.suspects.alive.discard(key.agent)
                self._gone[key.agent] = _Gone(event.kv.mod_revision, now_s)
                self._somebody_is_gone.set()
            else:
                self._appear(key.agent)

    async def _look_after_the_gone(self) -> None:
        """Suspects those who vanished, as many at once as there are.

        The watch does not wait for it: thousands who vanish one by one must be counted as fast as they do.
        """
        backoff = Backoff(0.25, 5.0, self._rng)
        while True:
            self._somebody_is_gone.clear()
            gone = dict(itertools.islice(self._gone.items(), _LOOKED_AT_ONCE))
            if not gone:
                await self._somebody_is_gone.wait()
                continue
            try:
                suspects = await self._look({agent: each.at for agent, each in gone.items()})
            except EtcdError as error:
                logger.warning("the collector cannot see what those who vanished have left: %s", error)
                await self._client.clock.sleep_s(backoff.next_s())
                continue
            backoff.reset()
            for agent, each in gone.items():
                if self._gone.get(agent) is each:  # it is not back, and not listed meanwhile
                    del self._gone[agent]
                    if (suspect := suspects.get(agent)) is not None:
                        self.begin_grace(suspect, each.since_s)
            self.changed.set()

    def _appear(self, agent: str) -> None:
        if self.suspects.appeared(agent):
            self._tell(Recovered(agent))

    async def _list(self, snapshot: Snapshot) -> None:
        """Compares everything: who is alive, and who has state, at one revision."""
        stored, foreign = await self._stored(snapshot.revision)
        alive = {key.agent for kv in snapshot.kvs if isinstance(key := self._keyspace.parse(kv.key), AliveKey)}
        for agent in alive:
            self._appear(agent)
        self.suspects.alive.intersection_update(alive)
        for suspect in tuple(self.suspects.missing.values()):
            if suspect.agent not in stored:
                self.suspects.settle(suspect)
        new = stored - alive - self.suspects.missing.keys()
        await self._suspect(await self._when_gone(new, snapshot.revision))
        if foreign != self._foreign:
            self._foreign = foreign
            if foreign:
                self._tell(Foreign(foreign))

    async def _stored(self, revision: int) -> tuple[set[str], tuple[str, ...]]:
        """Who has state, and the keys between it that are not ours: names only, page by page."""
        agents: set[str] = set()
        foreign: list[str] = []
        begin, end = self._keyspace.state_prefix, range_end(self._keyspace.state_prefix)
        while True:
            page = await self._client.range(
                rpc.RangeRequest(key=begin, range_end=end, limit=_PAGE, revision=revision, keys_only=True)
            )
            for kv in page.kvs:
                key = self._keyspace.parse(kv.key)
                if isinstance(key, StateKey):
                    agents.add(key.agent)
                elif len(foreign) < _FOREIGN_SHOWN:
                    foreign.append(printable(kv.key))
            if not page.more:
                return agents, tuple(foreign)
            begin = page.kvs[-1].key + b"\0"

    async def _when_gone(self, agents: set[str], revision: int) -> dict[str, int]:
        """A revision for each at which it was gone: an early one for those whom somebody has given up since.

        Without etcd's history, a collector that has just begun would take them for agents that vanish now.
        """
        accepted = accepts(self.breaker)
        if not agents or not accepted:
            return dict.fromkeys(agents, revision)
        try:
            listed = await self._client.range(
                rpc.RangeRequest(
                    key=self._keyspace.alive_prefix,
                    range_end=range_end(self._keyspace.alive_prefix),
                    revision=accepted,
                    keys_only=True,
                )
            )
        except Compacted:
            return dict.fromkeys(agents, revision)
        alive = {key.agent for kv in listed.kvs if isinstance(key := self._keyspace.parse(kv.key), AliveKey)}
        return {agent: revision if agent in alive else accepted for agent in agents}

    async def _suspect(self, gone: Mapping[str, int]) -> None:
        """Begins the grace of agents that are gone and have state, of all at once."""
        agents = sorted(gone)
        suspects: list[Suspect] = []
        for begin in range(0, len(agents), _LOOKED_AT_ONCE):
            chosen = agents[begin : begin + _LOOKED_AT_ONCE]
            suspects += (await self._look({agent: gone[agent] for agent in chosen})).values()
        since_s = self._client.clock.now_s()
        for suspect in suspects:
            self.begin_grace(suspect, since_s)

    def begin_grace(self, suspect: Suspect, since_s: float) -> None:
        """Suspects an agent, in place of what was suspected of it before."""
        suspect.since_s = since_s
        suspect.due_at_s = suspect.grace_ends_s = since_s + self._config.grace_s
        self.suspects.suspect(suspect)
        self._tell(Suspected(suspect.agent, self._config.grace_s))
        self._obey(suspect)

    async def _look(self, gone: Mapping[str, int]) -> dict[str, Suspect]:
        """Those of a few agents who have state, as suspects."""
        looked = await self._client.txn(
            [],
            [
                operation
                for agent in gone
                for operation in (
                    get(self._keyspace.state(agent, REGISTRATION)),
                    names(self._keyspace.states(agent), limit=1),
                )
            ],
            repeat=Repeat.SAFE,
        )
        found = [response.response_range.kvs for response in looked.responses]
        suspects = {}
        for agent, registration, state in zip(gone, found[::2], found[1::2], strict=True):
            if not state:
                continue
            record = AgentRecord.decode(agent, registration[0].value) if registration else AgentRecord(agent)
            written_at = registration[0].mod_revision if registration else 0
            gone_at = max(gone[agent], written_at)
            left = record.left_at is not None
            suspects[agent] = Suspect(agent, record.incarnation or written_at, gone_at, 0.0, 0.0, left=left)
        return suspects
