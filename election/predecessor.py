"""Whom a candidate waits behind, and whether that one may still take itself for the leader.

A lease that ends in its time has been over for its holder before: so much is the margin for. But a key can go sooner.
Somebody deletes it, or revokes the lease; and a member of etcd that led, stood still and goes on ends leases that
others have renewed meanwhile (etcd #15247; by a check of its own clock, which was right a moment ago, also since
3.5.13). The holder learns of that from its watch, when that comes through. Until then, or until its deadline, it acts.

So whoever waits asks etcd now and then how long the leader's lease lasts. Where its key goes earlier, the next in line
waits until the old leader says that its work is over, or until its deadline is past. Where etcd has not told, nobody
waits: a candidate that has not seen the old leader alive leads at once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TypeVar

from election.errors import AccessDenied, EtcdError, LeaseNotFound
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.published import Published
from election.queue import QueueWatch
from election.records import Candidate

T = TypeVar("T")

logger = logging.getLogger("election")

_LOOK_S = 1.0
"""The longest sleep: asyncio's clock does not count the time of a suspend."""
_LISTEN_S = 0.2
"""How often to look whether the old leader has said that it has stopped."""


@dataclass(frozen=True, slots=True)
class _Life:
    """What etcd has told of the leader's lease: it cannot end by itself before `lasts_until_s`."""

    leader: Candidate
    lasts_until_s: float
    ttl_s: int


@dataclass(frozen=True, slots=True)
class _Robbed:
    """A leader whose key has gone too early, and when its last deadline is past, once its lease has `ended` as well."""

    leader: Candidate
    ttl_s: int
    until_s: float
    ended: bool = False


class Predecessor:
    """Keeps in mind who leads while `run` runs: one for all attempts of a candidate.

    `own_lease` is that of the present attempt; one's own key is nobody's predecessor.
    """

    def __init__(self, client: EtcdClient, keyspace: Keyspace, watch: QueueWatch, *, ask_s: float, who: str) -> None:
        self.own_lease = 0
        self._client = client
        self._keyspace = keyspace
        self._clock = client.clock
        self._watch = watch
        self._ask_s = ask_s
        self._who = who
        self._leader: Published[Candidate | None] = Published(None)
        self._life: _Life | None = None
        self._robbed: Published[_Robbed | None] = Published(None)

    async def run(self) -> None:
        """Follows who leads, and asks how long its lease lasts, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._ask())

    async def stopped(self) -> None:
        """Returns when the last leader, as far as is known, does not take itself for it any more: mostly at once.

        To be called when the own key is told to be the oldest, by the watch or by anything else. Where that is wrong,
        the old leader is not touched.
        """
        self._look()
        leader = self._leader.value
        if leader is not None and not await self._is_there(leader) and self._leader.value is leader:
            self._leader.set(None)  # the watch is behind
            self._goes(leader)
        while (robbed := self._robbed.value) is not None:
            over = robbed.ended and self._clock.now_s() >= robbed.until_s
            if over or await self._has_stopped(robbed):
                self._replace(robbed, None)
            elif not robbed.ended:
                await self._end(robbed)
            else:
                await _changes(self._robbed, robbed, min(robbed.until_s - self._clock.now_s(), _LISTEN_S))

    # --- who leads -------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async for _ in self._watch.looks.values():
            self._look()

    def _look(self) -> None:
        if self._watch.looks.value is None:
            return
        queue, before = self._watch.queue, self._leader.value
        oldest = queue.oldest
        elected = oldest if oldest is not None and oldest.token is not None else None
        leader = None if elected is None or elected.lease == self.own_lease else elected
        if (before and before.created) != (leader and leader.created):
            self._leader.set(leader)
            if before is not None and elected is None:
                self._goes(before)
        robbed = self._robbed.value
        if robbed is not None and elected is not None and elected.created != robbed.leader.created:
            self._robbed.set(None)  # another one leads, and is waited for

    def _goes(self, leader: Candidate) -> None:
        """The key of who led has gone."""
        life, self._life, now_s = self._life, None, self._clock.now_s()
        if life is None or life.leader.created != leader.created or now_s >= life.lasts_until_s:
            return
        self._robbed.set(_Robbed(leader, life.ttl_s, now_s + life.ttl_s))

    # --- how long its lease lasts ----------------------------------------------------------------------------

    async def _ask(self) -> None:
        while True:
            leader = await self._leader.until(lambda leader: leader is not None)
            assert leader is not None
            await self._ask_of(leader)
            await _changes(self._leader, leader, self._ask_s)

    async def _ask_of(self, leader: Candidate) -> None:
        asked_at_s = self._clock.now_s()
        try:
            answer = await self._client.lease_time_to_live(leader.lease)
        except EtcdError:
            return  # it is asked again soon, and what is not known makes nobody wait
        if answer.TTL > 0 and self._leader.value is leader:
            lasts_until_s = asked_at_s + answer.TTL  # etcd leaves out what is left of a second
            if self._life is not None and self._life.leader is leader:
                lasts_until_s = max(lasts_until_s, self._life.lasts_until_s)
            self._life = _Life(leader, lasts_until_s, answer.grantedTTL)

    async def _is_there(self, leader: Candidate) -> bool:
        while True:
            try:
                found, _ = await self._client.get(leader.key.encode())
            except EtcdError:
                await self._clock.sleep_s(_LOOK_S)
            else:
                return found is not None and found.create_revision == leader.created

    async def _has_stopped(self, robbed: _Robbed) -> bool:
        """Whether the robbed one has said that its work is over."""
        try:
            said, _ = await self._client.get(self._keyspace.ended(robbed.leader.election))
        except EtcdError:
            return False
        return said is not None and said.value == f"{robbed.leader.lease:x}".encode()

    async def _end(self, robbed: _Robbed) -> None:
        """Ends the lease of who was robbed of its key alone, and might renew it for as long as it has not heard."""
        logger.warning(
            "%s: the key of %s has gone before its lease could have ended: it is waited for until it says that it has "
            "stopped, or %d s are over",
            *(self._who, robbed.leader.id, robbed.ttl_s),
        )
        until_s = robbed.until_s
        try:
            await self._client.lease_revoke(robbed.leader.lease)
            until_s = self._clock.now_s() + robbed.ttl_s
        except (LeaseNotFound, AccessDenied):
            pass
        except EtcdError:
            await self._clock.sleep_s(_LOOK_S)
            return
        self._replace(robbed, replace(robbed, until_s=until_s, ended=True))

    def _replace(self, robbed: _Robbed, by: _Robbed | None) -> None:
        if self._robbed.value is robbed:
            self._robbed.set(by)


async def _changes(published: Published[T], value: T, limit_s: float) -> None:
    """Waits until there is another value, but no longer than the limit and _LOOK_S."""
    try:
        async with asyncio.timeout(min(limit_s, _LOOK_S)):
            await published.until(lambda now: now is not value)
    except TimeoutError:
        pass
