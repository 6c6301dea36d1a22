"""Metrics and traces of a command: only where somebody asks for them, so that the extra is not needed otherwise."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from election.cli.options import setting

if TYPE_CHECKING:
    from election.telemetry import Telemetry

F = TypeVar("F", bound=Callable[..., Any])


def metrics_options(function: F) -> F:
    """Adds `--metrics-host` and `--metrics-port`."""
    for option in (
        setting("--metrics-port", type=click.IntRange(0, 65535), help="Prometheus endpoint; 0: a free port [none]"),
        setting("--metrics-host", default="127.0.0.1", show_default=True, help="its address"),
    ):
        function = option(function)
    return function


@asynccontextmanager
async def telemetry(host: str, port: int | None) -> AsyncGenerator[Telemetry | None]:
    """Telemetry when a port is given or an OTEL_EXPORTER_* variable is set; else None.

    Raises:
        ConfigError: when the port cannot be listened on, or a variable cannot be used.
    """
    if port is None and not any(name.startswith("OTEL_") and "EXPORTER" in name for name in os.environ):
        yield None
        return
    from election.telemetry import Telemetry

    async with Telemetry.from_environment(metrics_host=host, metrics_port=port) as recording:
        yield recording
