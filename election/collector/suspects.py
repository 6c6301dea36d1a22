"""Who is alive, who is missing since when, and who is to be reaped next: what a collector knows, without any I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from election.agent_records import Tombstone

_TAKEN = float("inf")


@dataclass(slots=True, eq=False)
class Suspect:
    """An agent with state whose liveness key is gone. The incarnation is 0 where it never registered.

    `gone_at` is a revision at which it was gone. `left` says that it went by itself; `ordered` that an operator wants
    it reaped now. `alone` are those that are not reaped together with others any more, and `unsure` is the tombstone
    of a reap of which nobody knows whether it happened.
    """

    agent: str
    incarnation: int
    gone_at: int
    since_s: float
    due_at_s: float
    left: bool = False
    ordered: bool = False
    alone: bool = False
    unsure: Tombstone | None = None
    grace_ends_s: float = 0.0

    @property
    def taken(self) -> bool:
        """Whether somebody is at it."""
        return self.due_at_s == _TAKEN


@dataclass(slots=True)
class Suspects:
    """The suspects among the agents. The times are on the collector's clock."""

    alive: set[str] = field(default_factory=set)
    missing: dict[str, Suspect] = field(default_factory=dict)
    # Who is due when, and the same of those who were ordered; what is not the suspect's time any more is skipped.
    _due: tuple[list[tuple[float, str]], list[tuple[float, str]]] = field(default_factory=lambda: ([], []))

    def suspect(self, suspect: Suspect) -> None:
        """An agent is missing."""
        self.missing[suspect.agent] = suspect
        heappush(self._due[suspect.ordered], (suspect.due_at_s, suspect.agent))

    def appeared(self, agent: str) -> bool:
        """An agent is alive; whether it was a suspect."""
        self.alive.add(agent)
        return self.missing.pop(agent, None) is not None

    def settle(self, suspect: Suspect) -> None:
        """Nothing is left to do for this suspect, who may be suspected anew meanwhile."""
        if self.missing.get(suspect.agent) is suspect:
            del self.missing[suspect.agent]

    def again(self, suspect: Suspect, at_s: float) -> None:
        """The suspect is due at another time, unless it has come back; without an order not before its grace ends."""
        suspect.due_at_s = at_s if suspect.ordered else max(at_s, suspect.grace_ends_s)
        if self.missing.get(suspect.agent) is suspect:
            heappush(self._due[suspect.ordered], (suspect.due_at_s, suspect.agent))

    def order(self, suspect: Suspect, now_s: float) -> None:
        """An operator wants the suspect reaped now."""
        suspect.ordered = True
        if not suspect.taken:
            self.again(suspect, now_s)

    def withdraw(self, suspect: Suspect) -> None:
        """The operator does not want it any more."""
        suspect.ordered = False
        if not suspect.taken:
            self.again(suspect, suspect.grace_ends_s)

    def postpone(self, at_s: float) -> None:
        """Nobody whom no operator has ordered is due before this time."""
        for suspect in self.missing.values():
            if not suspect.ordered and suspect.due_at_s < at_s:
                self.again(suspect, at_s)

    def take(self, now_s: float, limit: int, *, ordered: bool = False) -> list[Suspect]:
        """Takes suspects that are due, at most so many, the longest due first; `again` brings them back."""
        taken: list[Suspect] = []
        while len(taken) < limit and self.next_due_s(ordered=ordered) <= now_s:
            suspect = self.missing[heappop(self._due[ordered])[1]]
            suspect.due_at_s = _TAKEN
            taken.append(suspect)
        return taken

    def next_due_s(self, *, ordered: bool = False) -> float:
        """When the next one is due; infinity for never."""
        due = self._due[ordered]
        while due:
            at_s, agent = due[0]
            suspect = self.missing.get(agent)
            if suspect is not None and suspect.due_at_s == at_s and suspect.ordered == ordered:
                return at_s
            heappop(due)
        return float("inf")
