"""The leases of tombstones, each shared by many: etcd deletes them when they have been kept for long enough."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from election.etcd.client import EtcdClient
from election.etcd.lease import let_go

_TOMBSTONES = 1_000
"""All keys of a lease go in one revision, which must not keep etcd busy for long."""

_SHARED_FOR = 10
"""For which part of the retention a lease is given to new tombstones: one in so many. It lives for so much longer."""


@dataclass(slots=True, eq=False)
class SharedLease:
    """A lease of tombstones. `uses` counts the transactions that have put something under it, or may have."""

    id: int
    until_s: float
    room: int
    uses: int = 0


class Retention:
    """Grants leases that live for the retention at least, from whenever they are given to a tombstone."""

    def __init__(self, client: EtcdClient, retention_s: int) -> None:
        self._client = client
        self._retention_s = retention_s
        self._lease: SharedLease | None = None
        self._granting = asyncio.Lock()

    async def lease(self, tombstones: int) -> SharedLease:
        """A lease for so many tombstones more."""
        async with self._granting:
            now_s = self._client.clock.now_s()
            lease = self._lease
            if lease is None or now_s >= lease.until_s or tombstones > lease.room:
                await self.release()
                granted = await self._client.lease_grant(self._retention_s + math.ceil(self._retention_s / _SHARED_FOR))
                until_s = now_s + self._retention_s / _SHARED_FOR
                lease = self._lease = SharedLease(granted.ID, until_s, max(_TOMBSTONES, tombstones))
            lease.room -= tombstones
            return lease

    def forget(self, lease: SharedLease) -> None:
        """The lease is gone."""
        if self._lease is lease:
            self._lease = None

    async def release(self) -> None:
        """Gives the present lease back, if nothing was put under it."""
        lease, self._lease = self._lease, None
        if lease is not None and not lease.uses:
            await let_go(self._client, lease.id, whose="the collector's tombstones")
