"""What a collector tells of its work."""

from __future__ import annotations

from dataclasses import dataclass

from election.agent_records import Tombstone
from election.breaker import Breaker


@dataclass(frozen=True, slots=True)
class Suspected:
    """An agent's liveness key is gone; it is reaped in `grace_s` seconds unless it comes back."""

    agent: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """A suspect is alive again; nothing of it was touched."""

    agent: str


@dataclass(frozen=True, slots=True)
class Reaped:
    """An agent's state was collected, or a part of it where it is too large for one transaction."""

    tombstone: Tombstone


@dataclass(frozen=True, slots=True)
class WouldReap:
    """What a dry run would have collected; the tombstone is that of a reap that did not happen."""

    tombstone: Tombstone


@dataclass(frozen=True, slots=True)
class ReapFailed:
    """An agent's state could not be collected, and is still there; it is tried again later."""

    agent: str
    error: str


@dataclass(frozen=True, slots=True)
class BreakerOpened:
    """Nothing is reaped from now on."""

    breaker: Breaker


@dataclass(frozen=True, slots=True)
class BreakerClosed:
    """Suspects are reaped again."""

    breaker: Breaker


@dataclass(frozen=True, slots=True)
class Foreign:
    """Keys between those of the agents that this project did not make; nobody touches them."""

    keys: tuple[str, ...]


CollectorEvent = Suspected | Recovered | Reaped | WouldReap | ReapFailed | BreakerOpened | BreakerClosed | Foreign
