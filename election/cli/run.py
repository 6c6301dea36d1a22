"""The commands that run until a signal: campaign, serve, collect, agents join."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import click

from election.candidate import Candidate, Term, Transition
from election.cli.exits import LOST, OK
from election.cli.options import Settings, command, parse_labels, setting
from election.cli.output import print_json, print_line
from election.cli.signals import on_signal, until_signal
from election.collector import Collector, Reaped, ReapFailed, Recovered, Suspected
from election.config import AgentConfig, CandidateConfig, CollectorConfig
from election.errors import LossReason
from election.leadership import Campaigning, Leading, Leaving, Renewed
from election.server.serving import GrpcServer
from election.telemetry import Telemetry

_LABEL = click.option("--label", "labels", multiple=True, callback=parse_labels, metavar="NAME=VALUE")
_SECONDS = click.IntRange(min=1)


def default_id() -> str:
    """A name for this process: the host's name and the process id."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._") or "host"
    return f"{host[:100]}-{os.getpid()}"


@command("campaign")
@click.argument("name")
@setting("--id", "id", metavar="ID", help="this candidate's name [host-pid]")
@setting("--address", default="", metavar="HOST:PORT", help="where it can be reached")
@setting("--ttl", type=_SECONDS, default=CandidateConfig.ttl_s, show_default=True, help="lease TTL, seconds")
@setting("--priority", type=int, default=0, show_default=True, help="shown to readers")
@_LABEL
@click.option("--once", is_flag=True, help="exit with 4 after the first loss, instead of standing again")
def campaign(
    settings: Settings,
    name: str,
    id: str | None,
    address: str,
    ttl: int,
    priority: int,
    labels: dict[str, str],
    once: bool,
) -> int:
    """Stand for the election NAME and hold the leadership until a signal.

    SIGINT and SIGTERM resign and exit with 0. Prints an event for each change.
    """
    config = CandidateConfig(ttl_s=ttl)

    async def run() -> int:
        async with settings.store() as store:
            candidate = store.candidate(
                name, id=id or default_id(), address=address, labels=labels, priority=priority, config=config
            )
            printing = asyncio.create_task(_print_campaign(settings, candidate))
            signalled = asyncio.Event()

            def leave() -> None:
                signalled.set()
                candidate.leave(LossReason.RESIGNED)

            try:
                with on_signal(leave):
                    await candidate.lead(_hold, once=once)
            finally:
                await asyncio.sleep(0)  # lets the last event be printed
                printing.cancel()
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
    settings: Settings, candidate: Candidate, event: str, token: int | None, reason: LossReason | None
) -> None:
    if settings.json:
        print_json(
            {
                "event": event,
                "election": candidate.election,
                "id": candidate.id,
                "token": token,
                "reason": reason.value if reason else None,
            }
        )
        return
    details = "".join((f", token {token}" if token else "", f", {reason.value}" if reason else ""))
    print_line(f"{candidate.id} in {candidate.election}: {event}{details}")


@command("collect")
@setting("--id", "id", metavar="ID", help="this collector's name [host-pid]")
@setting("--grace", type=click.FloatRange(min=0), default=CollectorConfig.grace_s, show_default=True, help="seconds")
def collect(settings: Settings, id: str | None, grace: float) -> int:
    """Collect what agents leave behind when their leases end, until a signal. One of all collectors works."""
    config = CollectorConfig(grace_s=grace)

    async def run() -> int:
        async with settings.store() as store:
            collector = store.collector(id=id or default_id(), config=config)
            printing = asyncio.create_task(_print_collector(settings, collector))
            try:
                with on_signal(collector.leave):
                    await collector.run()
            finally:
                printing.cancel()
            return OK

    return asyncio.run(run())


async def _print_collector(settings: Settings, collector: Collector) -> None:
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
                    _print_event(settings, event, id=collector.candidate.id)


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
                    _print_event(settings, "suspected", agent=agent, grace_s=grace_s)
                case Recovered(agent):
                    _print_event(settings, "recovered", agent=agent)
                case Reaped(tombstone):
                    _print_event(
                        settings,
                        "reaped",
                        agent=tombstone.agent,
                        incarnation=tombstone.incarnation,
                        token=tombstone.token,
                        collected=[entry.key for entry in tombstone.collected],
                    )
                case ReapFailed(agent, error):
                    _print_event(settings, "reap_failed", agent=agent, error=error)


def _print_event(settings: Settings, event: str, **fields: object) -> None:
    if settings.json:
        print_json({"event": event, **fields})
    else:
        print_line(f"{event:10} " + " ".join(f"{name}={value}" for name, value in fields.items()))


@command("join")
@click.argument("id")
@setting("--ttl", type=_SECONDS, default=AgentConfig.ttl_s, show_default=True, help="lease TTL, seconds")
@setting("--address", default="", metavar="HOST:PORT", help="where it can be reached")
@_LABEL
def agents_join(settings: Settings, id: str, ttl: int, address: str, labels: dict[str, str]) -> int:
    """Be the agent ID until a signal: register, and keep the lease alive."""
    config = AgentConfig(ttl_s=ttl)

    async def run() -> None:
        incarnation = None
        async with settings.store() as store, store.agent(id, address=address, labels=labels, config=config) as agent:
            try:
                async with aclosing(agent.registrations()) as registrations:
                    async for registration in registrations:
                        if registration is None:
                            _print_event(settings, "lost", id=id, incarnation=incarnation)
                        elif registration.incarnation != incarnation:
                            _print_event(
                                settings,
                                "joined",
                                id=id,
                                incarnation=registration.incarnation,
                                lease=registration.lease,
                            )
                        incarnation = registration.incarnation if registration else None
            finally:
                _print_event(settings, "left", id=id, incarnation=incarnation)

    return asyncio.run(until_signal(run()))


@command("serve")
@setting("--grpc-host", default="127.0.0.1", show_default=True, help="address of the gRPC API")
@setting("--grpc-port", type=click.IntRange(0, 65535), default=50051, show_default=True, help="0: a free one")
@setting("--server-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TLS of the gRPC API")
@setting("--server-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="its private key")
@setting("--insecure", is_flag=True, help="serve plain text on other addresses than loopback")
@setting("--collect/--no-collect", default=True, show_default=True, help="stand as a collector of stale agents")
@setting("--grace", type=click.FloatRange(min=0), default=CollectorConfig.grace_s, show_default=True, help="seconds")
@setting("--id", "id", metavar="ID", help="this collector's name [host-pid]")
@setting("--metrics-host", default="127.0.0.1", show_default=True, help="address of the Prometheus endpoint")
@setting("--metrics-port", type=click.IntRange(0, 65535), help="Prometheus endpoint; 0: a free port [none]")
def serve(
    settings: Settings,
    grpc_host: str,
    grpc_port: int,
    server_cert: Path | None,
    server_key: Path | None,
    insecure: bool,
    collect: bool,
    grace: float,
    id: str | None,
    metrics_host: str,
    metrics_port: int | None,
) -> int:
    """Answer over gRPC who leads and which agents are there, until a signal; and collect stale agents."""
    config = CollectorConfig(grace_s=grace)

    async def run() -> int:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(settings.store())
            telemetry = Telemetry.from_environment(metrics_host=metrics_host, metrics_port=metrics_port)
            stack.callback(telemetry.close)
            view = await stack.enter_async_context(store.view())
            server = GrpcServer(view, grpc_host, grpc_port, server_cert, server_key, insecure)
            await stack.enter_async_context(server)
            left = asyncio.Event()
            collector = store.collector(id=id or default_id(), config=config) if collect else None

            def leave() -> None:
                left.set()
                if collector is not None:
                    collector.leave()

            with on_signal(leave):
                async with asyncio.TaskGroup() as group:
                    observers = [group.create_task(telemetry.watch_view(view))]
                    _print_event(
                        settings, "serving", grpc=server.address, metrics_port=telemetry.metrics_port, collect=collect
                    )
                    if collector is not None:
                        observers.append(group.create_task(telemetry.watch_collector(collector)))
                        observers.append(group.create_task(_print_collector(settings, collector)))
                        group.create_task(collector.run())
                    await left.wait()
                    for observer in observers:
                        observer.cancel()
        return OK

    return asyncio.run(run())
