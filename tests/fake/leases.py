"""etcd's lessor (server/lease): leases, and their end by the clock.

Expired leases are revoked at every half second of the clock, at most 500 at a time. Nothing runs in between:
whoever looks at the leases calls `sweep` first, which does all that was due by now, in order.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from election.clock import Clock
from tests.fake import statuses
from tests.fake.store import Interval, Store

SWEEP_S = 0.5
_REVOKED_A_SWEEP = 500
_LARGEST_TTL_S = 9_000_000_000


@dataclass(slots=True)
class Lease:
    """A lease that is alive, or has expired and waits for the next sweep."""

    id: int
    ttl_s: int
    expires_at_s: float


class Lessor:
    """All leases of the cluster. A lease that is granted gets `smallest_ttl_s` at least."""

    def __init__(self, store: Store, clock: Clock, *, smallest_ttl_s: int) -> None:
        self._store = store
        self._clock = clock
        self._smallest_ttl_s = smallest_ttl_s
        self._leases: dict[int, Lease] = {}
        self._ends: list[tuple[float, int]] = []
        """A heap; entries of leases that were renewed since are skipped."""
        self._swept_at_s = clock.now_s()
        self._next_id = 0x7000_0000_0000_0000

    def grant(self, lease_id: int, ttl_s: int) -> Lease:
        """Grants a lease, with an id of its own choice where none is given."""
        if ttl_s > _LARGEST_TTL_S:
            raise statuses.LEASE_TTL_TOO_LARGE.error()
        if lease_id == 0:
            self._next_id += 1
            lease_id = self._next_id
        if self._store.full:
            raise statuses.NO_SPACE.error()
        if lease_id in self._leases:
            raise statuses.LEASE_EXISTS.error()
        lease = Lease(lease_id, max(ttl_s, self._smallest_ttl_s), 0.0)
        self._leases[lease_id] = lease
        self._extend(lease)
        return lease

    def saved(self) -> dict[int, int]:
        """The ids of all leases and their TTLs, for `load`."""
        return {lease.id: lease.ttl_s for lease in self._leases.values()}

    def load(self, saved: dict[int, int]) -> None:
        """Becomes what was saved: each lease begins anew."""
        self._leases = {lease_id: Lease(lease_id, ttl_s, 0.0) for lease_id, ttl_s in saved.items()}
        self._ends = []
        self.restart(0.0)

    def find(self, lease_id: int) -> Lease:
        """A lease by its id; raises etcd's NOT_FOUND."""
        if lease_id not in self._leases:
            raise statuses.LEASE_NOT_FOUND.error()
        return self._leases[lease_id]

    def revoke(self, lease_id: int) -> None:
        """Ends a lease and deletes its keys, in one revision."""
        self.find(lease_id)
        del self._leases[lease_id]
        with self._store.writing():
            for key in self._store.keys_of(lease_id):
                self._store.delete(Interval(key, b""))

    def renew(self, lease_id: int) -> int | None:
        """Renews a lease and returns its TTL; 0 when it is unknown, None when it has expired and is not swept yet."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        if lease.expires_at_s <= self._clock.now_s():
            return None
        self._extend(lease)
        return lease.ttl_s

    def remaining_s(self, lease: Lease) -> int:
        """Whole seconds that the lease still has."""
        return math.trunc(lease.expires_at_s - self._clock.now_s())

    def by_expiry(self) -> list[Lease]:
        """All leases, the one that ends first in front."""
        return sorted(self._leases.values(), key=lambda lease: (lease.expires_at_s, lease.id))

    def restart(self, extend_s: float) -> None:
        """A new etcd leader gives every lease its whole TTL again, and some more."""
        for lease in self._leases.values():
            self._extend(lease, extend_s)

    def sweep(self) -> None:
        """Revokes what has expired, as the sweeps until now would have done it."""
        while (due_at_s := self.next_sweep_s()) is not None and due_at_s <= self._clock.now_s():
            self._swept_at_s = due_at_s
            for _ in range(_REVOKED_A_SWEEP):
                lease = self._first_to_end()
                if lease is None or lease.expires_at_s > due_at_s:
                    break
                self.revoke(lease.id)

    def next_sweep_s(self) -> float | None:
        """When the next sweep that has something to do is due, on the clock; None when there is no lease."""
        first = self._first_to_end()
        if first is None:
            return None
        sweeps = max(math.ceil((first.expires_at_s - self._swept_at_s) / SWEEP_S), 1)
        return self._swept_at_s + sweeps * SWEEP_S

    def _extend(self, lease: Lease, more_s: float = 0.0) -> None:
        lease.expires_at_s = self._clock.now_s() + lease.ttl_s + more_s
        heapq.heappush(self._ends, (lease.expires_at_s, lease.id))

    def _first_to_end(self) -> Lease | None:
        while self._ends:
            expires_at_s, lease_id = self._ends[0]
            lease = self._leases.get(lease_id)
            if lease is not None and lease.expires_at_s == expires_at_s:
                return lease
            heapq.heappop(self._ends)
        return None
