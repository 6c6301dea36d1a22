"""The commands that ask who leads: leader, observe, candidates, list."""

from __future__ import annotations

import asyncio

import click

from election.cli.exits import NOBODY_LEADS, OK
from election.cli.options import Api, Settings, command, server_option
from election.cli.output import (
    candidate_document,
    election_document,
    hex_of,
    labels_text,
    leader_document,
    print_json,
    print_line,
    print_table,
    shown,
    time_text,
)
from election.cli.signals import until_signal
from election.reader import LeaderEvent
from election.records import Leader, leader_of


@command("leader")
@click.argument("name")
@server_option
def leader(settings: Settings, name: str, server: Api | None) -> int:
    """Tell who leads the election NAME. Exits with 3 when nobody does."""

    async def ask() -> int:
        async with settings.reader(server, lambda keyspace: keyspace.campaign(name)) as reader:
            answer = await reader.leader(name)
        if answer.value is None:
            click.echo(f"nobody leads {name!r}", err=True)
            if settings.json:
                print_json(None)
            return NOBODY_LEADS
        document = leader_document(answer.value, answer.source)
        if settings.json:
            print_json(document)
        else:
            lease, labels = hex_of(answer.value.lease), labels_text(answer.value.labels)
            proven = "yes" if answer.value.proven else "no"
            rows = shown({**document, "lease": lease, "labels": labels, "proven": proven})
            print_table(("FIELD", "VALUE"), rows, empty="")
        return OK

    return asyncio.run(ask())


@command("observe")
@click.argument("name")
@server_option
def observe(settings: Settings, name: str, server: Api | None) -> int:
    """Tell who leads the election NAME, and then every change, until a signal."""

    async def follow() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.campaign(name)) as reader:
            async for event in reader.watch_leader(name):
                if settings.json:
                    print_json(_event_document(name, event))
                else:
                    print_line(f"{event.kind.value:8} {_leader_text(event.leader)}")

    return asyncio.run(until_signal(follow()))


@command("candidates")
@click.argument("name")
@server_option
def candidates(settings: Settings, name: str, server: Api | None) -> int:
    """List the candidates of the election NAME, the oldest first."""

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.campaign(name)) as reader:
            rows = (await reader.candidates(name)).value
        leads = leader_of(rows)
        if settings.json:
            print_json([candidate_document(row, leads) for row in rows])
            return
        print_table(
            ("PLACE", "ID", "ADDRESS", "TOKEN", "LABELS", "ELECTED"),
            [
                (
                    "leads" if leads and leads.key == row.key else str(place),
                    row.id + (" (foreign)" if row.foreign else ""),
                    row.address or "-",
                    str(row.token or "-"),
                    labels_text(row.labels),
                    time_text(row.elected_at),
                )
                for place, row in enumerate(rows)
            ],
            empty=f"nobody stands for {name!r}",
        )

    asyncio.run(ask())
    return OK


@command("list")
@server_option
def list_elections(settings: Settings, server: Api | None) -> int:
    """List the elections that somebody stands for."""

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.campaigns) as reader:
            rows = (await reader.elections()).value
        if settings.json:
            print_json([election_document(row) for row in rows])
            return
        print_table(
            ("ELECTION", "LEADER", "TOKEN", "CANDIDATES"),
            [
                (
                    row.name,
                    row.leader.id if row.leader else "-",
                    str(row.leader.token) if row.leader else "-",
                    str(row.candidates),
                )
                for row in rows
            ],
            empty=f"no election in namespace {settings.namespace!r}",
        )

    asyncio.run(ask())
    return OK


def _event_document(name: str, event: LeaderEvent) -> dict[str, object]:
    if event.leader is None:
        return {
            "event": event.kind.value,
            "election": name,
            "id": None,
            "token": None,
            "revision": event.source.revision,
            "cluster_id": event.source.cluster_id,
        }
    return {"event": event.kind.value, **leader_document(event.leader, event.source)}


def _leader_text(leader: Leader | None) -> str:
    if leader is None:
        return "nobody leads"
    address = f" at {leader.address}" if leader.address else ""
    unproven = "" if leader.proven else " (foreign: not proven)"
    return f"{leader.id}{address} leads with token {leader.token}{unproven}"
