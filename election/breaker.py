"""The breaker: while it is open, no collector reaps anything.

Its state is one key in etcd. A collector's transactions compare that key, so what an operator writes there holds from
the moment when it is written, whatever the collector has heard of it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from election.etcd.client import EtcdClient, Repeat
from election.etcd.txn import put
from election.keys import Keyspace
from election.records import Breaker, BreakerReason


async def read_breaker(client: EtcdClient, keyspace: Keyspace) -> Breaker:
    """The breaker's state, by a linearizable read."""
    return Breaker.of((await client.get(keyspace.breaker))[0])


async def hold_breaker(client: EtcdClient, keyspace: Keyspace, *, by: str, hold_s: float | None = None) -> Breaker:
    """Opens the breaker in the name of an operator: nothing is reaped from this revision on.

    It stays open until it is closed, or for `hold_s` seconds; that the agents are back does not close it.
    """
    now = client.clock.wall()
    until = None if hold_s is None else now + timedelta(seconds=hold_s)
    return await _write(client, keyspace, Breaker(True, BreakerReason.OPERATOR, by=by, at=now, until=until))


async def close_breaker(client: EtcdClient, keyspace: Keyspace, *, by: str) -> Breaker:
    """Closes the breaker: what is missing at this revision may be reaped, and does not open it again."""
    now = client.clock.wall()
    return await _write(client, keyspace, Breaker(False, BreakerReason.OPERATOR, by=by, at=now))


async def _write(client: EtcdClient, keyspace: Keyspace, breaker: Breaker) -> Breaker:
    # A repetition writes the same; the revision is that of the last one, which only takes in more.
    answer = await client.txn([], [put(keyspace.breaker, breaker.encode())], repeat=Repeat.SAFE)
    return replace(breaker, revision=answer.header.revision)
