"""The command `drill`: hurts a system of real processes, and judges what each of them believed."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console

from election.cli.exits import ERROR, OK
from election.cli.options import Settings, command, setting
from election.cli.output import print_json, print_table
from election.cli.signals import until_signal
from election.drill.checker import all_held, check
from election.drill.faults.catalog import FAULTS, GROUPS, chosen
from election.drill.history import History
from election.drill.observer import HistoryLost
from election.drill.report import Figures, print_report, write_page
from election.drill.runner import run
from election.drill.scenario import Scenario, draw, read
from election.drill.system import DrillFailed
from election.errors import ConfigError

PAGE = "report.html"
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST_S = 600.0
"""What one drill takes at most: a longer time is divided into several, each on an etcd of its own."""
_WIDTH = 80


def duration(_: click.Context, __: click.Parameter, value: str) -> float:
    """A duration such as 60s, 5m, 1h, or a number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", value)
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no duration: say 60s, 5m or 1h")
    return float(found[1]) * _UNITS_S[found[2]]


@command("drill", shared=["output"])
@setting("--faults", metavar="NAME,NAME...", help="which faults to draw from [all that can be done here]")
@setting("--duration", default="60s", show_default=True, callback=duration, help="for how long, as in 60s, 5m, 1h")
@setting("--seed", type=click.IntRange(min=0), help="decides what is done [drawn, and told]")
@setting("--members", type=click.IntRange(1, 9), help="etcd members [3 and 5 in turn]")
@setting("--auth/--no-auth", default=None, help="whether etcd has users [in turn]")
@setting("--scenario", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="do what this file says")
@setting("--folder", type=click.Path(file_okay=False, path_type=Path), help="for histories and reports [a new one]")
@setting("--list", "list_", is_flag=True, help="show all faults, and end")
@setting(
    "--check",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="HISTORY",
    help="judge the history in this folder again, and end",
)
def drill(
    settings: Settings,
    faults: str | None,
    duration: float,
    seed: int | None,
    members: int | None,
    auth: bool | None,
    scenario: Path | None,
    folder: Path | None,
    list_: bool,
    check: Path | None,
) -> int:
    """Hurt etcd, orchestrators, agents, collectors and servers, and check that every promise was kept.

    All of them are started for it, on this machine, with links between them that can be cut; nothing else is touched.
    Each process writes down what it believed and when, and that alone is judged: each invariant is held, violated or
    unknown, and unknown fails. Histories, scenarios and reports stay in the folder.
    """
    if list_:
        return _list(settings)
    if check is not None:
        return _judge(check, settings)
    named = chosen(faults.split(",")) if faults else []
    for fault in named:
        if why := fault.unavailable():
            raise ConfigError(f"{fault.name} cannot be done here: {why}")
    seed = secrets.randbits(32) if seed is None else seed
    where = folder or Path(tempfile.mkdtemp(prefix="election-drill-"))
    _tell(f"seed {seed}; histories and reports in {where}")
    if scenario is not None:
        return _drill(read(scenario, FAULTS), where, settings)
    count = max(1, round(duration / _LONGEST_S))
    worst = OK
    for number in range(count):
        has_users = number % 2 == 1 if auth is None else auth
        able = [each for each in named or FAULTS.values() if not each.unavailable() and each.needs_users <= has_users]
        if not able:
            raise ConfigError(f"{faults} wants an etcd with users: say --auth")
        size = members or (5 if number % 3 == 2 else 3)
        made = draw(seed + number, able, duration / count, members=size, auth=has_users)
        _tell(f"drill {number + 1} of {count}: seed {made.seed}, {made.members} members")
        worst = max(worst, _drill(made, where / f"{number + 1:02}" if count > 1 else where, settings))
    return worst


def _drill(scenario: Scenario, folder: Path, settings: Settings) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: a drill needs a folder of its own")
    logging.getLogger("election").setLevel(logging.CRITICAL)  # what goes wrong here is what is tried
    try:
        asyncio.run(until_signal(run(folder, scenario, FAULTS, _tell)))
    except (DrillFailed, HistoryLost) as error:
        raise ConfigError(f"the drill could not go on, and proves nothing: {error}; see {folder}") from None
    code = _judge(folder, settings)
    if code == OK:
        shutil.rmtree(folder / "etcd")
    return code


def _judge(folder: Path, settings: Settings) -> int:
    history = History.load(folder)
    verdicts = check(history)
    figures = Figures.of(history, verdicts)
    write_page(history, verdicts, folder / PAGE)
    if settings.json:
        print_json(figures.document())
    else:
        print_report(figures, Console(highlight=False, markup=False, width=_WIDTH))
        _tell(f"the picture: {folder / PAGE}")
    return OK if all_held(verdicts) else ERROR


def _list(settings: Settings) -> int:
    if settings.json:
        documents = [{"name": each.name, "about": each.about, "lane": each.lane} for each in FAULTS.values()]
        print_json({"faults": documents, "groups": GROUPS})
    else:
        rows = [(each.name, each.lane, each.about) for each in FAULTS.values()]
        print_table(("fault", "lane", "what is done"), rows, empty="no fault")
    return OK


def _tell(text: str) -> None:
    click.echo(text, err=True)
