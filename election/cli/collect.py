"""The command `collect`, and what it shares with `serve`: the collector's options, and how its events are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import click

from election.cli.agent_documents import breaker_document, names_text
from election.cli.aside import aside
from election.cli.breaker import breaker_text
from election.cli.exits import OK
from election.cli.metrics import metrics_options, telemetry
from election.cli.options import Settings, command, more_than_zero, setting, state_dir_option
from election.cli.output import print_event, print_json, print_line
from election.cli.signals import on_signal
from election.collector import (
    BreakerClosed,
    BreakerOpened,
    Collector,
    CollectorEvent,
    Foreign,
    Reaped,
    ReapFailed,
    Recovered,
    Suspected,
    WouldReap,
)
from election.config import BreakerConfig, CollectorConfig, default_id
from election.leadership import Campaigning, Leading, Leaving
from election.machine import Transition
from election.published import TooSlow
from election.records import Breaker, Tombstone

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT, _BREAKER = CollectorConfig(), BreakerConfig()


def collector_options(function: F) -> F:
    """Adds the options of a collector; the command gets them together, as `collector_config`."""
    function = _given_together(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    setting("--id", "id", metavar="ID", help="this collector's name [host-pid]"),
    setting(
        "--grace",
        type=click.FloatRange(min=0),
        default=_DEFAULT.grace_s,
        show_default=True,
        metavar="S",
        help="from when an agent vanishes until it is reaped, seconds",
    ),
    setting(
        "--reconcile",
        type=float,
        callback=more_than_zero,
        default=_DEFAULT.reconcile_s,
        show_default=True,
        metavar="S",
        help="how often everything is listed and compared, seconds",
    ),
    setting(
        "--retention",
        type=click.IntRange(1, 10**9),
        default=_DEFAULT.retention_s,
        show_default=True,
        metavar="S",
        help="how long a tombstone stays, seconds",
    ),
    setting(
        "--rate",
        type=float,
        callback=more_than_zero,
        metavar="N",
        help="the most agents to reap in a second [no limit]",
    ),
    setting(
        "--breaker-agents",
        type=click.IntRange(1, 10**9),
        default=_BREAKER.agents,
        show_default=True,
        metavar="N",
        help="nothing is reaped when so many agents vanish within a grace",
    ),
    setting(
        "--breaker-share",
        type=click.FloatRange(0, 1, min_open=True),
        default=_BREAKER.share,
        show_default=True,
        metavar="X",
        help="and are this share of all",
    ),
    setting(
        "--breaker-hold",
        type=float,
        callback=more_than_zero,
        default=_BREAKER.hold_s,
        show_default=True,
        metavar="S",
        help="until they are back, or for so long, seconds",
    ),
    setting("--no-breaker", is_flag=True, help="reap however many vanish at once"),
)


def _given_together(function: F) -> F:
    def run(
        *arguments: Any,
        grace: float,
        reconcile: float,
        retention: int,
        rate: float | None,
        breaker_agents: int,
        breaker_share: float,
        breaker_hold: float,
        no_breaker: bool,
        **options: Any,
    ) -> Any:
        config = CollectorConfig(
            grace_s=grace,
            reconcile_s=reconcile,
            retention_s=retention,
            rate_per_s=rate,
            breaker=None if no_breaker else BreakerConfig(breaker_agents, breaker_share, breaker_hold),
        )
        return function(*arguments, collector_config=config, **options)

    run.__doc__ = function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


@command("collect")
@collector_options
@setting("--once", is_flag=True, help="end when those who are missing now are reaped, or cannot be")
@setting("--dry-run", is_flag=True, help="tell what would be reaped; stand for nothing and write nothing")
@state_dir_option
@metrics_options
def collect(
    settings: Settings,
    id: str | None,
    collector_config: CollectorConfig,
    once: bool,
    dry_run: bool,
    state_dir: Path | None,
    metrics_host: str,
    metrics_port: int | None,
    insecure: bool,
) -> int:
    """Collect what dead agents leave behind, until a signal.

    Run as many as you like: one of them works. What it collects is kept in tombstones.
    """

    async def run() -> int:
        async with settings.store(state_dir) as store:
            collector = store.collector(id=id or default_id(), config=collector_config)
            async with (
                telemetry(metrics_host, metrics_port, insecure) as recording,
                aside(
                    print_collector(settings, collector),
                    recording.watch_collector(collector) if recording else None,
                ),
            ):
                with on_signal(collector.leave):
                    await (collector.rehearse(once=once) if dry_run else collector.run(once=once))
            return OK

    return asyncio.run(run())


async def print_collector(settings: Settings, collector: Collector) -> None:
    """Prints what a collector does, and how it stands, until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_print_events(settings, collector))
        group.create_task(_print_standing(settings, collector))


async def _print_standing(settings: Settings, collector: Collector) -> None:
    state = None
    async with aclosing(collector.transitions()) as transitions:
        async for transition in transitions:
            if type(transition.state) is not state:
                state = type(transition.state)
                if event := _standing(transition):
                    print_event(settings.json, event, id=collector.candidate.id)


def _standing(transition: Transition) -> str | None:
    match transition.state:
        case Campaigning():
            return "waiting"
        case Leading():
            return "collecting"
        case Leaving(token=token) if token:
            return "stopped"
    return None


async def _print_events(settings: Settings, collector: Collector) -> None:
    """Thousands of agents that vanish at once are more than waits to be printed: what is left out is said."""
    while True:
        try:
            async with aclosing(collector.events()) as events:
                async for event in events:
                    if event is not None:
                        _print_event(settings, event)
        except TooSlow as error:
            print_event(settings.json, "skipped", error=f"some events are not told: {error}")


def _print_event(settings: Settings, event: CollectorEvent) -> None:
    match event:
        case Suspected(agent, grace_s):
            print_event(settings.json, "suspected", agent=agent, grace_s=grace_s)
        case Recovered(agent):
            print_event(settings.json, "recovered", agent=agent)
        case Reaped(tombstone):
            _print_tombstone(settings, "reaped", tombstone)
        case WouldReap(tombstone):
            _print_tombstone(settings, "would_reap", tombstone)
        case ReapFailed(agent, error):
            print_event(settings.json, "reap_failed", agent=agent, error=error)
        case BreakerOpened(breaker):
            _print_breaker(settings, "breaker_opened", breaker)
        case BreakerClosed(breaker):
            _print_breaker(settings, "breaker_closed", breaker)
        case Foreign(keys):
            print_event(settings.json, "foreign", keys=keys if settings.json else names_text(keys))


def _print_tombstone(settings: Settings, name: str, tombstone: Tombstone) -> None:
    keys = tuple(entry.key for entry in tombstone.collected)
    print_event(
        settings.json,
        name,
        agent=tombstone.agent,
        incarnation=tombstone.incarnation,
        part=tombstone.part,
        token=str(tombstone.token),
        collected=keys if settings.json else names_text(keys),
    )


def _print_breaker(settings: Settings, name: str, breaker: Breaker) -> None:
    if settings.json:
        print_json({"event": name, **breaker_document(breaker)})
    else:
        print_line(f"{name}: {breaker_text(breaker)}")
