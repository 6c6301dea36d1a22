"""Whom a candidate waits behind, and whether that one may still take itself for the leader.

A lease that ends in its time has been over for its holder before: so much is the margin for. But a key can go sooner.
Somebody deletes it, or revokes the lease; and a member of etcd that led, stood still and goes on ends leases that
others have renewed meanwhile (etcd #15247; by a check of its own clock, which was right a moment ago, also since
3.5.13). The holder learns of that from its watch, when that comes through. Until then, or until its deadline, it acts.

So whoever waits asks etcd now and then how long the leader's lease lasts. Where its key goes earlier, it ends that
lease, if that is still there, and does not lead before the old leader has said that its work is over, or the time is
over that its last renewal can have given it. Where etcd has not told, nobody waits: a candidate that has not seen the
old leader alive leads at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from election.errors import AccessDenied, EtcdError, LeaseNotFound
from election.etcd.client import EtcdClient
from election.keys import Keyspace, ended_value
from election.published import Published
from election.queue import QueueWatch, longest_silence_s
from election.records import Candidate

T = TypeVar("T")

logger = logging.getLogger("election")

_LOOK_S = 1.0
"""The longest sleep: asyncio's clock does not count the time of a suspend."""
_LEAST_S = 0.001
"""The shortest sleep: less may be nothing to a clock."""
_LISTEN_S = 0.2
"""How often to look whether the old leader has said that it has stopped."""


@dataclass(frozen=True, slots=True)
class _Life:
    """What etcd has told of the leader's lease: it cannot end by itself before `lasts_until_s`."""

    leader: Candidate
    lasts_until_s: float
    ttl_s: int


class Predecessor:
    """Keeps in mind who leads while `run` runs: one for all attempts of a candidate.

    `own_lease` is that of the present attempt; one's own key is nobody's predecessor.
    """

    def __init__(self, client: EtcdClient, keyspace: Keyspace, watch: QueueWatch, *, ask_s: float, who: str) -> None:
        self.own_lease = 0
        self._client = client
        self._clock = client.clock
        self._keyspace = keyspace
        self._watch = watch
        self._ask_s = ask_s
        self._who = who
        self._leader: Published[Candidate | None] = Published(None)
        self._life: _Life | None = None
        self._robbed: list[_Life] = []
        """Leaders whose keys have gone too early, and who are not waited for yet."""
        self._awaited = Published(0)
        """How many such leaders are waited for."""
        self._refused = False

    async def run(self) -> None:
        """Follows who leads, asks how long its lease lasts, and waits for those who are robbed; until cancelled."""
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow())
                    group.create_task(self._ask())
                    while True:
                        await self._awaited.until(lambda _: bool(self._robbed))
                        group.create_task(self._wait_for(self._robbed.pop()))
            except Exception:
                logger.exception("%s: following who leads has failed, and begins anew", self._who)
                self._awaited.set(len(self._robbed))  # nobody waits for the others any more
                await self._clock.sleep_s(_LOOK_S)

    async def stopped(self) -> None:
        """Returns when nobody who has led, as far as is known, takes itself for the leader any more: mostly at once.

        To be called when the own key is told to be the oldest, by the watch or by anything else. Where that is wrong,
        the old leader is not touched.
        """
        self._look()
        leader = self._leader.value
        if leader is not None and not await self._is_there(leader) and self._leader.value is leader:
            self._leader.set(None)  # the watch is behind
            self._goes(leader)
        await self._awaited.until(lambda awaited: awaited == 0)

    # --- who leads -------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with aclosing(self._watch.looks.values()) as looks:
            async for _ in looks:
                self._look()

    def _look(self) -> None:
        if self._watch.looks.value is None:
            return
        before, oldest = self._leader.value, self._watch.queue.oldest
        found = None if before is None else self._watch.queue.get(before.key.encode())
        if before is not None and found is not None and found.created == before.created:
            return  # it holds its key, whatever a stranger has written there
        elected = oldest if oldest is not None and oldest.token is not None else None
        leader = None if elected is None or elected.lease == self.own_lease else elected
        if (before and before.created) != (leader and leader.created):
            self._leader.set(leader)
            if before is not None and elected is None:
                self._goes(before)

    def _goes(self, leader: Candidate) -> None:
        """The key of who led has gone."""
        life, self._life = self._life, None
        if life is not None and life.leader.created == leader.created and self._clock.now_s() < life.lasts_until_s:
            self._robbed.append(life)
            self._awaited.set(self._awaited.value + 1)

    async def _is_there(self, leader: Candidate) -> bool:
        while True:
            try:
                found, _ = await self._client.get(leader.key.encode())
            except EtcdError:
                await self._clock.sleep_s(_LOOK_S)
            else:
                return found is not None and found.create_revision == leader.created

    # --- how long its lease lasts ----------------------------------------------------------------------------

    async def _ask(self) -> None:
        while True:
            leader = await self._leader.until(lambda leader: leader is not None)
            assert leader is not None
            due_at_s = self._clock.now_s() + self._ask_s
            await self._ask_of(leader)
            while self._leader.value is leader and (left_s := due_at_s - self._clock.now_s()) > 0:
                await _changes(self._leader, leader, left_s)

    async def _ask_of(self, leader: Candidate) -> None:
        asked_at_s = self._clock.now_s()
        try:
            answer = await self._client.lease_time_to_live(leader.lease)
        except EtcdError as error:  # it is asked again soon, and what is not known makes nobody wait
            if isinstance(error, AccessDenied) and not self._refused:
                logger.warning("%s cannot know when a leader is robbed of its key: %s", self._who, error)
            self._refused = isinstance(error, AccessDenied)
            return
        self._refused = False
        if answer.TTL > 0 and self._leader.value is leader:
            lasts_until_s = asked_at_s + answer.TTL  # etcd leaves out what is left of a second
            if self._life is not None and self._life.leader is leader:
                lasts_until_s = max(lasts_until_s, self._life.lasts_until_s)
            self._life = _Life(leader, lasts_until_s, answer.grantedTTL)

    # --- who was robbed --------------------------------------------------------------------------------------

    async def _wait_for(self, robbed: _Life) -> None:
        """Until it has stopped. No longer than a leader whose watch is silent goes on, where its lease cannot be ended.

        From when its lease is known to be gone, its last renewal gives it one TTL at most, less its margin.
        """
        try:
            if await self._has_stopped(robbed.leader) or await self._is_there(robbed.leader):
                return
            logger.warning(
                "%s: the key of %s has gone before its lease could have ended: nobody leads before it says that it "
                "has stopped, or %d s are over",
                *(self._who, robbed.leader.id, robbed.ttl_s),
            )
            until_s = self._clock.now_s() + longest_silence_s(robbed.ttl_s) + _LOOK_S
            lives = True
            while self._clock.now_s() < until_s:
                if lives and await self._end(robbed.leader):
                    lives, until_s = False, self._clock.now_s() + robbed.ttl_s
                await self._clock.sleep_s(_LISTEN_S)
                if await self._has_stopped(robbed.leader):
                    return
        finally:
            self._awaited.set(self._awaited.value - 1)

    async def _has_stopped(self, leader: Candidate) -> bool:
        """Whether it has said that its work is over, though others may have said it of their own terms since."""
        key, at = self._keyspace.ended(leader.election), 0
        try:
            async with asyncio.timeout(_LOOK_S):
                while True:
                    said, _ = await self._client.get(key, revision=at)
                    if said is None or said.mod_revision < leader.created:
                        return False
                    if said.value == ended_value(leader.key.encode()):
                        return True
                    at = said.mod_revision - 1
        except (EtcdError, TimeoutError):
            return False

    async def _end(self, leader: Candidate) -> bool:
        """Ends the lease of who was robbed of its key alone, and might renew it for as long as it has not heard."""
        try:
            await self._client.lease_revoke(leader.lease, timeout_s=_LOOK_S)
        except LeaseNotFound:
            return True
        except EtcdError:
            return False
        return True


async def _changes(published: Published[T], value: T, limit_s: float) -> None:
    """Waits until there is another value, but no longer than about the limit, and _LOOK_S."""
    try:
        async with asyncio.timeout(min(max(limit_s, _LEAST_S), _LOOK_S)):
            await published.until(lambda now: now is not value)
    except TimeoutError:
        pass
