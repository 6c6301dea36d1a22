"""Keeps the breaker as it has to be: counts who is missing, lets it be judged, and writes what it becomes."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from dataclasses import replace
from datetime import timedelta

from election.breaker import Breaker, BreakerReason
from election.collector.judge import Moment, Tally, accepts, judge
from election.collector.orders import Orders
from election.collector.suspects import Suspect, Suspects
from election.config import CollectorConfig
from election.errors import EtcdError
from election.etcd.client import EtcdClient
from election.etcd.txn import get, modified_at, put
from election.fencing.txn import fenced_txn
from election.keys import Keyspace
from election.term import Term

logger = logging.getLogger("election")

_SHORTEST_WINDOW_S = 1.0
_EXPIRED_PER_S = 500
"""How many leases etcd ends in a second, on disks that are not fast: no more than 1,000 on any (etcd:
server/lease/lessor.go, `leaseRevokeRate`). So a large fleet takes its time to vanish at once."""


class Warden:
    """Minds the breaker in one term; without a term what it becomes is not written."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        config: CollectorConfig,
        term: Term | None,
        suspects: Suspects,
        orders: Orders,
        *,
        id: str,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._config = config
        self._term = term
        self._suspects = suspects
        self._orders = orders
        self._id = id
        self._raft_term = client.raft_term
        self._settled_at_s = float("-inf")
        self._owed: Breaker | None = None
        """What has to be written over the breaker of its revision, however long that cannot be done."""
        self._reaped: deque[Suspect] = deque()
        """Those who were reaped so soon that they still count."""

    def note_reaped(self, suspect: Suspect) -> None:
        """A suspect that nobody had ordered was reaped."""
        self._reaped.append(suspect)

    async def mind(self) -> bool:
        """Opens or closes the breaker, if it has to be; whether it is known that it is as it should be."""
        clock, orders = self._client.clock, self._orders
        now_s, now = clock.now_s(), clock.wall()
        if self._client.raft_term > self._raft_term:
            self._settled_at_s = now_s + self._config.grace_s if self._raft_term else now_s
            self._raft_term = self._client.raft_term
        moment = Moment(
            now,
            self._id,
            over=now_s >= orders.breaker_over_at_s,
            settled_at=now + timedelta(seconds=self._settled_at_s - now_s) if self._settled_at_s > now_s else None,
        )
        new = judge(orders.breaker, self._tally(now_s), self._config.breaker, moment)
        if new is None and self._owed is not None and self._owed.revision == orders.breaker.revision:
            owed = self._owed
            new = replace(owed, at=now, until=now + (owed.until - owed.at) if owed.until and owed.at else owed.until)
        if new is None:
            return True
        if self._term is None:
            gone_at = (suspect.gone_at for suspect in self._suspects.missing.values())
            seen_at = max(orders.breaker_seen_at, *gone_at, 0)
            orders.heard_breaker(replace(new, revision=seen_at), seen_at)
        else:
            self._owed = replace(new, revision=orders.breaker.revision) if new.open else None
            if not await self._write(self._term, new):
                return False
            self._owed = None
        if new.reason is BreakerReason.RECOVERED:
            self._suspects.postpone(now_s + self._config.grace_s)
        return True

    def _tally(self, now_s: float) -> Tally:
        given_up_at = accepts(self._orders.breaker)
        missing = self._suspects.missing
        known = len(self._suspects.alive) + len(missing) + len(self._reaped)
        recent_s = now_s - max(self._config.grace_s, _SHORTEST_WINDOW_S, known / _EXPIRED_PER_S)
        while self._reaped and self._reaped[0].since_s < recent_s:
            self._reaped.popleft()
        gone = itertools.chain(missing.values(), self._reaped)
        dead = [each for each in gone if not each.left and each.gone_at > given_up_at]
        return Tally(len(self._suspects.alive), len(dead), sum(each.since_s >= recent_s for each in dead))

    async def _write(self, term: Term, new: Breaker) -> bool:
        key = self._keyspace.breaker
        try:
            answer = await fenced_txn(
                self._client,
                term,
                [modified_at(key, self._orders.breaker.revision)],
                [put(key, new.encode())],
                [get(key)],
            )
        except EtcdError as error:
            logger.warning("the breaker could not be written, and nothing is reaped meanwhile: %s", error)
            return False
        revision = answer.header.revision
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs
            self._orders.heard_breaker(Breaker.of(found[0] if found else None), revision)
            return False
        self._orders.heard_breaker(replace(new, revision=revision), revision)
        return True
