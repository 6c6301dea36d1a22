"""What the collector does when 10,000 agents end at once, beside bare transactions that do the same to etcd.

And what it costs while nothing happens, with few agents and with many.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from election import CandidateConfig, CollectorConfig, Store, connect
from election.agent_records import AgentRecord
from election.backoff import Backoff
from election.collector import Reaped
from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, follow
from election.keys import REGISTRATION, Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import Event
from tests.bench.contender import BenchFailed
from tests.bench.process import process
from tests.bench.samples import Bound, Figure, Measured

REAPING_GOAL = 0.8
"""The least that agents may be reaped at, as a part of the rate of bare transactions."""
BEHIND_GOAL_S = 2.0
_KEYS = 5
_VALUE = b"v" * 100
_TOMBSTONE = b"t" * 900
"""About what the tombstone of such an agent takes."""
_BARE_BATCH = 60
_AT_ONCE = 2
_FILLED_AT_ONCE = 20
_IDLE_AGENTS = (100, 1_000, 10_000)
_IDLE_S = 15.0
_TTL_S = 15


async def measure(cluster: EtcdCluster, agents: int, rounds: int, tell: Callable[[str], None]) -> Measured:
    """Reaps so many agents with the collector and with bare transactions, by turns; then lets as many die."""
    bare: list[float] = []
    ours: list[float] = []
    for turn in range(rounds):
        for kind, rates in ((_bare, bare), (_ours, ours)) if turn % 2 else ((_ours, ours), (_bare, bare)):
            async with connect(cluster.endpoints, namespace=f"reap-{turn}-{kind.__name__[1:]}") as store:
                tell(f"reaping: {agents} agents, {kind.__name__[1:]}")
                await _fill(store, agents)
                rates.append(await kind(store, agents))
    behind_s = await _die(cluster, agents, tell)
    bare_per_s, ours_per_s = median(bare), median(ours)
    return Measured(
        f"reaping: {agents:,} agents with {_KEYS} keys each",
        numbers=(
            (f"bare transactions of {_BARE_BATCH} agents each, {_AT_ONCE} at a time: agents per s", bare_per_s),
            ("the collector, from the first that is told to the last: agents per s", ours_per_s),
        ),
        figures=(
            Figure("reaping: collector / bare", ours_per_s / bare_per_s, REAPING_GOAL, Bound.AT_LEAST),
            Figure(
                "from the end of the last lease to the last reap, no grace: s", behind_s, BEHIND_GOAL_S, Bound.AT_MOST
            ),
        ),
    )


async def measure_idle(cluster: EtcdCluster, tell: Callable[[str], None]) -> Measured:
    """The CPU time of `election collect` while so many agents live and do nothing that etcd tells."""
    numbers = []
    for agents in _IDLE_AGENTS:
        namespace = f"idle-{agents}"
        async with (
            connect(cluster.endpoints, namespace=namespace) as store,
            process(cluster, namespace, "election.cli", "collect", "--reconcile", "3600") as made,
        ):
            tell(f"idle: {agents} agents")
            await _fill(store, agents, alive=True)
            await asyncio.sleep(5)
            began_s = _cpu_s(made.pid)
            await asyncio.sleep(_IDLE_S)
            numbers.append((f"{agents:,} agents: CPU ms per s", (_cpu_s(made.pid) - began_s) / _IDLE_S * 1e3))
    return Measured("idle: a collector between two reconciles", numbers=tuple(numbers))


async def _fill(store: Store, agents: int, *, alive: bool = False) -> None:
    """Stores the state of so many agents, straight into etcd."""
    room = asyncio.Semaphore(16)

    async def some(first: int) -> None:
        operations = []
        for name in _names(agents)[first : first + _FILLED_AT_ONCE - alive * 4]:
            record = AgentRecord(name, labels={"zone": "a"}).encode()
            operations.append(txn.put(store.keyspace.state(name, REGISTRATION), record))
            operations += [txn.put(store.keyspace.state(name, f"key-{number}"), _VALUE) for number in range(_KEYS)]
            if alive:
                operations.append(txn.put(store.keyspace.alive(name), record))
        async with room:
            await store.client.txn([], operations)

    await asyncio.gather(*(some(first) for first in range(0, agents, _FILLED_AT_ONCE - alive * 4)))


def _names(agents: int) -> list[str]:
    return [f"worker-{number:06}" for number in range(agents)]


async def _ours(store: Store, agents: int) -> float:
    """Agents per second, from the first that is told to the last."""
    collector = store.collector(id="bench", config=CollectorConfig(grace_s=3, breaker=None))
    events = collector.events()
    running = asyncio.create_task(collector.run())
    reaped, began_s = 0, 0.0
    async for event in events:
        if isinstance(event, Reaped):
            began_s = began_s or time.monotonic()
            reaped += 1
            if reaped == agents:
                break
    took_s = time.monotonic() - began_s
    await _end(collector.leave, running)
    return agents / took_s


async def _bare(store: Store, agents: int) -> float:
    """As few operations as do the same to etcd: no look at each key, no news, and always the same tombstone."""
    revision = (await store.client.get(b"x"))[1].revision
    lease = (await store.client.lease_grant(3600)).ID
    names = _names(agents)
    batches = iter([names[first : first + _BARE_BATCH] for first in range(0, agents, _BARE_BATCH)])

    async def some() -> None:
        for batch in batches:
            await _bare_txn(store, batch, revision, lease)

    began_s = time.monotonic()
    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    return agents / (time.monotonic() - began_s)


async def _bare_txn(store: Store, names: Sequence[str], revision: int, lease: int) -> None:
    keys = store.keyspace
    compare: list[rpc.Compare] = []
    operations: list[rpc.RequestOp] = []
    for name in names:
        prefix = keys.states(name)
        compare += (txn.absent(keys.alive(name)), txn.nothing_newer(prefix, revision))
        operations += (txn.delete_prefix(prefix), txn.put(keys.tombstone(name, 1), _TOMBSTONE, lease=lease))
    answer = await store.client.txn(compare, operations)
    assert answer.succeeded


async def _die(cluster: EtcdCluster, agents: int, tell: Callable[[str], None]) -> float:
    """Seconds from when etcd has expired the last lease of as many agents until the last tombstone, with no grace."""
    namespace = "die"
    tell(f"reaping: {agents} agents register, and die")
    async with connect(cluster.endpoints, namespace=namespace) as store:
        async with process(cluster, namespace, "tests.bench.crowd", str(agents), str(_TTL_S), "1") as made:
            assert made.stdout is not None
            while (line := await made.stdout.readline()) != b"registered\n":
                if not line:
                    raise BenchFailed("the agents could not register")
            config = CollectorConfig(grace_s=0, breaker=None)
            collector = store.collector(id="bench", config=config, candidate_config=CandidateConfig(ttl_s=30))
            events = collector.events()
            running = asyncio.create_task(collector.run())
            while not collector.candidate.is_leader:
                await asyncio.sleep(0.05)
            await asyncio.sleep(2)
            made.send_signal(signal.SIGKILL)
        expiring = asyncio.create_task(_last_expired_s(cluster, namespace, agents))
        reaped, last_s = 0, 0.0
        async for event in events:
            if isinstance(event, Reaped):
                reaped, last_s = reaped + 1, time.monotonic()
                if reaped == agents:
                    break
        await _end(collector.leave, running)
        return last_s - await expiring


async def _last_expired_s(cluster: EtcdCluster, namespace: str, agents: int) -> float:
    """When the last liveness key was gone."""
    async with EtcdClient(EtcdConfig(cluster.endpoints)) as client:
        keys = Keyspace(namespace)
        left = agents
        async for item in follow(client, keys.alive_prefix, Backoff(0.1, 1.0, random.Random())):
            if isinstance(item, Changes):
                left -= sum(event.type == Event.DELETE for event in item.events)
                if left <= 0:
                    return time.monotonic()
    raise AssertionError("unreachable")


async def _end(leave: Callable[[], None], running: asyncio.Task[None]) -> None:
    leave()
    await running


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
