"""Many agents in one process: how fast they register and are renewed, beside bare calls, and what memory they need.

Each measurement has a process of its own, and those that are compared take turns: what one leaves behind, and what
else the machine does, hits both alike.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from election.dev.etcd import EtcdCluster
from tests.bench.contender import BenchFailed
from tests.bench.process import process
from tests.bench.samples import Bound, Figure, Measured

REGISTERING_GOAL = 0.8
"""The least that agents may register at, as a part of the rate of bare grants and puts."""
RENEWING_GOAL = 0.9
"""The least that the shared stream may renew at, as a part of the rate of a bare one."""
MEMORY_GOAL_MB = 300.0

_TURNS = ("bare", "agents", "agents", "bare")
_LONGEST_S = 900.0


async def measure(cluster: EtcdCluster, number: int, tell: Callable[[str], None]) -> Measured:
    """Registers so many agents twice, and as many bare keys twice; and renews on one stream in both ways.

    Raises:
        BenchFailed: when a process fails, or an agent is lost.
    """
    registered: dict[str, list[dict[str, Any]]] = {"bare": [], "agents": []}
    for turn, what in enumerate(_TURNS):
        tell(f"agents: {what}, {turn + 1} of {len(_TURNS)}")
        registered[what].append(await _run(cluster, what, number, namespace=f"bench-{turn}"))
    tell("agents: renewals")
    renewed = await _run(cluster, "renewals", number, namespace="bench")
    if lost := sum(each["lost"] for each in registered["agents"]):
        raise BenchFailed(f"{lost:g} agents were lost although nothing happened to them")
    living = registered["agents"]
    bare_per_s, agents_per_s = (_median(each["per_s"] for each in registered[what]) for what in ("bare", "agents"))
    bare_renewed, shared_renewed = median(renewed["bare"]), median(renewed["shared"])
    return Measured(
        f"agents: {number:,} of one process, on one stream",
        numbers=(
            ("registering, bare LeaseGrant and Put: per s", bare_per_s),
            ("registering, async with store.agent(...): per s", agents_per_s),
            ("renewing, a bare pipelined stream: per s", bare_renewed),
            ("renewing, the stream that agents share: per s", shared_renewed),
            ("memory before the first agent: MB", _median(each["before_mb"] for each in living)),
            ("CPU of the process while they live: % of one", 100 * _median(each["busy"] for each in living)),
        ),
        figures=(
            Figure("registering: agents / bare", agents_per_s / bare_per_s, REGISTERING_GOAL, Bound.AT_LEAST),
            Figure("renewing: shared / bare", shared_renewed / bare_renewed, RENEWING_GOAL, Bound.AT_LEAST),
            Figure(
                "resident memory with all of them alive: MB",
                max(each["living_mb"] for each in living),
                MEMORY_GOAL_MB,
                Bound.AT_MOST,
            ),
        ),
    )


def _median(values: Sequence[float] | Any) -> float:
    return float(median(values))


async def _run(cluster: EtcdCluster, what: str, number: int, *, namespace: str) -> Any:
    """Runs `tests.bench.fleet` to its end; returns what it says."""
    async with process(cluster, namespace, "tests.bench.fleet", what, str(number)) as made:
        try:
            said, _ = await asyncio.wait_for(made.communicate(), _LONGEST_S)
        except TimeoutError:
            raise BenchFailed(f"{what}: not done after {_LONGEST_S:g} s") from None
    if made.returncode:
        raise BenchFailed(f"{what}: the process ended with {made.returncode}")
    return json.loads(said)
