"""The drill of random faults: one in each round, and now and then a quiet time in which all becomes well."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from election.drill.faults.old import Faults
from election.drill.figures import Report
from election.drill.history import Settings
from election.drill.plan import COLLECTORS, plan
from election.drill.system import running

COLLECT_OPTIONS = ("--breaker-agents", "3", "--breaker-share", "0.9", "--breaker-hold", "10")
"""Of random deaths the breaker is to hear only when nearly everybody vanishes, as when etcd was away for long."""


async def drill(
    folder: Path, settings: Settings, *, rounds: int, agents: int, quiet_every: int, tell: Callable[[str], None]
) -> Report:
    """Runs the drill, with its history in the folder, and judges it.

    Raises:
        DrillFailed, HistoryLost: it could not go on, and nothing is proved.
    """
    names = [f"w{number}" for number in range(1, agents + 1)]
    actions = plan(
        seed=settings.seed,
        rounds=rounds,
        agents=names,
        quiet_every=quiet_every,
        ttl_s=settings.ttl_s,
        grace_s=settings.grace_s,
    )
    began_s = time.monotonic()
    done: Counter[str] = Counter()
    async with running(folder, settings, COLLECT_OPTIONS) as system:
        await system.populate(names, collectors=COLLECTORS)
        faults = Faults(system)
        for action in actions:
            await asyncio.sleep(action.wait_s)
            await faults.do(action)
            if action.round:
                done[action.what] += 1
            if action.what == "quiet":
                tell(f"{done.total()} rounds of {rounds}; etcd is at revision {system.observer.revision}")
        await system.end()
        version = system.cluster.version
    return Report.of(folder, faults=done, etcd=version, took_s=time.monotonic() - began_s)
