"""The front door of telemetry: what to watch, and where to export it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from election.clock import BootClock, Clock
from election.telemetry.export import Export
from election.telemetry.fleet import Fleet, Showing
from election.telemetry.reaps import Collecting, Reaps
from election.telemetry.terms import Standing, Terms


class Telemetry:
    """Records what is watched with it, and exports that until `close`, or until the end of `async with`."""

    def __init__(self, export: Export, *, clock: Clock | None = None) -> None:
        clock = clock or BootClock()
        self._export = export
        self._terms = Terms(export.meter, export.tracer, clock)
        self._reaps = Reaps(export.meter, export.tracer, clock)
        self._fleet = Fleet(export.meter, clock)

    @classmethod
    def from_environment(
        cls, *, service_name: str = "election", metrics_host: str = "127.0.0.1", metrics_port: int | None = None
    ) -> Self:
        """Exports to where the OTEL_* variables say, and serves Prometheus when a port is given (0: any free one).

        OTLP goes over gRPC, and only where an OTLP endpoint or the exporter `otlp` is named. `service_name` is
        used where the variables name no service. With OTEL_SDK_DISABLED=true nothing is recorded, and what
        Prometheus gets is empty.

        Raises:
            ConfigError: when the port cannot be listened on, or a variable cannot be used.
        """
        return cls(Export.from_environment(service_name, metrics_host=metrics_host, metrics_port=metrics_port))

    @property
    def metrics_port(self) -> int | None:
        """The port on which Prometheus is served; None when it is not."""
        return self._export.metrics_port

    def close(self) -> None:
        """Ends the HTTP server, and exports what is left; blocks for at most about 3 s, whoever does not answer."""
        self._export.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def watch_candidate(self, candidate: Standing) -> None:
        """Records a candidate's terms, losses, renewals and failed attempts, until cancelled.

        Begin it before `lead`: a term that is under way counts from the beginning of the watch. Cancel it after
        `lead` has returned: a term that is still under way ends in the trace then, and its reason is not known.
        """
        await self._terms.watch(candidate)

    async def watch_collector(self, collector: Collecting) -> None:
        """Records a collector's reaps, and how it stands as a candidate, until cancelled; likewise around `run`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._terms.watch(collector.candidate))
            group.create_task(self._reaps.watch(collector))

    async def watch_view(self, view: Showing, *elections: str) -> None:
        """Shows what a view has in memory, until cancelled; one view at a time.

        The elections named are shown, also while nobody stands for them; where none is named, those that somebody
        stands for. While the view is stale, only its age is shown.
        """
        await self._fleet.watch(view, elections)
