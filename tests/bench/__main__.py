"""`python -m tests.bench`: measures on a cluster of its own, and prints tables or one JSON document."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from election.dev.etcd import EtcdCluster
from election.errors import ElectionError
from tests.bench import agents, fencing, handover, readers, reaping, takeover
from tests.bench.samples import PERCENTILES, Measured

PARTS = ("handover", "takeover", "fencing", "agents", "reaping", "idle", "readers")
_TAKEOVERS = 6
_WRITES_PER_RUN = 5
_AGENTS_PER_RUN = 50
_REAPING_ROUNDS = 4
_STREAMS_PER_RUN = 5
_QUESTIONS_PER_RUN = 100


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Measure this part; may be given several times.")
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help=f"Handovers of each program; {_WRITES_PER_RUN} times as many writes, {_AGENTS_PER_RUN} times as many agents, "
    f"{_STREAMS_PER_RUN} times as many streams, {_QUESTIONS_PER_RUN} times as many questions, "
    f"and at most {_TAKEOVERS} takeovers.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(only: Sequence[str], runs: int, output: str) -> None:
    """Measures on a real etcd of three members, which it starts itself.

    handover: from the signal to a leader to the next one's first line, beside etcdctl elect.

    takeover: the same from kill -9.

    fencing: a fenced write beside a bare one.

    agents: how fast 10,000 agents of one process register beside bare leases and keys, how fast the stream that they
    share can renew beside a bare one, and what memory they need.

    reaping: how fast the collector reaps as many that are gone at once, beside bare transactions.

    idle: the CPU time that a collector takes with 100, 1,000 and 10,000 agents while nothing happens.

    readers: how fast 1,000 streams of one server of the API hear of a new leader beside as many of etcd's Observe, how
    many questions it answers beside empty ones, and what memory an idle stream needs.
    """
    try:
        document, measured = asyncio.run(_measure([part for part in PARTS if not only or part in only], runs))
    except ElectionError as error:
        raise click.ClickException(str(error)) from None
    if output == "json":
        click.echo(json.dumps({**document, "parts": {part: each.document() for part, each in measured.items()}}))
    else:
        _print_tables(document, list(measured.values()))


async def _measure(parts: Sequence[str], runs: int) -> tuple[dict[str, Any], dict[str, Measured]]:
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="election-bench-") as name:
        folder = Path(name)
        async with await EtcdCluster.start(data_dir=folder / "etcd") as cluster:
            _tell(f"etcd {cluster.version}, {len(cluster.members)} members")
            for part in parts:
                match part:
                    case "handover":
                        measured[part] = await handover.measure(cluster, runs, folder, _tell)
                    case "takeover":
                        measured[part] = await takeover.measure(cluster, min(runs, _TAKEOVERS), folder, _tell)
                    case "fencing":
                        measured[part] = await fencing.measure(cluster, runs * _WRITES_PER_RUN, _tell)
                    case "agents":
                        measured[part] = await agents.measure(cluster, runs * _AGENTS_PER_RUN, _tell)
                    case "reaping":
                        measured[part] = await reaping.measure(cluster, runs * _AGENTS_PER_RUN, _REAPING_ROUNDS, _tell)
                    case "readers":
                        streams, questions = runs * _STREAMS_PER_RUN, runs * _QUESTIONS_PER_RUN
                        measured[part] = await readers.measure(cluster, streams, questions, _tell)
                    case "idle":
                        measured[part] = await reaping.measure_idle(cluster, _tell)
            about = {
                "etcd": cluster.version,
                "members": len(cluster.members),
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
            }
    return about, measured


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _print_tables(about: dict[str, Any], measured: Sequence[Measured]) -> None:
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(
        f"etcd {about['etcd']}, {about['members']} members; Python {about['python']}; "
        f"{about['cpus']} CPUs, load {about['load']:g}; times in ms"
    )
    for part in measured:
        console.print(f"\n{part.title}", style="bold")
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        for column in ("n", *(f"p{percent}" if percent < 100 else "max" for percent in PERCENTILES)):
            table.add_column(column, justify="right")
        for series in part.series:
            shown = [f"{series.percentile_ms(percent):.2f}" for percent in PERCENTILES]
            table.add_row(series.name, str(len(series.values_ms)), *shown)
        for ratio in part.ratios:
            shown = [f"{ratio.of(percent):.2f}" if percent in ratio.percents else "" for percent in PERCENTILES]
            table.add_row(ratio.name, "", *shown)
        if part.series:
            console.print(table)
        for ratio in part.ratios:
            if ratio.goal is not None:
                console.print(f"goal: {ratio.goal:g} or less, {'met' if ratio.met else 'missed'}")
        for name, number in part.numbers:
            console.print(f"{name} {number:,.1f}" if number < 1_000 else f"{name} {number:,.0f}")
        for figure in part.figures:
            console.print(
                f"{figure.name} {figure.value:.2f}" if figure.value < 10 else f"{figure.name} {figure.value:,.0f}"
            )
            console.print(f"goal: {figure.goal:g} {figure.bound.value}, {'met' if figure.met else 'missed'}")


if __name__ == "__main__":
    main()
