"""`python -m tests.chaos.agents`: hurts agents, their collectors and etcd, and checks that every promise was kept."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from election.drill import rounds
from election.drill.figures import Report, print_report
from election.drill.history import Settings
from election.drill.observer import HistoryLost
from election.drill.system import DrillFailed
from election.errors import ElectionError
from tests.chaos import breaker

_AGENTS, _CROWD = 30, 100
_QUIET_EVERY = 50
_HOLD_S = 30.0


@click.command()
@click.option("--scenario", type=click.Choice(["rounds", "breaker"]), default="rounds", show_default=True)
@click.option(
    "--rounds", "count", type=click.IntRange(min=1), default=1000, show_default=True, help="Faults, one each."
)
@click.option("--agents", type=click.IntRange(min=8), help=f"[{_AGENTS}; {_CROWD} for the breaker]")
@click.option("--seed", type=int, help="Decides all that is done [drawn, and printed]")
@click.option(
    "--report", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there as JSON."
)
@click.option("--keep", is_flag=True, help="Keep the history also when nothing is wrong.")
def main(scenario: str, count: int, agents: int | None, seed: int | None, path: Path | None, keep: bool) -> None:
    """Hurts agents, collectors and a 3-member etcd that it starts itself, and checks what became of them.

    `rounds` does one random fault after another; `breaker` lets half of all agents vanish at once. It exits with 1 when
    a promise was broken, and says where the history is: `python -m election.drill.checker` judges it again.
    """
    seed = secrets.randbits(32) if seed is None else seed
    _tell(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="election-drill-"))
    report: Report | None = None
    try:
        report = asyncio.run(_drill(scenario, folder, seed, count, agents))
        print_report(report)
        if path is not None:
            path.write_text(json.dumps(report.document(), indent=2))
    except (ElectionError, DrillFailed, HistoryLost) as error:
        raise click.ClickException(str(error)) from None
    finally:
        if report is not None and not report.violations and not keep:
            shutil.rmtree(folder)
        else:
            _tell(f"its history: {folder}")
    sys.exit(bool(report.violations))


def _drill(scenario: str, folder: Path, seed: int, count: int, agents: int | None) -> Coroutine[Any, Any, Report]:
    if scenario == "breaker":
        settings = Settings("drill", seed, ttl_s=3, grace_s=4, reconcile_s=5)
        return breaker.drill(folder, settings, agents=agents or _CROWD, hold_s=_HOLD_S, tell=_tell)
    settings = Settings("drill", seed, ttl_s=3, grace_s=2, reconcile_s=5)
    return rounds.drill(folder, settings, rounds=count, agents=agents or _AGENTS, quiet_every=_QUIET_EVERY, tell=_tell)


def _tell(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
