"""The command `agents join`, and what it shares with `agents run`: how an agent registers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

import click

from election.cli.options import Settings, command, labels_option, setting, ttl_seconds
from election.cli.output import print_event
from election.cli.signals import until_signal
from election.config import AgentConfig

F = TypeVar("F", bound=Callable[..., Any])


def agent_options(function: F) -> F:
    """Adds the options with which an agent registers."""
    for option in (
        setting(
            "--drop-state", is_flag=True, help="delete its state when it leaves, rather than keep it for a collector"
        ),
        setting("--takeover", is_flag=True, help="end the life of another holder of the id"),
        labels_option,
        setting("--address", default="", metavar="HOST:PORT", help="where it can be reached"),
        setting("--ttl", type=ttl_seconds, default=AgentConfig().ttl_s, show_default=True, help="lease TTL, seconds"),
    ):
        function = option(function)
    return function


@command("join")
@click.argument("id")
@agent_options
def agents_join(
    settings: Settings, id: str, ttl: int, address: str, labels: dict[str, str], takeover: bool, drop_state: bool
) -> int:
    """Be the agent ID until a signal.

    Registers, keeps the lease alive, and registers again after a loss.
    """
    config = AgentConfig(ttl_s=ttl, keep_state=not drop_state)

    async def run() -> None:
        seen = None
        try:
            async with (
                settings.store() as store,
                store.agent(id, address=address, labels=labels, config=config, takeover=takeover) as agent,
                aclosing(agent.registrations()) as registrations,
            ):
                async for registration in registrations:
                    if registration is None:
                        print_event(settings.json, "lost", id=id, incarnation=seen)
                    elif registration.incarnation != seen:
                        seen, lease = registration.incarnation, registration.lease
                        print_event(settings.json, "joined", id=id, incarnation=seen, lease=lease)
        finally:
            if seen is not None:
                print_event(settings.json, "left", id=id, incarnation=seen)

    return asyncio.run(until_signal(run()))
