"""`python -m tests.simulation`: runs the explorer on many seeds, and says which of them breaks which promise."""

from __future__ import annotations

import sys
import time

import click

from tests.simulation.explorer import Outcome, explore
from tests.simulation.many import made, outcomes
from tests.simulation.mistakes import MISTAKES
from tests.simulation.plan import shown
from tests.simulation.shrink import shrink

_PROGRESS_S = 5.0


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=1000, show_default=True, help="How many runs.")
@click.option("--from", "first", type=int, default=1, show_default=True, help="The first seed.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
@click.option("--mistake", "name", type=click.Choice(sorted(MISTAKES)), help="Make a known mistake; it is to be found.")
@click.option("--mistakes", is_flag=True, help="Make each of the known mistakes, and tell which seed has found it.")
def main(seeds: int, first: int, workers: int, name: str | None, mistakes: bool) -> None:
    """Runs real candidates, collectors and agents on an etcd in memory, in virtual time, and hurts them by a seed.

    Exits with 1 when a promise was broken, after it has said which faults it takes; with --mistakes, when one of the
    mistakes was not found.
    """
    if mistakes:
        sys.exit(_all_mistakes(range(first, first + seeds), workers))
    failed = _first_failure(range(first, first + seeds), workers, name, progress=True)
    if failed is not None:
        _explain(failed, name)
        sys.exit(1)


def _all_mistakes(seeds: range, workers: int) -> bool:
    """Whether one of them was not found."""
    missed = False
    for mistake in MISTAKES.values():
        began_s = time.monotonic()
        failed = _first_failure(seeds, workers, mistake.name, progress=False)
        took_s = time.monotonic() - began_s
        if failed is None:
            missed = True
            click.echo(f"{mistake.name:24} NOT FOUND in {len(seeds)} seeds, {took_s:.0f} s")
        elif (without := explore(failed.plan).violation) is not None:
            missed = True
            click.echo(f"{mistake.name:24} NOT FOUND: seed {failed.plan.seed} fails without it, too: {without}")
        else:
            number = failed.plan.seed - seeds.start + 1
            click.echo(f"{mistake.name:24} found after {number:4} seeds, {took_s:3.0f} s: {failed.violation}")
    return missed


def _first_failure(seeds: range, workers: int, name: str | None, *, progress: bool) -> Outcome | None:
    began_s = told_s = time.monotonic()
    slowest_s = 0.0
    for done, outcome in enumerate(outcomes(seeds, workers, name), 1):
        if outcome.violation is not None:
            return outcome
        slowest_s = max(slowest_s, outcome.settled_in_s)
        if progress and (time.monotonic() - told_s > _PROGRESS_S or done == len(seeds)):
            told_s = time.monotonic()
            rate = done / (told_s - began_s) * 60
            click.echo(
                f"seed {outcome.plan.seed}: {done} runs, nothing broken, all well at most {slowest_s:.1f} s after the "
                f"faults; {rate:.0f} runs a minute",
                err=True,
            )
    return None


def _explain(failed: Outcome, name: str | None) -> None:
    """Says what went wrong, and which faults it takes."""
    seed = failed.plan.seed
    click.echo(f"seed {seed}: {failed.violation}")
    with made(name):
        least = shrink(failed.plan, lambda plan: explore(plan).violation is not None)
        violation = explore(least).violation
    click.echo(f"with {len(least.steps)} of its {len(failed.plan.steps)} faults: {violation}")
    click.echo(
        f"{least.candidates} candidates, {least.collectors} collectors, {least.agents} agents, then the observer"
    )
    click.echo(shown(least.steps))
    click.echo(f"again: make simulate SEEDS=1 FROM={seed}" + (f" ARGS='--mistake {name}'" if name else ""))


if __name__ == "__main__":
    main()
