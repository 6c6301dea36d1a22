"""`python -m election.drill.checker FOLDER`: judges the history of a drill once more."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from election.drill.checker import all_held, check
from election.drill.history import History


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Checks the history in FOLDER; exits with 1 unless every invariant has held."""
    verdicts = check(History.load(folder))
    for verdict in verdicts:
        click.echo(
            f"{verdict.state:8} {verdict.invariant} ({verdict.examined:,} examined){verdict.why and ': '}{verdict.why}"
        )
        for violation in verdict.violations:
            click.echo(f"         {violation}")
    sys.exit(not all_held(verdicts))


if __name__ == "__main__":
    main()
