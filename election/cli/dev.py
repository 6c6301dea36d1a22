"""The command `dev`: the whole system on this machine, to look at and to hurt."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import aclosing, nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from election.cli.options import Settings, command, setting
from election.cli.output import print_json
from election.cli.signals import until_signal
from election.clock import BootClock
from election.dev.fleet import DevConfig, Fleet, start_fleet
from election.dev.screen import Screen
from election.fields import text_of

_REFRESH_S = 0.25
_UNSAFE_VERSIONS = ("3.5.0", "3.5.1", "3.5.2")


@command("dev", shared=["output"])
@setting("--members", type=click.IntRange(1, 9), default=3, show_default=True, help="etcd members")
@setting("--orchestrators", type=click.IntRange(0, 100), default=3, show_default=True)
@setting("--agents", type=click.IntRange(0, 100), default=5, show_default=True)
@setting("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="kept at the end [a temporary one]")
@setting("--client-port", type=click.IntRange(1, 65535), help="the first of etcd's ports [2379, or free ones]")
@setting("--grpc-port", type=click.IntRange(1, 65535), help="[50051, or a free one]")
@setting("--respawn", type=click.FloatRange(min=0), default=30.0, show_default=True, help="seconds; 0: never")
@setting("--duration", type=click.FloatRange(min=0), metavar="S", help="end after so many seconds [at Ctrl-C]")
def dev(
    settings: Settings,
    members: int,
    orchestrators: int,
    agents: int,
    data_dir: Path | None,
    client_port: int | None,
    grpc_port: int | None,
    respawn: float,
    duration: float | None,
) -> int:
    """Run an etcd, orchestrators, agents and `serve` on this machine, and show what happens.

    On a terminal it is a live view; elsewhere, and with -o json, one JSON object per event.
    """
    with tempfile.TemporaryDirectory(prefix="election-dev-") if data_dir is None else nullcontext(data_dir) as folder:
        config = DevConfig(
            data_dir=Path(folder).resolve(),
            members=members,
            orchestrators=orchestrators,
            agents=agents,
            client_port=client_port,
            grpc_port=grpc_port,
            respawn_s=respawn,
        )
        live = sys.stdout.isatty() and not settings.json
        return asyncio.run(until_signal(_run(config, live=live, duration_s=duration)))


async def _run(config: DevConfig, *, live: bool, duration_s: float | None) -> None:
    async with start_fleet(config) as fleet:
        _warn_of_version(fleet.cluster.version)
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(_show(fleet) if live else _print(fleet)),
                group.create_task(fleet.run()),
            ]
            if duration_s is not None:
                await asyncio.sleep(duration_s)
                for task in running:
                    task.cancel()


def _warn_of_version(version: str) -> None:
    if version in _UNSAFE_VERSIONS:
        click.echo(
            f"note: etcd {version} is fine for trying things, and never to keep data in: it can corrupt them in a "
            "crash. Put a newer etcd on PATH, or name one in ELECTION_ETCD_BIN.",
            err=True,
        )


async def _print(fleet: Fleet) -> None:
    async with aclosing(fleet.events()) as events:
        _print_event(
            {
                "event": "ready",
                "endpoints": fleet.endpoints,
                "grpc": fleet.grpc_address,
                "etcd": fleet.cluster.version,
                "data_dir": str(fleet.config.data_dir),
                "try": fleet.question,
            }
        )
        async for event in events:
            _print_event(event)


def _print_event(event: dict[str, object]) -> None:
    print_json({"at": text_of(BootClock().wall()), **event})


async def _show(fleet: Fleet) -> None:
    screen = Screen(fleet)
    with Live(console=Console(), auto_refresh=False, screen=True) as display:
        async with asyncio.TaskGroup() as group:
            group.create_task(_note(fleet, screen))
            while True:
                display.update(await screen.render(), refresh=True)
                await asyncio.sleep(_REFRESH_S)


async def _note(fleet: Fleet, screen: Screen) -> None:
    async with aclosing(fleet.events()) as events:
        async for event in events:
            screen.note(event)
