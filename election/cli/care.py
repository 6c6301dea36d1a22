"""The commands that do something about agents: drain, reap, restore."""

from __future__ import annotations

import asyncio

import click

from election.agent_control import Remains
from election.agent_records import DrainMark
from election.cli.agent_documents import entry_document, names_text, tombstone_document
from election.cli.agents import print_entries
from election.cli.exits import OK
from election.cli.options import Api, Settings, command, more_than_zero, server_option, setting
from election.cli.output import print_json, time_text
from election.fields import text_of


@command("drain")
@click.argument("id")
@setting("--undo", is_flag=True, help="let it take new work again")
@server_option
def agents_drain(settings: Settings, id: str, undo: bool, server: Api | None) -> int:
    """Mark the agent ID: it is to take no new work.

    It goes on with what it has, and the mark stays when it restarts. What gives out work has to look at the state
    `draining`; nothing else enforces it.
    """

    async def ask() -> None:
        async with settings.care(server) as care:
            done = await (care.undrain if undo else care.drain)(id)
        mark = done.mark
        if settings.json:
            print_json(
                {
                    "agent": id,
                    "draining": done.draining,
                    "changed": done.changed,
                    "by": mark.by if mark else None,
                    "at": text_of(mark.at) if mark else None,
                }
            )
            return
        match done.draining, done.changed:
            case True, True:
                click.echo(f"agent {id} drains now")
            case True, False:
                click.echo(f"agent {id} drains already{_asked_by(done.mark)}")
            case False, changed:
                click.echo(f"agent {id} {'drains no more' if changed else 'does not drain'}")

    asyncio.run(ask())
    return OK


@command("reap")
@click.argument("id")
@setting("--dry-run", is_flag=True, help="print what would be collected, and do nothing")
@setting(
    "--timeout",
    type=float,
    callback=more_than_zero,
    default=10.0,
    show_default=True,
    metavar="S",
    help="how long to wait, seconds",
)
@server_option
def agents_reap(settings: Settings, id: str, dry_run: bool, timeout: float, server: Api | None) -> int:
    """Have the dead agent ID collected now.

    The collector that works does it, whatever the grace and the breaker say. A live agent is refused: nothing that is
    alive is ever collected. What was collected is kept in a tombstone: see `restore`.
    """

    async def ask() -> None:
        async with settings.care(server) as care:
            if dry_run:
                _print_remains(settings, await care.remains(id))
                return
            done = await care.reap(id, timeout_s=timeout)
        if settings.json:
            documents = [tombstone_document(tombstone, values=False) for tombstone in done.tombstones]
            print_json({"agent": id, "incarnation": done.incarnation, "tombstones": documents})
            return
        keys = tuple(entry.key for tombstone in done.tombstones for entry in tombstone.collected)
        by, token = done.tombstones[0].collector, done.tombstones[0].token
        click.echo(
            f"agent {id}, incarnation {done.incarnation}, was reaped by {by} under token {token}: {names_text(keys)}"
        )

    asyncio.run(ask())
    return OK


@command("restore")
@click.argument("id")
@setting("--incarnation", type=click.IntRange(0), help="which one [the newest that has a tombstone]")
@setting("--overwrite", is_flag=True, help="replace values that are there now")
@server_option
def agents_restore(settings: Settings, id: str, incarnation: int | None, overwrite: bool, server: Api | None) -> int:
    """Put back what was collected of the agent ID.

    Where the agent is not alive, it is a suspect again, and is collected again after the grace unless it comes back.
    """

    async def ask() -> None:
        async with settings.care(server) as care:
            done = await care.restore(id, incarnation=incarnation, overwrite=overwrite)
        if settings.json:
            print_json(
                {
                    "agent": id,
                    "incarnation": done.incarnation,
                    "written": list(done.written),
                    "unchanged": list(done.unchanged),
                    "alive": done.alive,
                }
            )
            return
        there = f"; there already: {names_text(done.unchanged)}" if done.unchanged else ""
        click.echo(f"put back of agent {id}, incarnation {done.incarnation}: {names_text(done.written)}{there}")
        if not done.alive:
            click.echo("it is not alive: all is collected again after the grace unless it comes back", err=True)

    asyncio.run(ask())
    return OK


def _asked_by(mark: DrainMark | None) -> str:
    return f", asked for by {mark.by} at {time_text(mark.at)} UTC" if mark and mark.by else ""


def _print_remains(settings: Settings, found: Remains) -> None:
    if settings.json:
        print_json(
            {
                "agent": found.agent,
                "incarnation": found.incarnation,
                "draining": found.draining,
                "revision": found.revision,
                "would_collect": [entry_document(entry) for entry in found.entries],
            }
        )
        return
    click.echo(f"of agent {found.agent}, incarnation {found.incarnation}, would be collected:")
    print_entries(found.entries)
    if found.draining:
        click.echo("and its mark that it drains")
