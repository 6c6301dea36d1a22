"""What became of the leadership of elections lately, so that whoever was away can be told exactly what was missed."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from election.applied import Applied
from election.reader import LeaderEvent

PER_ELECTION = 256
"""How many changes of one election are kept."""

IN_TOTAL = 16_384
"""How many are kept of all; above it, the elections in which nothing happened for longest are forgotten first."""


@dataclass(slots=True)
class _Kept:
    """The changes of one election: all that came after the revision `complete_after`."""

    complete_after: int
    events: deque[Applied[LeaderEvent]] = field(default_factory=deque)


class LeaderHistory:
    """The changes of all elections after a revision, as far as they fit into memory.

    Each election's are complete from some revision on, which is the same for all in which nothing happened lately.
    """

    def __init__(self, *, per_election: int = PER_ELECTION, in_total: int = IN_TOTAL) -> None:
        self._per_election = per_election
        self._in_total = in_total
        self._complete_after = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one that has changed last is the last one
        self._size = 0

    def begin(self, revision: int, unbroken: frozenset[str] = frozenset()) -> None:
        """What happened up to a revision was not seen, but for elections in which nothing can have been missed."""
        for election in self._kept.keys() - unbroken:
            self._forget(election)
        for election in unbroken - self._kept.keys():
            self._kept[election] = _Kept(self._complete_after)
        self._complete_after = revision

    def add(self, election: str, event: Applied[LeaderEvent]) -> None:
        """Takes in a change, which came after all that were taken in before."""
        kept = self._kept.setdefault(election, _Kept(self._complete_after))
        self._kept.move_to_end(election)
        kept.events.append(event)
        self._size += 1
        if len(kept.events) > self._per_election:
            kept.complete_after = kept.events.popleft().event.source.revision
            self._size -= 1
        while self._size > self._in_total and len(self._kept) > 1:
            self._complete_after = max(self._complete_after, self._forget(next(iter(self._kept))))

    def after(self, election: str, revision: int) -> tuple[Applied[LeaderEvent], ...] | None:
        """Every change of an election after a revision, in order; None when some may be missing."""
        kept = self._kept.get(election)
        if kept is None:
            return () if revision >= self._complete_after else None
        if revision < kept.complete_after:
            return None
        return tuple(each for each in kept.events if each.event.source.revision > revision)

    def _forget(self, election: str) -> int:
        """Returns the revision up to which changes are forgotten."""
        kept = self._kept.pop(election)
        self._size -= len(kept.events)
        return kept.events[-1].event.source.revision if kept.events else kept.complete_after
