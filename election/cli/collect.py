"""The command `collect`, and what it shares with `serve`: how a collector's events are told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from election.agent_records import Tombstone
from election.breaker import Breaker
from election.cli.agent_documents import breaker_document, names_text
from election.cli.aside import aside
from election.cli.breaker import breaker_text
from election.cli.collector_options import collector_options
from election.cli.exits import OK
from election.cli.metrics import metrics_options, telemetry
from election.cli.options import Settings, command, setting, state_dir_option
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
from election.config import CollectorConfig, default_id
from election.leadership import Campaigning, Leading, Leaving
from election.machine import Transition
from election.published import TooSlow


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
