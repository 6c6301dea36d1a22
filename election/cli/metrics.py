"""Metrics and traces of a command: only where somebody asks for them, so that the extra is not needed otherwise."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from election.cli.options import setting
from election.config import is_loopback
from election.errors import ConfigError

if TYPE_CHECKING:
    from election.telemetry import Telemetry

F = TypeVar("F", bound=Callable[..., Any])


def metrics_options(function: F) -> F:
    """Adds `--metrics-host`, `--metrics-port` and `--insecure`."""
    for option in (
        setting("--insecure", is_flag=True, help="serve plain text on other addresses than loopback"),
        setting("--metrics-port", type=click.IntRange(0, 65535), help="Prometheus endpoint; 0: a free port [none]"),
        setting("--metrics-host", default="127.0.0.1", show_default=True, help="its address"),
    ):
        function = option(function)
    return function


@asynccontextmanager
async def telemetry(host: str, port: int | None, insecure: bool) -> AsyncGenerator[Telemetry | None]:
    """Telemetry when a port is given or an OTEL_EXPORTER_* variable is set; else None.

    Raises:
        ConfigError: when the port cannot be listened on, would be open to others without `insecure`, or a variable
            cannot be used.
    """
    if port is not None and not insecure and not is_loopback(host):
        raise ConfigError(f"metrics on {host} are plain HTTP, which is safe on loopback only: or say --insecure")
    if port is None and not any(name.startswith("OTEL_") and "EXPORTER" in name for name in os.environ):
        yield None
        return
    from election.telemetry import Telemetry

    async with Telemetry.from_environment(metrics_host=host, metrics_port=port) as recording:
        yield recording
