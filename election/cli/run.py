"""The commands that take part until a signal: campaign, collect, agents join."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import click

from election.candidate import Candidate
from election.cli.aside import aside
from election.cli.exits import LOST, OK
from election.cli.metrics import metrics_options, telemetry
from election.cli.options import Settings, command, parse_labels, setting, state_dir_option
from election.cli.output import print_event, print_json, print_line
from election.cli.signals import on_signal, until_signal
from election.collector import Collector, Reaped, ReapFailed, Recovered, Suspected
from election.config import LONGEST_TTL_S, AgentConfig, CandidateConfig, CollectorConfig, default_id
from election.errors import LossReason
from election.leadership import Campaigning, Leading, Leaving, Renewed
from election.machine import Transition
from election.term import Term
from election.token import Token

_LABEL = setting(
    "--label", "labels", multiple=True, callback=parse_labels, metavar="NAME=VALUE", help="shown to readers; repeatable"
)
_SECONDS = click.IntRange(1, LONGEST_TTL_S)
_PRIORITY = click.IntRange(-(2**31), 2**31 - 1)


@command("campaign")
@click.argument("name")
@setting("--id", "id", metavar="ID", help="this candidate's name [host-pid]")
@setting("--address", default="", metavar="HOST:PORT", help="where it can be reached")
@setting("--ttl", type=_SECONDS, default=CandidateConfig().ttl_s, show_default=True, help="lease TTL, seconds")
@setting("--priority", type=_PRIORITY, default=0, show_default=True, help="shown to readers")
@_LABEL
@metrics_options
@state_dir_option
@setting("--once", is_flag=True, help="exit with 4 after the first loss, instead of standing again")
def campaign(
    settings: Settings,
    name: str,
    id: str | None,
    address: str,
    ttl: int,
    priority: int,
    labels: dict[str, str],
    state_dir: Path | None,
    once: bool,
    metrics_host: str,
    metrics_port: int | None,
    insecure: bool,
) -> int:
    """Stand for the election NAME and hold the leadership until a signal.

    SIGINT and SIGTERM resign and exit with 0. Prints an event for each change.
    """
    config = CandidateConfig(ttl_s=ttl)

    async def run() -> int:
        async with settings.store(state_dir) as store:
            candidate = store.candidate(
                name, id=id or default_id(), address=address, labels=labels, priority=priority, config=config
            )
            signalled = asyncio.Event()

            def leave() -> None:
                signalled.set()
                candidate.leave(LossReason.RESIGNED)

            async with (
                telemetry(metrics_host, metrics_port, insecure) as recording,
                aside(
                    _print_campaign(settings, candidate),
                    recording.watch_candidate(candidate) if recording else None,
                ),
            ):
                with on_signal(leave):
                    await candidate.lead(_hold, once=once)
            _print_campaign_event(settings, candidate, "closed", None, None)
            return OK if signalled.is_set() else LOST

    return asyncio.run(run())


async def _hold(_: Term) -> None:
    """The work of `campaign`: to be the leader."""
    await asyncio.Event().wait()


async def _print_campaign(settings: Settings, candidate: Candidate) -> None:
    before = candidate.state
    async with aclosing(candidate.transitions()) as transitions:
        async for transition in transitions:
            if isinstance(transition.event, Renewed) or type(transition.state) is type(before):
                continue
            before = transition.state
            match before:
                case Campaigning():
                    _print_campaign_event(settings, candidate, "campaigning", None, None)
                case Leading(token=token):
                    _print_campaign_event(settings, candidate, "elected", token, None)
                case Leaving(token=token, reason=reason) if token:
                    _print_campaign_event(settings, candidate, "lost", token, reason)


def _print_campaign_event(
    settings: Settings, candidate: Candidate, event: str, token: Token | None, reason: LossReason | None
) -> None:
    if settings.json:
        print_json(
            {
                "event": event,
                "election": candidate.election,
                "id": candidate.id,
                "token": str(token) if token else None,
                "reason": reason.value if reason else None,
            }
        )
        return
    details = "".join((f", token {token}" if token else "", f", {reason.value}" if reason else ""))
    print_line(f"{candidate.id} in {candidate.election}: {event}{details}")


@command("collect")
@setting("--id", "id", metavar="ID", help="this collector's name [host-pid]")
@setting("--grace", type=click.FloatRange(min=0), default=CollectorConfig().grace_s, show_default=True, help="seconds")
@state_dir_option
@metrics_options
def collect(
    settings: Settings,
    id: str | None,
    grace: float,
    state_dir: Path | None,
    metrics_host: str,
    metrics_port: int | None,
    insecure: bool,
) -> int:
    """Collect what agents leave behind when their leases end, until a signal. One of all collectors works."""
    config = CollectorConfig(grace_s=grace)

    async def run() -> int:
        async with settings.store(state_dir) as store:
            collector = store.collector(id=id or default_id(), config=config)
            async with (
                telemetry(metrics_host, metrics_port, insecure) as recording,
                aside(
                    print_collector(settings, collector),
                    recording.watch_collector(collector) if recording else None,
                ),
            ):
                with on_signal(collector.leave):
                    await collector.run()
            return OK

    return asyncio.run(run())


async def print_collector(settings: Settings, collector: Collector) -> None:
    """Prints what a collector does, and how it stands, until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_print_collecting(settings, collector))
        group.create_task(_print_standing(settings, collector))


async def _print_standing(settings: Settings, collector: Collector) -> None:
    state = None
    async with aclosing(collector.transitions()) as transitions:
        async for transition in transitions:
            if type(transition.state) is not state:
                state = type(transition.state)
                if event := _collector_event(transition):
                    print_event(settings.json, event, id=collector.candidate.id)


def _collector_event(transition: Transition) -> str | None:
    match transition.state:
        case Campaigning():
            return "waiting"
        case Leading():
            return "collecting"
        case Leaving(token=token) if token:
            return "stopped"
    return None


async def _print_collecting(settings: Settings, collector: Collector) -> None:
    async with aclosing(collector.events()) as events:
        async for event in events:
            match event:
                case Suspected(agent, grace_s):
                    print_event(settings.json, "suspected", agent=agent, grace_s=grace_s)
                case Recovered(agent):
                    print_event(settings.json, "recovered", agent=agent)
                case Reaped(tombstone):
                    print_event(
                        settings.json,
                        "reaped",
                        agent=tombstone.agent,
                        incarnation=tombstone.incarnation,
                        token=str(tombstone.token),
                        collected=[entry.key for entry in tombstone.collected],
                    )
                case ReapFailed(agent, error):
                    print_event(settings.json, "reap_failed", agent=agent, error=error)


@command("join")
@click.argument("id")
@setting("--ttl", type=_SECONDS, default=AgentConfig().ttl_s, show_default=True, help="lease TTL, seconds")
@setting("--address", default="", metavar="HOST:PORT", help="where it can be reached")
@_LABEL
def agents_join(settings: Settings, id: str, ttl: int, address: str, labels: dict[str, str]) -> int:
    """Be the agent ID until a signal: register, and keep the lease alive."""
    config = AgentConfig(ttl_s=ttl)

    async def run() -> None:
        seen = None
        try:
            async with (
                settings.store() as store,
                store.agent(id, address=address, labels=labels, config=config) as agent,
                aclosing(agent.registrations()) as registrations,
            ):
                async for registration in registrations:
                    if registration is None:
                        print_event(settings.json, "lost", id=id, incarnation=seen)
                    else:
                        seen, lease = registration.incarnation, registration.lease
                        print_event(settings.json, "joined", id=id, incarnation=seen, lease=lease)
        finally:
            if seen is not None:
                print_event(settings.json, "left", id=id, incarnation=seen)

    return asyncio.run(until_signal(run()))
