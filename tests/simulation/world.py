"""A small world in virtual time: one fake etcd, and candidates on machines with clocks and links of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from election.candidate import Candidate
from election.config import CandidateConfig, EtcdConfig
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed
from election.keys import Keyspace
from election.term import Term
from election.token import Token
from tests.fake.clock import VirtualClock
from tests.fake.etcd import FakeEtcd
from tests.fake.transport import FakeTransport

KEYS = Keyspace("sim")
ELECTION = "demo"


@dataclass
class Machine:
    """A client of the fake etcd, with links and a clock of its own."""

    client: EtcdClient
    transport: FakeTransport
    clock: VirtualClock


@dataclass
class Node(Machine):
    """A machine with one candidate on it."""

    candidate: Candidate


@dataclass
class Span:
    """A piece of work that ran: from when until when, on the loop's clock, under which token."""

    id: str
    token: Token
    began_s: float
    ended_s: float | None = None


@dataclass
class World:
    """The fake etcd, and a record of all work that ran."""

    etcd: FakeEtcd
    seed: int
    spans: list[Span] = field(default_factory=list)
    machines: list[FakeTransport] = field(default_factory=list)

    def rng(self, name: str) -> random.Random:
        """A generator of its own for each name, the same in each run of this seed."""
        return random.Random(f"{self.seed} {name}")

    @asynccontextmanager
    async def machine(
        self, *, rate: float = 1.0, latency_s: float = 0.001, transport: FakeTransport | None = None
    ) -> AsyncGenerator[Machine]:
        """A machine that is there for a while."""
        clock = VirtualClock(rate=rate)
        transport = transport or FakeTransport(self.etcd, latency_s=latency_s)
        config, rng = EtcdConfig(transport.endpoints), self.rng(f"machine {len(self.machines)}")
        self.machines.append(transport)
        async with EtcdClient(config, clock=clock, transport=transport, rng=rng) as client:
            yield Machine(client, transport, clock)

    @asynccontextmanager
    async def node(self, id: str, *, config: CandidateConfig | None = None, **settings: Any) -> AsyncGenerator[Node]:
        """A machine with a candidate on it."""
        async with self.machine(**settings) as machine:
            candidate = Candidate(machine.client, KEYS, ELECTION, id=id, config=config, rng=self.rng(id))
            yield Node(machine.client, machine.transport, machine.clock, candidate)

    async def work(self, term: Term) -> None:
        """Work that notes when it ran, and never ends by itself."""
        span = Span(term.id, term.token, asyncio.get_running_loop().time())
        self.spans.append(span)
        try:
            await asyncio.Event().wait()
        finally:
            span.ended_s = asyncio.get_running_loop().time()

    def check_spans(self) -> None:
        """No two pieces of work overlap, and tokens strictly grow."""
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            assert before.token < after.token, f"{self}: tokens do not grow"
            assert before.ended_s is not None, f"{self}: {before} has not ended"
            assert before.ended_s <= after.began_s, f"{self}: {before} overlaps {after}"


def world(seed: int = 0, *, members: int = 3) -> World:
    """A world; only inside of a virtual loop."""
    return World(FakeEtcd(VirtualClock(), members=members), seed)


async def leads(*nodes: Node) -> Node:
    """Waits until one of the nodes leads; the caller bounds it in virtual time."""
    while True:
        for node in nodes:
            if node.candidate.is_leader:
                return node
        await asyncio.sleep(0.01)


@asynccontextmanager
async def standing(here: World, names: Sequence[str], **settings: Any) -> AsyncGenerator[list[Node]]:
    """Nodes whose candidates stand, in this order; all leave at the end."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(here.node(name, **settings)) for name in names]
        tasks = []
        for node in nodes:
            tasks.append(asyncio.create_task(node.candidate.lead(here.work)))
            await asyncio.sleep(0.2)
        try:
            yield nodes
        finally:
            for node in nodes:
                node.candidate.leave()
            await asyncio.gather(*tasks)


def hurt(here: World, rng: random.Random, machine: Machine, faults: Sequence[str]) -> None:
    """One of the faults, or recoveries; some cannot happen at present."""
    match rng.choice(faults):
        case "cut":
            machine.transport.cut(*rng.sample(range(3), rng.randint(1, 3)))
        case "cut off":
            machine.transport.cut(0, 1, 2)
        case "mend":
            machine.transport.mend()
        case "move" if here.etcd.has_quorum:
            here.etcd.change_leader()
        case "stop":
            here.etcd.stop(rng.randrange(3))
        case "pause":
            here.etcd.pause(rng.randrange(3))
        case "resume":
            for member in range(3):
                here.etcd.resume(member)
        case "compact":
            with suppress(RpcFailed):
                here.etcd.compact()
