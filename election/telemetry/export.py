"""Where telemetry goes: to Prometheus over HTTP, to OTLP as the OTEL_* variables say, or to what a test gives."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, Self

from opentelemetry.exporter.otlp.proto.grpc.exporter import InvalidCompressionValueException
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, start_http_server

from election.clock import BootClock
from election.errors import ConfigError

logger = logging.getLogger("election")

CLOSE_S = 3.0
"""How long the last export may take."""


class Export:
    """A meter and a tracer, and the readers and processors that take from them what was recorded.

    It sets no global provider and has a Prometheus registry of its own, so one process can have several. What
    cannot be delivered is dropped by its exporter, which logs that; everything else goes on.
    """

    def __init__(
        self,
        metric_readers: Sequence[MetricReader] = (),
        span_processors: Sequence[SpanProcessor] = (),
        *,
        resource: Resource | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        # Readers are shut down in this order, and one that waits for its last export leaves no time to the next.
        readers = [endpoint.reader, *metric_readers] if endpoint else metric_readers
        self._meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in span_processors:
            self._tracers.add_span_processor(processor)
        self._endpoint = endpoint
        self.meter = self._meters.get_meter("election")
        self.tracer = self._tracers.get_tracer("election")

    @classmethod
    def from_environment(cls, service_name: str, *, metrics_host: str, metrics_port: int | None) -> Self:
        """What the OTEL_* variables ask for, and Prometheus when a port is given; see `Telemetry`."""
        # The variables win over the program's name for itself.
        resource = Resource.create({SERVICE_NAME: service_name}).merge(OTELResourceDetector().detect())
        readers: list[MetricReader] = []
        processors: list[SpanProcessor] = []
        with ExitStack() as undo:
            endpoint = None
            if metrics_port is not None:
                endpoint = Endpoint(metrics_host, metrics_port)
                undo.callback(endpoint.close)
            try:
                if _asks_for_otlp("METRICS"):
                    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
                    undo.callback(reader.shutdown)
                    readers.append(reader)
                if _asks_for_otlp("TRACES"):
                    processors.append(BatchSpanProcessor(OTLPSpanExporter()))
            except (ValueError, RuntimeError, InvalidCompressionValueException) as error:
                raise ConfigError(f"an OTEL_* variable cannot be used: {error}") from error
            undo.pop_all()
        return cls(readers, processors, resource=resource, endpoint=endpoint)

    @property
    def metrics_port(self) -> int | None:
        """The port on which Prometheus is served; None when it is not."""
        return self._endpoint.port if self._endpoint else None

    def close(self) -> None:
        """Exports what is left and ends everything; what is not done after CLOSE_S is left to daemon threads."""
        clock = BootClock()
        deadline_s = clock.now_s() + CLOSE_S
        ends = (
            threading.Thread(target=self._tracers.shutdown, daemon=True),
            threading.Thread(target=self._meters.shutdown, args=(CLOSE_S * 1000,), daemon=True),
        )
        for end in ends:
            end.start()
        if self._endpoint:
            self._endpoint.close()
        for end in ends:
            end.join(max(deadline_s - clock.now_s(), 0))
        if any(end.is_alive() for end in ends):
            logger.warning("the last telemetry was not exported within %g s, and may be lost", CLOSE_S)


class Endpoint:
    """Serves the metrics of one reader to Prometheus, in threads of its own. Any path will do."""

    def __init__(self, host: str, port: int) -> None:
        registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"metrics cannot be served on {host}:{port}: {reason}") from error
        self.port = self._server.server_port

    def close(self) -> None:
        """Takes no more requests and joins the server's thread, within half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _asks_for_otlp(signal: Literal["METRICS", "TRACES"]) -> bool:
    """Whether the OTEL_* variables ask for OTLP export of the signal; an empty variable is like none.

    The rules are those of OpenTelemetry's specification, save that an endpoint has to be named for OTLP to be on.
    `prometheus` is accepted among the exporters and changes nothing: the port is a setting of the program.

    Raises:
        ConfigError: for an exporter or a protocol that this project does not come with.
    """
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporters = {name.strip() for name in _variable(f"OTEL_{signal}_EXPORTER").split(",")} - {""}
    if unknown := exporters - {"otlp", "prometheus", "none"}:
        raise ConfigError(f"OTEL_{signal}_EXPORTER={min(unknown)} is not supported: use otlp or none")
    endpoint = _variable(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or _variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    asked = "otlp" in exporters if exporters else endpoint != ""
    protocol = _variable(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _variable("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if asked and protocol != "grpc":
        raise ConfigError(f"OTLP over {protocol} is not supported: set OTEL_EXPORTER_OTLP_PROTOCOL to grpc")
    return asked


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
