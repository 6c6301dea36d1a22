"""Where one fault is done: the system, and what is noted about the fault."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from election.drill.faults.fault import Fault, Lane
from election.drill.site import Site
from election.drill.system import System
from election.drill.vocabulary import Done
from election.keys import Keyspace


@dataclass
class Tally:
    """The faults of one drill: how many there have been, and which of those that hurt more than processes last."""

    injected: int = 0
    lasting: set[int] = field(default_factory=set)


@dataclass
class Scene:
    """That of one fault; see `Stage`. `number` is the fault's among those of the drill, 0 until it is injected."""

    system: System
    fault: Fault[Any]
    rng: random.Random
    tally: Tally
    number: int = field(default=0, init=False)

    @property
    def site(self) -> Site:
        """Etcd and its links."""
        return self.system.site

    @property
    def keyspace(self) -> Keyspace:
        """Of the namespace that is hurt."""
        return self.system.keyspace

    @property
    def election(self) -> str:
        """The election that the orchestrators stand for."""
        return self.system.settings.election

    @property
    def observed(self) -> int:
        """The last revision that was written down."""
        return self.system.observer.revision

    def on(self, who: str) -> None:
        """Notes that the fault begins, and on whom."""
        self.tally.injected += 1
        self.number = self.tally.injected
        self.note(Done.INJECTED, who, number=self.number, fault=self.fault.name)
        if self.fault.lane in (Lane.ETCD, Lane.CLIENTS):
            self.tally.lasting.add(self.number)
            self.note(Done.DISTURBED, who, how=self.fault.name, unwell=True)

    def harmed(self) -> None:
        """Notes that the fault is in effect."""
        self.note(Done.HARMED, number=self.number)

    def healing(self) -> None:
        """Notes that it is about to be taken back."""
        self.note(Done.HEALING, number=self.number)

    def healed(self) -> None:
        """Notes that it was taken back."""
        self.note(Done.HEALED, number=self.number)
        if self.fault.lane in (Lane.ETCD, Lane.CLIENTS):
            self.tally.lasting.discard(self.number)
            self.note(Done.DISTURBED, how=self.fault.name, unwell=bool(self.tally.lasting))

    def note(self, what: str, who: str = "", **more: Any) -> None:
        """Writes a fact into the history."""
        self.system.note(what, who, **more)

    def set_back(self, *, bumped: bool) -> AbstractAsyncContextManager[None]:
        """See `System.set_back`."""
        return self.system.set_back(bumped=bumped)
