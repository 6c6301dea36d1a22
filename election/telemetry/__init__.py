"""Metrics and traces: the only importer of OpenTelemetry, which the extra `telemetry` installs.

It only reads: the transitions and events that anybody may iterate over, and the read model. Nothing that it watches
waits for an exporter.
"""

from election.telemetry.export import Export
from election.telemetry.telemetry import Telemetry

__all__ = ["Export", "Telemetry"]
