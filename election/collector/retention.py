"""The leases of tombstones, each shared by many: etcd deletes them when they have been kept for long enough."""

from __future__ import annotations

import asyncio
import math

from election.etcd.client import EtcdClient
from election.etcd.lease import let_go

_TOMBSTONES = 1_000
"""All keys of a lease go in one revision, which must not keep etcd busy for long."""

_SHARED_FOR = 0.1
"""For which part of the retention a lease is given to new tombstones; it lives for so much longer."""


class Retention:
    """Grants leases that live for the retention at least, from whenever they are given to a tombstone."""

    def __init__(self, client: EtcdClient, retention_s: int) -> None:
        self._client = client
        self._ttl_s = math.ceil(retention_s * (1 + _SHARED_FOR))
        self._shared_for_s = retention_s * _SHARED_FOR
        self._lease = 0
        self._until_s = 0.0
        self._left = 0
        self._used = False
        self._granting = asyncio.Lock()

    async def lease(self, tombstones: int) -> int:
        """A lease for so many tombstones more."""
        async with self._granting:
            now_s = self._client.clock.now_s()
            if not self._lease or now_s >= self._until_s or tombstones > self._left:
                await self.release()
                self._lease = (await self._client.lease_grant(self._ttl_s)).ID
                self._until_s = now_s + self._shared_for_s
                self._left = max(_TOMBSTONES, tombstones)
            self._left -= tombstones
            return self._lease

    def used(self) -> None:
        """Something was put under the present lease, or may have been."""
        self._used = True

    def forget(self) -> None:
        """The present lease is gone, or may be."""
        self._lease, self._used = 0, False

    async def release(self) -> None:
        """Gives a lease back under which nothing was put."""
        lease, used = self._lease, self._used
        self.forget()
        if lease and not used:
            await let_go(self._client, lease, whose="the collector's tombstones")
