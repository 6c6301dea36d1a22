"""A process with many agents, or with as many bare leases and keys; prints what it measured as one JSON object.

    python -m tests.bench.fleet bare|agents|renewals NUMBER

The connection comes from ELECTION_ENDPOINTS and ELECTION_NAMESPACE.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from election import Agent, Store
from election.config import AgentConfig
from election.dev.child import connect_from_environment
from election.etcd import methods
from election.etcd.keepalive import KeepAlive
from election.etcd.lease import Lease
from election.pb.etcd import rpc_pb2 as rpc

CONCURRENCY = 64
RENEWAL_ROUNDS = 12
_WINDOW = 512
_RENEWED_LEASES = 2_000
_LONG_TTL_S = 600
_POLL_S = 0.05
_VALUE = b"v" * 100


async def many(number: int, do: Callable[[int], Awaitable[object]]) -> float:
    """Does something for each number, CONCURRENCY of them at once; returns how many per second."""
    numbers = iter(range(number))

    async def work() -> None:
        for each in numbers:
            await do(each)

    began_ns = time.monotonic_ns()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
    return number / (time.monotonic_ns() - began_ns) * 1e9


def resident_mb() -> float:
    """How much memory this process has at present."""
    gc.collect()
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


async def bare(store: Store, number: int) -> dict[str, float]:
    """One LeaseGrant and one Put for each; the leases are such that nobody has to renew them meanwhile."""
    leases: list[int] = []

    async def register(each: int) -> None:
        lease = (await store.client.lease_grant(_LONG_TTL_S)).ID
        await store.client.put(f"/bench/bare/{each}".encode(), _VALUE, lease=lease)
        leases.append(lease)

    per_s = await many(number, register)
    await many(number, lambda each: store.client.lease_revoke(leases[each]))
    return {"per_s": per_s}


async def agents(store: Store, number: int) -> dict[str, float]:
    """As many agents, each by `async with store.agent(...)`; they live for two TTLs."""
    before_mb = resident_mb()
    made: list[Agent] = []

    async def register(each: int) -> None:
        made.append(await store.agent(f"agent-{each}").__aenter__())

    per_s = await many(number, register)
    lives = [agent.registration for agent in made]
    cpu_s, began_s = time.process_time(), time.monotonic()
    await asyncio.sleep(2 * AgentConfig().ttl_s)
    busy = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    living_mb = resident_mb()
    lost = sum(
        agent.remaining_s() == 0 or agent.registration is not life for agent, life in zip(made, lives, strict=True)
    )
    await many(number, lambda each: made[each].__aexit__(None, None, None))
    return {"per_s": per_s, "before_mb": before_mb, "living_mb": living_mb, "lost": lost, "busy": busy}


async def renewals(store: Store, number: int) -> dict[str, list[float]]:
    """So many renewals on one stream, by the keepalive and by a bare loop, by turns."""
    leases: list[Lease] = []

    async def grant(_: int) -> None:
        granted = await store.client.lease_grant(_LONG_TTL_S)
        # Due again as soon as it was renewed: as fast as it can.
        leases.append(Lease(granted.ID, granted.TTL, 1.0, 0.0, time.clock_gettime(time.CLOCK_BOOTTIME) + 500.0, 0))

    await many(_RENEWED_LEASES, grant)
    await store.client.approach_leader()
    found: dict[str, list[float]] = {"bare": [], "shared": []}
    for turn in range(2 * RENEWAL_ROUNDS):
        # ABBA: whatever grows or shrinks with time hits both alike.
        which = ("bare", "shared", "shared", "bare")[turn % 4]
        found[which].append(await (_bare_renewals if which == "bare" else _shared_renewals)(store, leases, number))
    await many(_RENEWED_LEASES, lambda each: store.client.lease_revoke(leases[each].id))
    return found


async def _bare_renewals(store: Store, leases: list[Lease], number: int) -> float:
    method = methods.LEASE_KEEP_ALIVE
    async with grpc.aio.insecure_channel(store.config.endpoints[store.client.member]) as channel:
        call: Any = channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )()
        room = asyncio.Semaphore(_WINDOW)

        async def write() -> None:
            for each in range(number):
                await room.acquire()
                await call.write(rpc.LeaseKeepAliveRequest(ID=leases[each % len(leases)].id))

        began_ns = time.monotonic_ns()
        writing = asyncio.create_task(write())
        for _ in range(number):
            answer = await call.read()
            assert answer.TTL > 0
            room.release()
        per_s = number / (time.monotonic_ns() - began_ns) * 1e9
        await writing
        call.cancel()
    return per_s


async def _shared_renewals(store: Store, leases: list[Lease], number: int) -> float:
    keepalive = KeepAlive(store.client, random.Random(0))
    for lease in leases:
        keepalive.add(lease)
    running = asyncio.create_task(keepalive.run())
    while not keepalive.answered:
        await asyncio.sleep(0.001)
    began_ns, before = time.monotonic_ns(), keepalive.answered
    while keepalive.answered < before + number:
        await asyncio.sleep(_POLL_S)
    per_s = (keepalive.answered - before) / (time.monotonic_ns() - began_ns) * 1e9
    running.cancel()
    await asyncio.wait({running})
    return per_s


async def main(what: str, number: int) -> None:
    """Measures one thing, and prints it."""
    async with connect_from_environment() as store:
        await store.client.approach_leader()
        measure = {"bare": bare, "agents": agents, "renewals": renewals}[what]
        sys.stdout.write(json.dumps(await measure(store, number)) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
