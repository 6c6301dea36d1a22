"""One run: the real candidates, collectors and agents on the fake etcd, in virtual time, hurt as a plan says.

What is real is everything above the transport: candidates, agents, collectors, client, leases and watches. What is
modelled: processes that are stopped, at any await and at the moments that matter most, suspended with their machine, or
killed; clocks that drift by what the margin covers, and that jump ahead; links that are cut, one way or both, slow
or broken; calls that are refused, lost, unanswered or executed twice; members that die, hang, or are isolated, also the
leader, which goes on answering renewals for an election timeout; watches that fall behind; new leaders of etcd,
compaction, and restores of older snapshots.

What is not: a process that is stopped between two awaits; clocks that go back; etcd without a leader while its members
are well; reads from what a member had; an etcd that is full, or that refuses users; a restore that takes less time than
a term lasts; more keys than fit into one page or one transaction; operators who drain, reap or hold the breaker.

Two leaders at once, and smaller tokens, are no violation where the README says so: a while after a stranger has deleted
a leader's key; and after a restore, for a candidate that has seen less than others have.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from election.config import EtcdConfig
from election.etcd.client import EtcdClient
from election.keys import COLLECTOR_ELECTION, Keyspace
from election.pb.etcd.kv_pb2 import KeyValue
from tests.fake.clock import VirtualClock
from tests.simulation.cluster import Cluster
from tests.simulation.faults import Faults
from tests.simulation.invariants import Invariants, everything
from tests.simulation.network import Way
from tests.simulation.nodes import AgentNode, CandidateNode, CollectorNode, Host, Node
from tests.simulation.observer import ObserverNode
from tests.simulation.plan import LASTS_S, Plan
from tests.simulation.processes import Process, run_processes

KEYS = Keyspace("sim")
SETTLES_IN_S = 25.0
"""How long it may take at most, once there are no faults any more, until everything is as it should be."""

_LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run. `trace` is the same whenever the run is repeated."""

    plan: Plan
    violation: str | None
    settled_in_s: float
    trace: int


def explore(plan: Plan) -> Outcome:
    """Runs a plan to its end, or to the first violation."""
    with _quiet() as errors:
        return run_processes(_Run(plan, errors).run())


class _Errors(logging.Handler):
    """Errors that the library logs: it never expects them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.first is None and record.levelno == logging.ERROR:
            self.first = record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else "")


@contextmanager
def _quiet() -> Iterator[_Errors]:
    """The log is listened to for errors alone, and garbage is collected between runs."""
    logger, handler = logging.getLogger("election"), _Errors()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(handler)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        if collects:
            gc.enable()


class _Run:
    def __init__(self, plan: Plan, errors: _Errors) -> None:
        self._plan = plan
        self._errors = errors
        self._trace = 0
        self._network = contextvars.Context()

    async def run(self) -> Outcome:
        plan, loop = self._plan, asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        self._loop = loop
        nodes: list[Node] = []
        cluster = Cluster(VirtualClock(), reports_ahead=plan.reports_ahead, committed=self._committed)
        self._cluster = cluster
        self._invariants = Invariants(KEYS, cluster.store, nodes, clock=loop.time)
        self._nodes = nodes
        for number in range(plan.nodes):
            nodes.append(self._made(number, 0))
            nodes[number].start()
        faults = self._faults()
        settled_in_s = 0.0
        try:
            for step in plan.steps:
                if await self._reaches(step.at_s):
                    break
                self._note(step.at_s)
                faults.do(step)
            await self._reaches(LASTS_S)
            faults.end()
            settled_in_s = await self._settle()
        finally:
            loop.set_exception_handler(lambda *_: None)
            await self._tear_down()
        return Outcome(plan, self._invariants.violation, settled_in_s, self._trace)

    # --- nodes -----------------------------------------------------------------------------------------------

    def _made(self, number: int, life: int) -> Node:
        plan = self._plan
        rng = random.Random(f"{plan.seed} node {number} life {life}")
        name = f"n{number}"
        process = Process(name, rng)
        way = Way(self._cluster, process, rng, self._network, latency_s=plan.latencies_s[number])
        clock = VirtualClock(rate=plan.rates[number], offset_s=1000.0 * number)
        host = Host(name, process, way, clock, rng)
        if number < plan.candidates:
            return CandidateNode(host, KEYS, self._invariants)
        if number < plan.candidates + plan.collectors:
            return CollectorNode(host, KEYS, self._invariants, grace_s=plan.grace_s, breaker=plan.breaker)
        if number < plan.nodes - 1:
            return AgentNode(host, KEYS)
        return ObserverNode(host, KEYS, self._invariants, self._compare)

    def _restart(self, node: Node) -> None:
        """Another process in the place of one that was killed."""
        number = self._nodes.index(node)
        if node.process.is_killed:
            new = self._made(number, round(self._loop.time() * 1000))
            self._killed.append(node)
            self._nodes[number] = new
            new.start()

    def _faults(self) -> Faults:
        self._killed: list[Node] = []
        process = Process("operator", random.Random(0))
        way = Way(self._cluster, process, random.Random(0), self._network, latency_s=0.001)
        operator = EtcdClient(EtcdConfig(way.endpoints), clock=VirtualClock(), transport=way, rng=random.Random(0))
        return Faults(self._cluster, self._nodes, KEYS, operator, restart=self._restart, restored=self._restored)

    # --- looking ---------------------------------------------------------------------------------------------

    def _note(self, *what: object) -> None:
        self._trace = hash((self._trace, self._loop.time(), *what))

    def _committed(self, revision: int, events: Any, cause: Any) -> None:
        self._note(revision, len(events))
        self._invariants.committed(revision, events, cause)

    def _restored(self) -> None:
        self._invariants.restored()
        for node in self._nodes:
            if isinstance(node, ObserverNode):
                node.restored = True

    def _compare(self, revision: int, seen: dict[bytes, KeyValue]) -> str | None:
        store = self._cluster.store
        if not store.compacted <= revision <= store.revision:
            return None
        there = {kv.key: kv for kv in store.select(everything(KEYS.root), revision)}
        if there == seen:
            return None
        keys = sorted(key for key in there.keys() | seen.keys() if there.get(key) != seen.get(key))
        return f"the watch is wrong about {keys} at revision {revision}"

    def _unexpected(self, _: object, context: dict[str, Any]) -> None:
        self._invariants.violate(f"unexpected: {context.get('message')}: {context.get('exception')!r}")

    @property
    def _violated(self) -> bool:
        if self._errors.first is not None:
            self._invariants.violate(f"logged as an error: {self._errors.first}")
        for node in self._nodes:
            if node.task is not None and node.task.done():
                self._invariants.violate(f"{node.name} has ended: {node.task!r}")
        return self._invariants.violation is not None

    # --- the way of a run ------------------------------------------------------------------------------------

    async def _reaches(self, at_s: float) -> bool:
        """Lets time pass; whether a promise was broken meanwhile."""
        while not self._violated and (left_s := at_s - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, 1.0))
        return self._violated

    async def _settle(self) -> float:
        """How long it takes until all is well."""
        began_s = self._loop.time()
        while not self._violated:
            took_s = self._loop.time() - began_s
            if (wrong := self._unsettled()) is None:
                self._invariants.at_the_end()
                return took_s
            if took_s > SETTLES_IN_S:
                self._invariants.violate(f"after {took_s:.0f} s without faults: {wrong}")
            await asyncio.sleep(_LOOK_S)
        return 0.0

    def _unsettled(self) -> str | None:
        """What is not yet as it should be; None when all is well."""
        for election in ("demo", COLLECTOR_ELECTION):
            if not any(isinstance(n, CandidateNode) and n.election == election and n.is_leader for n in self._nodes):
                return f"nobody leads {election}"
        alive = set()
        for node in self._nodes:
            if isinstance(node, AgentNode) and not node.process.is_killed:
                alive.add(node.name)
                if node.agent is None or node.agent.registration is None:
                    return f"agent {node.name} is not registered"
        store = self._cluster.store
        for kv in store.select(everything(KEYS.state_prefix)):
            agent = kv.key[len(KEYS.state_prefix) :].decode().partition("/")[0]
            if agent not in alive:
                return f"{kv.key!r} of a dead agent is not collected"
        if not all(self._invariants.is_settled(node) for node in self._nodes):
            return "a leader has not learned that its key is gone"
        return None

    async def _tear_down(self) -> None:
        for node in [*self._nodes, *self._killed]:
            node.way.end()
            node.process.revive()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=300)
