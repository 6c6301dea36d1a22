"""`election epoch`: what an operator does after etcd's history was set back."""

from __future__ import annotations

import asyncio

import click

from election.cli.exits import OK
from election.cli.options import Settings, command
from election.cli.output import print_json
from election.config import default_id
from election.epoch import raise_epoch, read_epoch
from election.fields import text_of
from election.records import EpochRecord


@command("show")
def show(settings: Settings) -> int:
    """Show the namespace's epoch, and whether a candidate found etcd's history behind what it had seen."""

    async def ask() -> None:
        async with settings.store() as store:
            _print(settings, await read_epoch(store.client, store.keyspace))

    asyncio.run(ask())
    return OK


@command("raise")
def raise_(settings: Settings) -> int:
    """Raise the namespace's epoch by one, so that every later token is larger than all before.

    Do it when candidates refuse to lead because etcd's history was set back, once nothing acts on the old tokens any
    more that a resource does not refuse. Terms that last go on under their old token.
    """

    async def ask() -> None:
        async with settings.store() as store:
            _print(settings, await raise_epoch(store.client, store.keyspace, by=default_id()))

    asyncio.run(ask())
    return OK


def _print(settings: Settings, record: EpochRecord) -> None:
    if settings.json:
        print_json(
            {
                "namespace": settings.namespace,
                "epoch": record.epoch,
                "revision": record.revision,
                "by": record.by,
                "at": text_of(record.at),
            }
        )
        return
    written = f", written by {record.by} at {record.at:%Y-%m-%d %H:%M:%S} UTC" if record.by and record.at else ""
    click.echo(f"epoch {record.epoch} of namespace {settings.namespace}{written}")
    if record.revision:
        click.echo(
            f"etcd's history was set back: revision {record.revision} has been seen in this epoch, and nobody leads "
            "before etcd is there again or the epoch is raised"
        )
