"""Agents and collectors of the simulations."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from election.agent_records import Tombstone
from election.agents import Agent
from election.collector import Collector, CollectorEvent
from election.config import AgentConfig, BreakerConfig, CandidateConfig, CollectorConfig
from election.etcd.client import EtcdClient
from election.keys import TombstoneKey
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake.transport import FakeTransport
from tests.simulation.world import KEYS, Machine, World

TTL_S = 6
GRACE_S = 5.0

E = TypeVar("E")


def agent_on(machine: Machine, id: str = "w") -> Agent:
    """An agent that is made on this machine."""
    return Agent(machine.client, KEYS, id, config=AgentConfig(ttl_s=TTL_S), rng=random.Random(id))


def collector_on(
    machine: Machine,
    id: str,
    *,
    grace_s: float = GRACE_S,
    reconcile_s: float = 60.0,
    rate_per_s: float | None = None,
    breaker: BreakerConfig | None = None,
) -> Collector:
    """A collector that is made on this machine; without a breaker where none is given."""
    config = CollectorConfig(grace_s, reconcile_s, rate_per_s=rate_per_s, breaker=breaker)
    return Collector(
        machine.client, KEYS, id=id, config=config, candidate_config=CandidateConfig(ttl_s=5), rng=random.Random(id)
    )


@dataclass
class Working:
    """A collector that leads, and what it has told so far."""

    machine: Machine
    collector: Collector
    running: asyncio.Task[None]
    told: list[CollectorEvent]

    @property
    def client(self) -> EtcdClient:
        """That of its machine."""
        return self.machine.client

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.told if isinstance(event, kind)]


@asynccontextmanager
async def working(
    here: World, id: str = "c", *, transport: FakeTransport | None = None, **settings: object
) -> AsyncGenerator[Working]:
    """A collector on a machine of its own; yields when it leads."""
    async with here.machine(transport=transport) as machine:
        collector = collector_on(machine, id, **settings)  # type: ignore[arg-type]
        events = collector.events()
        made = Working(machine, collector, asyncio.create_task(collector.run()), [])

        async def listen() -> None:
            async for event in events:
                if event is not None:
                    made.told.append(event)

        listening = asyncio.create_task(listen())
        async with asyncio.timeout(60):
            while not collector.candidate.is_leader:
                await asyncio.sleep(0.05)
        yield made
        collector.leave()
        await made.running
        listening.cancel()


async def leave_state(client: EtcdClient, ids: Iterable[str], *, alive: bool = False, keys: int = 1) -> None:
    """Stores state in the name of agents, that are alive as long as their liveness keys are not deleted."""
    for agent in ids:
        for number in range(keys):
            await client.put(KEYS.state(agent, f"k{number}"), f"{agent} {number}".encode())
        if alive:
            await client.put(KEYS.alive(agent), b"{}")


async def vanish(client: EtcdClient, ids: Iterable[str]) -> None:
    """Their liveness keys go."""
    for agent in ids:
        await client.delete(KEYS.alive(agent))


def is_reap(request: Message) -> bool:
    """Whether a request would put a tombstone."""
    return isinstance(request, rpc.TxnRequest) and bool(request.compare) and b"agents/reaped" in str(request).encode()


async def stored(client: EtcdClient, id: str = "w") -> dict[str, bytes]:
    """The state of an agent, its registration too."""
    prefix = KEYS.states(id)
    return {kv.key[len(prefix) :].decode(): kv.value for kv in (await client.list(prefix)).kvs}


async def with_state(client: EtcdClient) -> set[str]:
    """The ids of all agents that have state."""
    prefix = KEYS.state_prefix
    return {kv.key[len(prefix) :].decode().partition("/")[0] for kv in (await client.list(prefix)).kvs}


async def tombstones(client: EtcdClient, id: str = "w") -> list[Tombstone]:
    """The tombstones of an agent, the oldest first."""
    found = []
    for kv in (await client.list(KEYS.tombstones(id))).kvs:
        key = KEYS.parse(kv.key)
        assert isinstance(key, TombstoneKey)
        found.append(Tombstone.decode(id, key.incarnation, kv.value, part=key.part))
    return found
