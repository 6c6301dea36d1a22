"""What a fault is: a name, whom it can be done to, and a context that does it and takes it back."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from election.drill.site import Site
from election.keys import Keyspace


class Nobody(Exception):
    """There is nobody whom the fault could be done to at this moment; it is skipped, with this reason."""


class Lane(StrEnum):
    """What a fault hurts. Two faults of one lane are never in effect at the same time."""

    ETCD = "etcd"
    """Members, their disks, their history, and what lies between them."""
    CLIENTS = "clients"
    """What lies between etcd and its clients, and what strangers do to keys."""
    ORCHESTRATORS = "orchestrators"
    FLEET = "fleet"
    """Agents, collectors, servers and services."""


class Stage(Protocol):
    """Where the faults of etcd and of the network are done."""

    @property
    def site(self) -> Site:
        """Etcd, and all that lies before it."""
        ...

    @property
    def keyspace(self) -> Keyspace:
        """Of the namespace that is hurt."""
        ...

    @property
    def election(self) -> str:
        """The election that the orchestrators stand for."""
        ...

    @property
    def observed(self) -> int:
        """The revision up to which the history has all that etcd did."""
        ...

    @property
    def rng(self) -> random.Random:
        """Decides everything that the fault leaves to chance."""
        ...

    def on(self, who: str) -> None:
        """To be called once, right before the harm begins: notes that the fault is injected, and on whom."""

    def note(self, what: str, who: str = "", **more: Any) -> None:
        """Writes a fact into the history."""

    def set_back(self, *, bumped: bool) -> AbstractAsyncContextManager[None]:
        """Around what starts etcd from a snapshot: notes it, and lets the observer begin anew afterwards."""


S = TypeVar("S", bound=Stage, contravariant=True)


@dataclass(frozen=True, slots=True)
class Fault(Generic[S]):
    """One kind of fault.

    `act` is entered to do it, and left, after a time from `hold_s`, to take it back; it returns from either when that
    is done. It raises Nobody before it has called `on` where there is nobody to be hurt. `unavailable` says why it
    cannot be done on this machine; an empty text says that it can. One that `needs_users` wants an etcd that has them.
    One that `ends_drill` is done once, after all others: what comes after it has another history.
    """

    name: str
    about: str
    lane: Lane
    hold_s: tuple[float, float]
    act: Callable[[S], AbstractAsyncContextManager[None]]
    unavailable: Callable[[], str] = str
    needs_users: bool = False
    ends_drill: bool = False
