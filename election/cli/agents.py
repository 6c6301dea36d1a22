"""The commands that ask about agents: list, show, watch, tombstones."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import click

from election.agent_records import AgentState, StateEntry, Tombstone
from election.cli.agent_documents import (
    agent_document,
    agent_event_document,
    entry_document,
    names_text,
    short,
    tombstone_document,
)
from election.cli.exits import OK
from election.cli.options import Api, Settings, command, parse_label_filter, server_option, setting
from election.cli.output import hex_of, labels_text, print_json, print_line, print_table, shown
from election.cli.signals import until_signal
from election.errors import AgentUnknown
from election.keys import check_name
from election.published import TooSlow
from election.reader import NOT_REAPED, AgentEvent, AgentFilter


@command("list")
@setting(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in AgentState]),
    help="only these, repeatable [all but reaped]",
)
@setting(
    "--label",
    "labels",
    multiple=True,
    callback=parse_label_filter,
    metavar="NAME[=VALUE]",
    help="only those with all of these; repeatable",
)
@server_option
def list_(settings: Settings, states: tuple[str, ...], labels: dict[str, str], server: Api | None) -> int:
    """List the agents, by id."""
    chosen = AgentFilter(frozenset(map(AgentState, states)) or NOT_REAPED.states, labels)

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.agents) as reader:
            rows = (await reader.agents(chosen)).value
        if settings.json:
            print_json([agent_document(row) for row in rows])
            return
        fitting = "agents" if chosen == NOT_REAPED else "such agents"
        print_table(
            ("ID", "STATE", "INCARNATION", "ADDRESS", "LABELS", "STORES"),
            [
                (
                    row.id,
                    row.state.value,
                    str(row.incarnation),
                    row.address or "-",
                    labels_text(row.labels),
                    names_text(row.state_keys),
                )
                for row in rows
            ],
            empty=f"no {fitting} in namespace {settings.namespace!r}",
        )

    asyncio.run(ask())
    return OK


@command("show")
@click.argument("id")
@server_option
def show(settings: Settings, id: str, server: Api | None) -> int:
    """Show the agent ID and what it stores.

    Shows what was collected of it, too, as long as tombstones are kept.
    """
    check_name("agent", id)

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.agents) as reader:
            found = (await reader.agent(id)).value
            tombstones = (await reader.tombstones(id)).value
        if found is None:
            raise AgentUnknown(f"agent {id!r} is not known in namespace {settings.namespace!r}")
        agent, entries = found
        document = agent_document(agent)
        if settings.json:
            state = [entry_document(entry) for entry in entries]
            print_json({**document, "entries": state, "tombstones": list(map(tombstone_document, tombstones))})
            return
        del document["state_keys"]
        lease, labels = hex_of(agent.lease), labels_text(agent.labels)
        print_table(("FIELD", "VALUE"), shown({**document, "lease": lease, "labels": labels}), empty="")
        if entries:
            click.echo()
            print_entries(entries)
        if tombstones:
            click.echo()
            _print_tombstones(tombstones)

    asyncio.run(ask())
    return OK


@command("watch")
@setting(
    "--after",
    type=click.IntRange(0),
    metavar="REVISION",
    help="tell first what was reaped since then; 0: all that is kept",
)
@server_option
def watch(settings: Settings, after: int | None, server: Api | None) -> int:
    """Tell every change of the agents, until a signal.

    It begins with those that are there, and `synced`. Each line has the revision with which to go on after it:
    `--after` it, nothing that was reaped is missed.
    """

    async def follow() -> None:
        told = after
        async with settings.reader(server, lambda keyspace: keyspace.agents) as reader:
            while True:
                try:
                    async with aclosing(reader.watch_agents(after=told)) as events:
                        async for event in events:
                            _print_event(settings, event)
                            told = event.source.revision
                except TooSlow as error:
                    click.echo(f"begins again after revision {told}: {error}", err=True)

    return asyncio.run(until_signal(follow()))


@command("tombstones")
@click.argument("id", required=False)
@server_option
def tombstones(settings: Settings, id: str | None, server: Api | None) -> int:
    """List what was collected, the oldest first.

    Of the agent ID alone, where one is named.
    """
    if id is not None:
        check_name("agent", id)

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.reaped_prefix) as reader:
            rows = (await reader.tombstones(id)).value
        if settings.json:
            print_json([tombstone_document(row, values=False) for row in rows])
        else:
            of = "" if id is None else f" of agent {id!r}"
            _print_tombstones(rows, empty=f"no tombstones{of} in namespace {settings.namespace!r}")

    asyncio.run(ask())
    return OK


def print_entries(entries: tuple[StateEntry, ...]) -> None:
    """What an agent stores, as a table."""
    print_table(
        ("KEY", "BYTES", "REVISION", "VALUE"),
        [(entry.key, str(len(entry.value)), str(entry.mod_revision), short(entry.value)) for entry in entries],
        empty="",
    )


def _print_tombstones(rows: tuple[Tombstone, ...], *, empty: str = "") -> None:
    print_table(
        ("AGENT", "INCARNATION", "PART", "REAPED AT", "COLLECTOR", "TOKEN", "KEYS", "KEPT UNTIL"),
        [
            (
                row.agent,
                str(row.incarnation),
                str(row.part),
                f"{row.reaped_at:%Y-%m-%d %H:%M}" if row.reaped_at else "-",
                row.collector or "-",
                str(row.token),
                str(len(row.collected)),
                f"{row.keep_until:%Y-%m-%d}" if row.keep_until else "-",
            )
            for row in rows
        ],
        empty=empty,
    )


def _print_event(settings: Settings, event: AgentEvent) -> None:
    if settings.json:
        print_json(agent_event_document(event))
        return
    words = [f"{event.kind.value:9} {event.source.revision}"]
    if event.agent is not None:
        words += [event.agent.id, event.agent.state.value, f"incarnation {event.agent.incarnation}"]
    if event.tombstone is not None:
        words.append("had " + names_text(tuple(entry.key for entry in event.tombstone.collected)))
    print_line("  ".join(words))
