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
from election.collector.census import MOST_SUSPECTS, look, stored, when_gone
from election.collector.events import CollectorEvent, Foreign, Recovered, Suspected
from election.collector.judge import accepts
from election.collector.orders import Orders
from election.collector.suspects import Suspect, Suspects
from election.config import CollectorConfig
from election.errors import Compacted, EtcdError
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Heard, Snapshot, follow
from election.keys import AliveKey, Keyspace
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.published import Published

logger = logging.getLogger("election")

_MOST_BEHIND_S = 1.0


@dataclass(frozen=True, slots=True)
class _Gone:
    """At which revision a liveness key was deleted, and when that was heard."""

    at: int
    since_s: float


class Observer:
    """Keeps `suspects` and `orders` true, and sets `changed`; run it beside what uses them."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        config: CollectorConfig,
        published: Published[CollectorEvent | None],
        rng: random.Random,
    ) -> None:
        self.suspects = Suspects()
        self.orders = Orders(
            keyspace, client.clock, grace_s=config.grace_s, tell=published.set, changed=self._order_changed
        )
        self.changed = asyncio.Event()
        self._client = client
        self._keyspace = keyspace
        self._config = config
        self._tell = published.set
        self._rng = rng
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

    def begin_grace(self, suspect: Suspect, since_s: float) -> None:
        """Suspects an agent, in place of what was suspected of it before."""
        suspect.since_s = since_s
        suspect.due_at_s = suspect.grace_ends_s = since_s + self._config.grace_s
        self.suspects.suspect(suspect)
        self._tell(Suspected(suspect.agent, self._config.grace_s))
        self._order_changed(suspect.agent)

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

    async def _see_orders(self, item: Snapshot | Changes) -> None:
        self.orders.see(item)
        self._orders_listed.set()

    def _order_changed(self, agent: str) -> None:
        """An operator's order ends the grace of a suspect; where it is withdrawn, the grace is what it was."""
        if (suspect := self.suspects.missing.get(agent)) is None:
            if self.orders.has(agent) and self._agents_listed and agent not in self.suspects.alive:
                # Nobody has seen it vanish: its state was restored, or it never registered.
                self._gone.setdefault(agent, _Gone(0, self._client.clock.now_s()))
                self._somebody_is_gone.set()
        elif self.orders.wants(agent, suspect.incarnation):
            self.suspects.order(suspect, self._client.clock.now_s())
        elif suspect.ordered:
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
            gone = dict(itertools.islice(self._gone.items(), MOST_SUSPECTS))
            if not gone:
                await self._somebody_is_gone.wait()
                continue
            try:
                suspects = await look(self._client, self._keyspace, {agent: each.at for agent, each in gone.items()})
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
        found = await stored(self._client, self._keyspace, snapshot.revision)
        alive = {key.agent for kv in snapshot.kvs if isinstance(key := self._keyspace.parse(kv.key), AliveKey)}
        for agent in alive:
            self._appear(agent)
        self.suspects.alive.intersection_update(alive)
        for suspect in tuple(self.suspects.missing.values()):
            if suspect.agent not in found.agents:
                self.suspects.settle(suspect)
        new = found.agents - alive - self.suspects.missing.keys()
        given_up_at = accepts(self.orders.breaker)
        await self._suspect(
            await when_gone(self._client, self._keyspace, new, revision=snapshot.revision, given_up_at=given_up_at)
        )
        if found.foreign != self._foreign:
            self._foreign = found.foreign
            if found.foreign:
                self._tell(Foreign(found.foreign))

    async def _suspect(self, gone: Mapping[str, int]) -> None:
        """Begins the grace of agents that are gone and have state, of all at once."""
        agents = sorted(gone)
        suspects: list[Suspect] = []
        for begin in range(0, len(agents), MOST_SUSPECTS):
            chosen = {agent: gone[agent] for agent in agents[begin : begin + MOST_SUSPECTS]}
            suspects += (await look(self._client, self._keyspace, chosen)).values()
        since_s = self._client.clock.now_s()
        for suspect in suspects:
            self.begin_grace(suspect, since_s)
