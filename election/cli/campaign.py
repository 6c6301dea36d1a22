"""The command `campaign`: stands for an election until a signal."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import click

from election.candidate import Candidate
from election.cli.aside import aside
from election.cli.exits import LOST, OK
from election.cli.metrics import metrics_options, telemetry
from election.cli.options import Settings, command, labels_option, setting, state_dir_option, ttl_seconds
from election.cli.output import print_json, print_line
from election.cli.signals import on_signal
from election.config import CandidateConfig, default_id
from election.errors import LossReason
from election.leadership import Campaigning, Leading, Leaving, Renewed
from election.term import Term
from election.token import Token

_PRIORITY = click.IntRange(-(2**31), 2**31 - 1)


@command("campaign")
@click.argument("name")
@setting("--id", "id", metavar="ID", help="this candidate's name [host-pid]")
@setting("--address", default="", metavar="HOST:PORT", help="where it can be reached")
@setting("--ttl", type=ttl_seconds, default=CandidateConfig().ttl_s, show_default=True, help="lease TTL, seconds")
@setting("--priority", type=_PRIORITY, default=0, show_default=True, help="shown to readers")
@labels_option
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
