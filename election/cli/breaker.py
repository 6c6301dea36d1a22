"""`election breaker`: whether collectors may reap, and what an operator decides about it."""

from __future__ import annotations

import asyncio

import click

from election.breaker import Breaker, BreakerReason, close_breaker, hold_breaker
from election.cli.agent_documents import breaker_document
from election.cli.exits import OK
from election.cli.options import Api, Settings, command, more_than_zero, operator, server_option, setting
from election.cli.output import print_json, time_text


@command("show")
@server_option
def show(settings: Settings, server: Api | None) -> int:
    """Show whether collectors may reap, and if not, why."""

    async def ask() -> None:
        async with settings.reader(server, lambda keyspace: keyspace.collector) as reader:
            _print(settings, (await reader.breaker()).value)

    asyncio.run(ask())
    return OK


@command("close")
def close(settings: Settings) -> int:
    """Let collectors reap again.

    The agents that are missing now are given up: they do not open the breaker again.
    """

    async def ask() -> None:
        async with settings.store() as store:
            _print(settings, await close_breaker(store.client, store.keyspace, by=operator()))

    asyncio.run(ask())
    return OK


@command("hold")
@setting("--for", "hold_s", type=float, callback=more_than_zero, metavar="S", help="seconds [until `breaker close`]")
def hold(settings: Settings, hold_s: float | None) -> int:
    """Let nobody reap anything.

    Only what `election agents reap` asks for is reaped all the same.
    """

    async def ask() -> None:
        async with settings.store() as store:
            _print(settings, await hold_breaker(store.client, store.keyspace, by=operator(), hold_s=hold_s))

    asyncio.run(ask())
    return OK


def breaker_text(breaker: Breaker) -> str:
    """The breaker in a sentence, without saying whether it is open."""
    counted = f", {breaker.missing} of {breaker.known} agents missing" if breaker.known else ""
    by = f" by {breaker.by}" if breaker.by else ""
    at = f" at {time_text(breaker.at)} UTC" if breaker.at else ""
    until = f", until {time_text(breaker.until)} UTC" if breaker.until else ""
    return f"{breaker.reason.value if breaker.reason else 'never opened'}{counted}{by}{at}{until}"


def _print(settings: Settings, breaker: Breaker) -> None:
    if settings.json:
        print_json(breaker_document(breaker))
        return
    if not breaker.open:
        click.echo(f"closed: collectors may reap ({breaker_text(breaker)})")
        return
    click.echo(f"open: nothing is reaped ({breaker_text(breaker)})")
    if breaker.until is None or breaker.reason is BreakerReason.UNREADABLE:
        click.echo("it stays so until `election breaker close`")
