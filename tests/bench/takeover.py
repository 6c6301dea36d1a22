"""From kill -9 of a leader until the next one has begun: the end of the lease in etcd, and what we add to it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from election.backoff import Backoff
from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, follow
from election.keys import Keyspace
from election.pb.etcd.kv_pb2 import Event
from tests.bench import contender
from tests.bench.contender import BenchFailed, Contender
from tests.bench.samples import Measured, Samples

TTL_S = 5
_NAMESPACE = "bench"
_STAGGERED_S = 0.37
"""Between two kills, so that they fall differently between the renewals (1 s) and etcd's looks (0.5 s)."""
_SETTLED_S = 2.0
_TAKEN_S = 30.0


@dataclass
class _Pair:
    """A leader that dies and a follower that takes over, and when what happened."""

    leader: Contender
    follower: Contender
    prefix: bytes
    key: bytes = b""
    killed_at_ns: int = 0
    deleted_at_ns: int = 0
    led_at_ns: int = 0


async def measure(cluster: EtcdCluster, runs: int, folder: Path, tell: Callable[[str], None]) -> Measured:
    """Kills so many leaders, of as many elections, one soon after the other.

    Raises:
        BenchFailed: when one of them has no successor in time.
    """
    pairs: list[_Pair] = []

    def start(election: str, id: str) -> Contender:
        return contender.ours(
            election,
            f"{election}-{id}",
            endpoints=cluster.endpoints,
            namespace=_NAMESPACE,
            log=folder / "takeover.log",
            ttl_s=TTL_S,
        )

    keys = Keyspace(_NAMESPACE)
    try:
        async with EtcdClient(EtcdConfig(cluster.endpoints)) as client:
            for number in range(runs):
                election = f"takeover-{number}"
                tell(f"takeover: {number + 1} of {runs} stand")
                leader = start(election, "first")
                key = leader.read().strip().encode()
                pairs.append(_Pair(leader, start(election, "second"), keys.campaign(election), key))
            while any([len((await client.list(pair.prefix)).kvs) < 2 for pair in pairs]):
                await asyncio.sleep(0.1)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(_watch(client, keys.campaigns, pairs))
                await asyncio.sleep(_SETTLED_S)
                tell("takeover: the leaders are killed")
                await _kill(pairs)
                watching.cancel()
    finally:
        for pair in pairs:
            pair.leader.kill()
            pair.follower.kill()
    return Measured(
        f"takeover: from kill -9 of the leader, at a TTL of {TTL_S} s",
        (
            Samples("until the line of the next leader", [(p.led_at_ns - p.killed_at_ns) / 1e6 for p in pairs]),
            Samples("until etcd deletes the key", [(p.deleted_at_ns - p.killed_at_ns) / 1e6 for p in pairs]),
            Samples("from there to the line", [(p.led_at_ns - p.deleted_at_ns) / 1e6 for p in pairs]),
        ),
        numbers=(("the TTL alone, of a lease that was renewed just before: ms", TTL_S * 1e3),),
    )


async def _kill(pairs: list[_Pair]) -> None:
    """Kills the leaders, and returns when all followers lead."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def led(pair: _Pair) -> None:
        pair.led_at_ns = time.monotonic_ns()
        loop.remove_reader(pair.follower.stdout_fd)
        if all(each.led_at_ns and each.deleted_at_ns for each in pairs):
            done.set()

    for pair in pairs:
        loop.add_reader(pair.follower.stdout_fd, led, pair)
        pair.killed_at_ns = time.monotonic_ns()
        os.kill(pair.leader.pid, signal.SIGKILL)
        await asyncio.sleep(_STAGGERED_S)
    try:
        async with asyncio.timeout(_TAKEN_S):
            await done.wait()
    except TimeoutError:
        raise BenchFailed(f"not every leader has a successor {_TAKEN_S:g} s after its end") from None
    finally:
        for pair in pairs:
            loop.remove_reader(pair.follower.stdout_fd)


async def _watch(client: EtcdClient, prefix: bytes, pairs: list[_Pair]) -> None:
    by_key = {pair.key: pair for pair in pairs}
    async with aclosing(follow(client, prefix, Backoff(0.1, 1.0, random.Random(0)))) as items:
        async for item in items:
            seen_at_ns = time.monotonic_ns()
            for event in item.events if isinstance(item, Changes) else ():
                if event.type == Event.DELETE and event.kv.key in by_key:
                    by_key[event.kv.key].deleted_at_ns = seen_at_ns
