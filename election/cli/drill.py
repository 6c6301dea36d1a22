"""The command `drill`: hurts a system of real processes, and judges what each of them believed."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from election.cli.exits import ERROR, OK
from election.cli.options import Settings, command, setting
from election.cli.output import print_json, print_table
from election.cli.signals import until_signal
from election.config import EtcdConfig
from election.drill.checker import all_held, check
from election.drill.faults.catalog import FAULTS, GROUPS, chosen
from election.drill.faults.fault import Fault, Lane
from election.drill.faults.strangers import STRANGERS
from election.drill.history import History
from election.drill.observer import HistoryLost
from election.drill.report import Figures, print_report, write_page
from election.drill.runner import Target, run
from election.drill.scenario import Scenario, draw, read
from election.drill.system import DrillFailed
from election.errors import ConfigError
from election.keys import Keyspace, check_name

PAGE = "report.html"
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST_S = 300.0
"""What one drill takes at most: a longer time is divided into several, each on an etcd of its own."""
_WIDTH = 80
_ALONE = {"orchestrators": 0, "blocking": 0, "agents": 0, "collectors": 0, "servers": 1}
"""What is started beside candidates that run already: a server, and its reader."""


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
@click.option("--etcd", metavar="HOST:PORT,...", help="an etcd that runs: only what lies before it can be hurt")
@click.option("--etcd-user", metavar="NAME:PASSWORD", help="a user of that etcd")
@click.option(
    "--hurt", metavar="NAMESPACE/ELECTION", help="with --etcd: rob the candidates that stand there, and start none"
)
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
    etcd: str | None,
    etcd_user: str | None,
    hurt: str | None,
    list_: bool,
    check: Path | None,
) -> int:
    """Hurt etcd, orchestrators, agents, collectors and servers, and check that every promise was kept.

    All of them are started for it, on this machine, with links between them that can be cut; nothing else is touched,
    unless --etcd or --hurt say so.
    Each process writes down what it believed and when, and that alone is judged: each invariant is held, violated or
    unknown, and unknown fails. Histories, scenarios and reports stay in the folder.
    """
    if list_:
        return _list(settings)
    if check is not None:
        return _judge(check, settings)
    seed = secrets.randbits(32) if seed is None else seed
    target = _target(etcd, etcd_user, hurt, seed)
    scenarios = [read(scenario, FAULTS)] if scenario else []
    named = chosen(faults.split(",")) if faults else []
    count = max(1, round(duration / _LONGEST_S))
    for number in range(0 if scenario else count):
        has_users = target is None and (number % 2 == 1 if auth is None else auth)
        made = draw(
            seed + number,
            _able(named, has_users=has_users, target=target),
            duration / count,
            members=members or (5 if number % 3 == 2 else 3),
            auth=has_users,
            **(_ALONE if hurt else {}),
        )
        scenarios.append(made)
    return _drills(scenarios, folder or Path(tempfile.mkdtemp(prefix="election-drill-")), settings, target)


def _drills(scenarios: Sequence[Scenario], folder: Path, settings: Settings, target: Target | None) -> int:
    """Does them one after the other, also when one fails."""
    _tell(f"seed {scenarios[0].seed}; histories and reports in {folder}")
    failed = []
    for number, scenario in enumerate(scenarios, 1):
        place = folder / f"{number:02}" if len(scenarios) > 1 else folder
        if len(scenarios) > 1:
            _tell(f"drill {number} of {len(scenarios)}: seed {scenario.seed}")
        if _drill(scenario, place, settings, target) != OK:
            failed.append(place.name)
    if len(scenarios) > 1:
        _tell(f"{len(scenarios)} drills, {len(failed)} of them failed{': ' if failed else ''}{', '.join(failed)}")
    return ERROR if failed else OK


def _target(etcd: str | None, user: str | None, hurt: str | None, seed: int) -> Target | None:
    if etcd is None:
        if hurt is not None or user is not None:
            raise ConfigError("--hurt and --etcd-user want --etcd: an etcd that a drill starts has nobody in it")
        return None
    config = EtcdConfig.parse(etcd, user=user)
    if hurt is None:
        return Target(config, f"drill-{seed}")
    namespace, _, election = hurt.partition("/")
    return Target(config, Keyspace(namespace).namespace, check_name("election", election))


def _able(named: Sequence[Fault[Any]], *, has_users: bool, target: Target | None) -> list[Fault[Any]]:
    """The faults to draw from; raises ConfigError where one was named that cannot be done."""
    found = []
    for fault in named or FAULTS.values():
        why = fault.unavailable()
        if fault.needs_users and not has_users:
            why = "it wants an etcd with users: say --auth"
        if target is not None and fault.lane is Lane.ETCD:
            why = "the members of an etcd that runs are not touched"
        if target is not None and target.election and fault not in STRANGERS:
            why = "--hurt only robs candidates"
        if why and named:
            raise ConfigError(f"{fault.name} cannot be done: {why}")
        if not why:
            found.append(fault)
    return found


def _drill(scenario: Scenario, folder: Path, settings: Settings, target: Target | None) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: a drill needs a folder of its own")
    logging.getLogger("election").setLevel(logging.CRITICAL)  # what goes wrong here is what is tried
    ended = False

    async def to_the_end() -> None:
        nonlocal ended
        await run(folder, scenario, FAULTS, _tell, target=target)
        ended = True

    try:
        asyncio.run(until_signal(to_the_end()))
    except (DrillFailed, HistoryLost) as error:
        _tell(f"error: the drill could not go on, and proves nothing: {error}; see {folder}")
        return ERROR
    if not ended:
        raise click.Abort
    code = _judge(folder, settings)
    if code == OK and target is None:
        shutil.rmtree(folder / "etcd")
    return code


def _judge(folder: Path, settings: Settings) -> int:
    try:
        history = History.load(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder} holds no history of a drill: {error}") from None
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
        documents = [
            {"name": each.name, "about": each.about, "lane": each.lane, "unavailable": each.unavailable() or None}
            for each in FAULTS.values()
        ]
        print_json({"faults": documents, "groups": GROUPS})
    else:
        rows = [
            (each.name, each.lane, f"{each.about} [not here: {why}]" if (why := each.unavailable()) else each.about)
            for each in FAULTS.values()
        ]
        print_table(("fault", "lane", "what is done"), rows, empty="no fault")
    return OK


def _tell(text: str) -> None:
    click.echo(text, err=True)
