"""The command `serve`: the gRPC API, the collector and the metrics, in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import click

from election.cli.access_options import access_options
from election.cli.aside import aside
from election.cli.collect import print_collector
from election.cli.collector_options import collector_options
from election.cli.exits import OK
from election.cli.metrics import metrics_options, telemetry
from election.cli.options import FILE, Settings, command, setting, state_dir_option
from election.cli.output import print_event
from election.cli.signals import on_signal
from election.collector import Collector
from election.config import CollectorConfig, default_id
from election.errors import EtcdError
from election.server.access.gate import AccessConfig
from election.server.serving import GrpcServer, spare_what_is_there

logger = logging.getLogger("election")

_RETRY_S = 5.0


@command("serve")
@setting("--grpc-host", default="127.0.0.1", show_default=True, help="address of the gRPC API")
@setting("--grpc-port", type=click.IntRange(0, 65535), default=50051, show_default=True, help="0: a free one")
@setting("--server-cert", type=FILE, help="TLS of the gRPC API")
@setting("--server-key", type=FILE, help="its private key")
@setting("--client-ca", type=FILE, help="every caller needs a certificate of this authority")
@access_options
@setting("--collect/--no-collect", default=True, show_default=True, help="stand as a collector of stale agents")
@collector_options
@state_dir_option
@metrics_options
def serve(
    settings: Settings,
    grpc_host: str,
    grpc_port: int,
    server_cert: Path | None,
    server_key: Path | None,
    client_ca: Path | None,
    access: AccessConfig,
    insecure: bool,
    collect: bool,
    id: str | None,
    collector_config: CollectorConfig,
    state_dir: Path | None,
    metrics_host: str,
    metrics_port: int | None,
) -> int:
    """Answer over gRPC, and collect stale agents, until a signal."""
    logging.getLogger("election.audit").setLevel(logging.INFO)

    async def run() -> int:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(settings.store(state_dir))
            recording = await stack.enter_async_context(telemetry(metrics_host, metrics_port, insecure))
            view = await stack.enter_async_context(store.view())
            server = GrpcServer(
                view,
                grpc_host,
                grpc_port,
                server_cert,
                server_key,
                insecure,
                store=store,
                client_ca=client_ca,
                access=access,
            )
            await stack.enter_async_context(server)
            spare_what_is_there()
            if server.without_policy:
                click.echo(f"There is no policy: {server.without_policy}.", err=True)
            print_event(
                settings.json,
                "serving",
                grpc=server.address,
                metrics_port=recording.metrics_port if recording else None,
                collect=collect,
            )
            left = asyncio.Event()
            stack.enter_context(on_signal(left.set))
            await stack.enter_async_context(aside(recording.watch_view(view) if recording else None))
            if collect:
                collector = store.collector(id=id or default_id(), config=collector_config)
                await stack.enter_async_context(
                    aside(
                        print_collector(settings, collector),
                        recording.watch_collector(collector) if recording else None,
                    )
                )
                await stack.enter_async_context(_collecting(collector, left))
            await left.wait()
        return OK

    return asyncio.run(run())


@asynccontextmanager
async def _collecting(collector: Collector, left: asyncio.Event) -> AsyncGenerator[None]:
    """Collects beside the API, which goes on answering also while etcd lets nobody campaign."""
    running = asyncio.create_task(_collect(collector, left))
    try:
        yield
    finally:
        collector.leave()
        await asyncio.wait({running})
        running.result()


async def _collect(collector: Collector, left: asyncio.Event) -> None:
    while not left.is_set():
        try:
            await collector.run()
        except EtcdError as error:
            logger.warning("the collector cannot stand yet: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S):
                    await left.wait()
