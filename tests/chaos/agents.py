"""`python -m tests.chaos.agents`: hurts a fleet of agents, its collectors and etcd, and checks what became of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from election.errors import ElectionError
from tests.chaos.checker import check
from tests.chaos.faults import Faults
from tests.chaos.history import History, Settings
from tests.chaos.observer import HistoryLost
from tests.chaos.plan import COLLECTORS, plan
from tests.chaos.report import Report, print_report
from tests.chaos.system import DrillFailed, running

TTL_S, GRACE_S, RECONCILE_S = 3, 2, 5
AGENTS = 30
COLLECT_OPTIONS = ("--breaker-agents", "3", "--breaker-share", "0.9", "--breaker-hold", "10")
"""Of random deaths the breaker is to hear only when nearly everybody vanishes, as when etcd was away for long."""
QUIET_EVERY = 50


async def drill(folder: Path, settings: Settings, *, rounds: int, agents: int, quiet_every: int) -> Report:
    """Runs one drill, with its history in the folder, and judges it."""
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
                _tell(f"{done.total()} rounds of {rounds}; etcd is at revision {system.observer.revision}")
        await system.end()
        version = system.cluster.version
    history = History.load(folder)
    return Report.of(history, check(history), done=done, etcd=version, took_s=time.monotonic() - began_s)


def _tell(text: str) -> None:
    click.echo(text, err=True)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--agents", type=click.IntRange(min=3), default=AGENTS, show_default=True)
@click.option("--seed", type=int, help="Decides all that is done  [drawn, and printed]")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there, as JSON.")
@click.option("--keep", is_flag=True, help="Keep the history also when nothing is wrong.")
def main(rounds: int, agents: int, seed: int | None, report: Path | None, keep: bool) -> None:
    """Hurts 30 agents, their collectors and a 3-member etcd, 1,000 times, and checks that every promise was kept.

    It exits with 1 when one was not, and says where the history is: `python -m tests.chaos.checker` judges it again.
    """
    seed = secrets.randbits(32) if seed is None else seed
    _tell(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="election-drill-"))
    settings = Settings("drill", seed, TTL_S, GRACE_S, RECONCILE_S)
    made = None
    try:
        made = asyncio.run(drill(folder, settings, rounds=rounds, agents=agents, quiet_every=QUIET_EVERY))
    except (ElectionError, DrillFailed, HistoryLost) as error:
        raise click.ClickException(f"{error} (seed {seed}; its history: {folder})") from None
    finally:
        if made is not None and not made.violations and not keep:
            shutil.rmtree(folder)
    print_report(made)
    if report is not None:
        report.write_text(json.dumps(made.document(), indent=2))
    if folder.exists():
        _tell(f"its history: {folder}")
    sys.exit(bool(made.violations))


if __name__ == "__main__":
    main()
