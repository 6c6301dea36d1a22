"""The processes of a run, each on a machine with a clock and links of its own: what they do with the library."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from election.agents import Agent
from election.candidate import Candidate
from election.collector import Collector
from election.config import AgentConfig, BreakerConfig, CandidateConfig, CollectorConfig, EtcdConfig
from election.errors import AgentExists, AgentLost, Deposed, EtcdError, NotLeader
from election.etcd.client import EtcdClient
from election.keys import COLLECTOR_ELECTION, Keyspace
from election.machine import Transition
from election.published import Published
from election.term import Term
from election.token import Token
from tests.fake.clock import VirtualClock
from tests.simulation.network import Way
from tests.simulation.processes import Process
from tests.simulation.register import Entry, append

TTL_S, RECONCILE_S = 3, 5.0
AGAIN_S = 0.5
_RESIGNS = 0.03
_CANDIDATE = CandidateConfig(ttl_s=TTL_S, retry_max_s=1.0)
_AGENT = AgentConfig(ttl_s=TTL_S, retry_max_s=1.0)
_BREAKER = BreakerConfig(hold_s=3.0)


class Told(Protocol):
    """Who hears what the nodes do."""

    def transition(self, node: CandidateNode) -> None:
        """A candidate's state has changed."""
        ...

    def acknowledge(self, revision: int, entry: Entry) -> None:
        """A fenced write was acknowledged."""
        ...

    def violate(self, what: str) -> None:
        """Something is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """What a process runs on: a name, links and a clock of its own, and what it draws from."""

    name: str
    process: Process
    way: Way
    clock: VirtualClock
    rng: random.Random


class Node:
    """One process on its host. Nothing of it survives a kill but its name."""

    def __init__(self, host: Host) -> None:
        self.name, self.process, self.way = host.name, host.process, host.way
        self.clock, self.rng = host.clock, host.rng
        self.task: asyncio.Task[None] | None = None
        config = EtcdConfig(self.way.endpoints, call_timeout_s=3.0)
        self.client = EtcdClient(config, clock=self.clock, transport=self.way, rng=self.rng)

    def start(self) -> None:
        """Starts the process."""
        self.task = self.process.run(self.main())

    async def main(self) -> None:
        """What the process does until it is killed."""
        raise NotImplementedError


class _Watched(Published[Transition]):
    """The transitions of a candidate; somebody looks at each at once."""

    def __init__(self, before: Published[Transition], look: Callable[[], None]) -> None:
        super().__init__(before.value)
        self._look = look

    def set(self, value: Transition) -> None:
        """Replaces the value and tells everybody."""
        super().set(value)
        self._look()


class CandidateNode(Node):
    """A candidate, whose work writes to the register and takes its time to stop."""

    election = "demo"

    def __init__(self, host: Host, keyspace: Keyspace, told: Told) -> None:
        super().__init__(host)
        self.token: Token | None = None
        self.works_under: Token | None = None
        self._told = told
        self._keyspace = keyspace
        self._stops_in_s = self.rng.choice((0.0, 0.1, 0.7))
        self.candidate = self._made()
        machine = self.candidate._machine
        machine.transitions = _Watched(machine.transitions, lambda: told.transition(self))

    def _made(self) -> Candidate:
        return Candidate(self.client, self._keyspace, self.election, id=self.name, config=_CANDIDATE, rng=self.rng)

    @property
    def is_leader(self) -> bool:
        """Whether it believes that it leads."""
        return not self.process.is_killed and self.candidate.is_leader

    @property
    def key(self) -> bytes | None:
        """Its key, while it stands."""
        attempt = self.candidate._attempt
        return None if attempt is None else attempt.key

    @property
    def highest_seen(self) -> Token:
        """The highest token that it has seen."""
        return self.candidate._guard._highest

    async def main(self) -> None:
        """Stands for ever."""
        while True:
            with suppress(EtcdError):
                await self._stand()
            await self.clock.sleep_s(AGAIN_S)

    async def _stand(self) -> None:
        await self.candidate.lead(self._work)

    async def _work(self, term: Term) -> None:
        self.works_under = term.token
        try:
            while True:
                try:
                    if (written := await append(self.client, term)) is not None:
                        self._told.acknowledge(*written)
                except (NotLeader, Deposed):
                    return
                except EtcdError:
                    pass
                if self.rng.random() < _RESIGNS:
                    return
                await self.clock.sleep_s(self.rng.uniform(0.1, 1.0))
        finally:
            try:
                await asyncio.sleep(self._stops_in_s)
            finally:
                self.works_under = None


class CollectorNode(CandidateNode):
    """A collector, which is a candidate too."""

    election = COLLECTOR_ELECTION

    def __init__(self, host: Host, keyspace: Keyspace, told: Told, *, grace_s: float, breaker: bool) -> None:
        self._config = CollectorConfig(grace_s, RECONCILE_S, breaker=_BREAKER if breaker else None)
        super().__init__(host, keyspace, told)

    def _made(self) -> Candidate:
        self.collector = Collector(
            self.client,
            self._keyspace,
            id=self.name,
            config=self._config,
            candidate_config=_CANDIDATE,
            rng=self.rng,
        )
        return self.collector.candidate

    async def _stand(self) -> None:
        await self.collector.run()


class AgentNode(Node):
    """An agent that stores something now and then."""

    def __init__(self, host: Host, keyspace: Keyspace) -> None:
        super().__init__(host)
        self.for_good = False
        """Whether it was killed and will never be there again."""
        self._keyspace = keyspace
        self.agent: Agent | None = None

    async def main(self) -> None:
        """Lives for ever."""
        while True:
            agent = Agent(self.client, self._keyspace, self.name, config=_AGENT, rng=self.rng)
            try:
                async with agent:
                    self.agent = agent
                    await self._store(agent)
            except (AgentExists, EtcdError):
                await self.clock.sleep_s(AGAIN_S)

    async def _store(self, agent: Agent) -> None:
        for number in range(1_000_000):
            with suppress(AgentLost, EtcdError):
                await agent.put(self.rng.choice("ab"), str(number), keep=self.rng.random() < 0.3)
            await self.clock.sleep_s(self.rng.uniform(0.2, 1.5))
