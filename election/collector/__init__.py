"""Collects what agents leave behind when their leases end: once, and never from a living agent."""

from election.collector.collector import Collector
from election.collector.events import (
    BreakerClosed,
    BreakerOpened,
    CollectorEvent,
    Foreign,
    Reaped,
    ReapFailed,
    Recovered,
    Suspected,
    WouldReap,
)

__all__ = [
    "BreakerClosed",
    "BreakerOpened",
    "Collector",
    "CollectorEvent",
    "Foreign",
    "ReapFailed",
    "Reaped",
    "Recovered",
    "Suspected",
    "WouldReap",
]
