"""One attempt to lead: from a fresh lease, through the queue and maybe a term, to the release of the key.

The Campaign RPC queues. The watch tells. A write proves. The deadline ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from election import leadership
from election.backoff import Backoff
from election.config import CandidateConfig
from election.epoch import Epoch, EpochGuard, encode_highest
from election.errors import AccessDenied, ElectionError, EtcdError, EtcdUnavailable, LeaseNotFound, LossReason
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import Lease, let_go, renewals
from election.handover import hand_over
from election.keys import Keyspace, ended_value
from election.leadership import Campaigning, Leading, Leaving
from election.machine import Machine
from election.predecessor import Predecessor
from election.queue import Look, Queue, QueueWatch, longest_silence_s, succession
from election.records import CandidateRecord
from election.token import Token
from election.work import run_work, to_the_end

logger = logging.getLogger("election")

_DEADLINE_LOOK_S = 1.0
"""The longest sleep of the deadline's watchman: asyncio's clock does not count the time of a suspend."""

_HEAD_START_S = 0.02
"""What the watch gets before an answer of Campaign counts: it mostly tells the same, and may bring the proof along."""

_CALLS = 3
"""How often Campaign is called for one lease: where an auth token had ended, or the member knew no leader."""

_HANDOVER_TRIES = 3
"""The queue may change while the work is joined; each try begins from a new list."""


@dataclass(frozen=True, slots=True)
class Candidacy:
    """What all attempts of a candidate have in common."""

    client: EtcdClient
    keyspace: Keyspace
    election: str
    record: CandidateRecord
    config: CandidateConfig
    guard: EpochGuard
    watch: QueueWatch
    predecessor: Predecessor
    rng: random.Random
    where: Callable[[], str] | None = None

    @property
    def who(self) -> str:
        """The candidate, in what people read."""
        return f"{self.record.id} in {self.election!r}"

    def backoff(self) -> Backoff:
        """The pauses of one series of failures."""
        return Backoff(self.config.retry_s, self.config.retry_max_s, self.rng)


class Attempt:
    """One lease and one key. Nothing of it is used for another attempt."""

    def __init__(self, candidacy: Candidacy, machine: Machine, lease: Lease, epoch: Epoch) -> None:
        self.key = candidacy.keyspace.candidate(candidacy.election, lease.id)
        self.successor: str | None = None
        """The id of the candidate to hand over to; None for the next in line."""
        self._candidacy = candidacy
        self._client = candidacy.client
        self._machine = machine
        self._clock = machine.clock
        self._lease = lease
        self._epoch = epoch
        self._handed_over = False

    async def run(self, lead: Callable[[Token], Awaitable[Any]]) -> Leaving:
        """Stands, runs `lead(token)` while leading, and releases the key; returns how it ended.

        `lead` is cancelled at a loss, and joined before the key is released. Cancellation does the same, and is
        passed on after the release.
        """
        # The call to Campaign outlives the work: cancelling it makes etcd delete the key.
        campaign = asyncio.create_task(self._campaign())
        try:
            async with asyncio.TaskGroup() as group:
                runs = (self._renew, self._watch_deadline, self._follow_queue, self._keep_tokens, self._prove)
                helpers = [group.create_task(run()) for run in runs]
                try:
                    await self._win()
                    if isinstance(state := self._machine.state, Leading):
                        await self._work(lead(state.token))
                finally:
                    await self._hand_over(self._leave())  # before anything else is ended: somebody waits for it
                for helper in helpers:
                    helper.cancel()
        finally:
            left = self._leave()
            await to_the_end(self._release(campaign, left))
        if not campaign.cancelled():
            campaign.result()
        return left

    async def _release(self, campaign: asyncio.Task[None], left: Leaving) -> None:
        """Deletes the key and ends the lease, within the call timeout of the client."""
        config = self._client.config
        give_up_at_s = self._clock.now_s() + config.call_timeout_s
        try:
            told = self._handed_over or await self._say_ended(left)
            left_s = max(give_up_at_s - self._clock.now_s(), config.attempt_timeout_s)
            gone = await let_go(self._client, self._lease.id, whose=self._candidacy.who, timeout_s=left_s)
            if gone and not told:
                await self._say_ended(left)
        finally:
            campaign.cancel()
            await asyncio.wait({campaign})
            self._machine.apply(leadership.Released())

    def _leave(self) -> Leaving:
        """Closes the attempt, unless it is lost already."""
        self._machine.stop(LossReason.CLOSED)
        left = self._machine.state
        assert isinstance(left, Leaving)
        return left

    async def _work(self, work: Awaitable[Any]) -> None:
        candidacy = self._candidacy
        margin_s = candidacy.config.margin_s
        await run_work(self._machine, work, margin_s=margin_s, who=candidacy.who, where=candidacy.where)

    # --- what is learned -------------------------------------------------------------------------------------

    async def _campaign(self) -> None:
        """Calls etcd's Campaign once the watch is there. What it answers is one hint among others.

        It is called again only where a read does not find the key: etcd writes the record of the call over that of a
        key which is there, and so over a proof.
        """
        await self._candidacy.watch.listed()
        name = self._candidacy.keyspace.campaign_name(self._candidacy.election)
        for calls in count(1):
            try:
                answer = await self._client.campaign(name, self._lease.id, self._candidacy.record.encode())
            except EtcdError as error:
                queued = await self._is_queued()
                if queued:
                    self._candidacy.watch.forget()  # nothing else is left that would tell of keys of another history
                    return
                passes = isinstance(error, AccessDenied | EtcdUnavailable) and not error.indefinite
                if queued is None or not passes or calls == _CALLS:
                    self._machine.apply(leadership.AttemptFailed(self._clock.now_s(), error))
                    return
            else:
                await self._clock.sleep_s(_HEAD_START_S)
                self._machine.apply(leadership.CampaignReturned(answer.leader.rev))
                return

    async def _is_queued(self) -> bool | None:
        """Whether the key is there although the call failed: then a new list will show it, and the watch decides.

        None when etcd does not tell.
        """
        try:
            return (await self._client.get(self.key))[0] is not None
        except EtcdError:
            return None

    async def _renew(self) -> None:
        """Moves the deadline with each renewal that etcd confirms.

        After a loss, too: the key is held while the work is joined, so that nobody else begins before it has ended.
        """
        retry_s = self._candidacy.config.retry_s
        backoff = Backoff(retry_s / 4, retry_s, self._candidacy.rng)
        try:
            async with aclosing(renewals(self._client, self._lease, backoff)) as confirmed:
                async for renewal in confirmed:
                    self._machine.apply(leadership.Renewed(renewal.deadline_s, renewal.latency_s))
        except LeaseNotFound:
            self._machine.apply(leadership.LeaseLost(self._clock.now_s()))

    async def _watch_deadline(self) -> None:
        """Notices the deadline soon after it passed. `is_leader` and `check` do not wait for this.

        Also a watch that has fallen silent: anybody may renew a lease, on etcd before 3.5.30, also a user who may not
        read any more, so a deadline that moves on does not say that the key is there.
        """
        silence_s = longest_silence_s(self._lease.ttl_s)
        while isinstance(state := self._machine.state, Campaigning | Leading):
            now_s = self._clock.now_s()
            if now_s >= state.deadline_s:
                self._machine.apply(leadership.DeadlinePassed(now_s))
            elif now_s - self._candidacy.watch.heard_at_s > silence_s:
                logger.warning("%s: the watch has told nothing for %.1f s", self._candidacy.who, silence_s)
                self._machine.apply(leadership.WatchSilent(now_s))
            if isinstance(self._machine.state, Campaigning | Leading):
                await self._clock.sleep_s(min(state.deadline_s - now_s, _DEADLINE_LOOK_S))

    async def _follow_queue(self) -> None:
        """Tells the state machine where the own key stands, for as long as etcd tells us."""
        async with aclosing(self._candidacy.watch.looks.values()) as looks:
            async for look in looks:
                if look is not None:
                    self._look(look)

    def _look(self, look: Look) -> None:
        now_s, queue = self._clock.now_s(), self._candidacy.watch.queue
        if look.is_set_back:  # a key of another history, also where it is there: whoever stands has to be admitted anew
            self._machine.apply(leadership.ProofRefused(now_s))
            return
        own = queue.get(self.key)
        led = isinstance(self._machine.state, Leading)
        state = self._machine.apply(
            leadership.QueueSeen(
                at_s=now_s,
                revision=look.revision,
                created=own.created if own else 0,
                is_oldest=queue.is_oldest(self.key),
                epoch=own.token.epoch if own and own.token else None,
            )
        )
        if led and isinstance(state, Leaving) and own is not None:
            self._candidacy.watch.forget()  # it shows a key that the proof has not found: one is of another history

    async def _keep_tokens(self) -> None:
        """Keeps the newest token in mind, own and others', in case that etcd's history is set back.

        The state folder may take its time: what changes meanwhile is looked at once.
        """
        watch = self._candidacy.watch
        kept: Token | None = None
        while True:
            await watch.looks.until(lambda _: watch.queue.token not in (None, kept))
            if (kept := watch.queue.token) is not None:
                await self._candidacy.guard.keep(kept)

    # --- winning ---------------------------------------------------------------------------------------------

    async def _win(self) -> None:
        """Waits until the leadership is proven, by `_prove` or by the predecessor, or the attempt is lost.

        A term can be lost before this returns: the state tells.
        """
        queue_s = self._client.config.call_timeout_s
        member = self._client.member
        try:
            async with asyncio.timeout(queue_s):
                await self._machine.until(lambda state: not isinstance(state, Campaigning) or state.created > 0)
        except TimeoutError:
            self._client.avoid(member)
            hung = EtcdUnavailable(f"etcd did not queue the candidate within {queue_s:g} s")
            self._machine.apply(leadership.AttemptFailed(self._clock.now_s(), hung))
        await self._machine.until(lambda state: not isinstance(state, Campaigning))

    async def _prove(self) -> None:
        """Writes that the candidate is elected, once its key seems to be the oldest, if it is, and the one that won.

        A linearizable read would prove nothing: it can be stale after a process pause (etcd #20418). The write is
        safe to repeat, since it does not change the key's create revision. When the watch shows a handover or the own
        proof meanwhile, nobody waits for the answer. It is not written before the predecessor has stopped: who was
        robbed of its key may not have heard of it.
        """
        await self._machine.until(lambda state: not isinstance(state, Campaigning) or state.may_prove)
        await self._candidacy.predecessor.stopped()
        backoff = self._candidacy.backoff()
        while isinstance(state := self._machine.state, Campaigning):
            token = Token(self._epoch.number, state.created)
            try:
                proven = await self._write_proof(token)
                now_s = self._clock.now_s()
                if proven:
                    self._machine.apply(leadership.Proved(now_s, token))
                elif proven is None:
                    self._machine.apply(leadership.ProofRefused(now_s))
            except ElectionError as error:
                logger.warning("%s: the leadership cannot be proven: %s", self._candidacy.who, error)
                await self._clock.sleep_s(backoff.next_s())

    async def _write_proof(self, token: Token) -> bool | None:
        """Whether etcd has accepted the proof; False when the epoch is another by now, None when the key lost."""
        record = replace(self._candidacy.record, elected_at=self._clock.wall(), epoch=token.epoch)
        queue = self._candidacy.keyspace.campaign(self._candidacy.election)
        answer = await self._client.txn(
            [txn.created_at(self.key, token.revision), txn.none_older(queue, token.revision), self._epoch.unchanged],
            [
                txn.put(self.key, record.encode(), lease=self._lease.id),
                txn.put(self._candidacy.keyspace.highest(self._candidacy.election), encode_highest(token)),
            ],
            [txn.oldest(queue)],
            repeat=Repeat.SAFE,
            timeout_s=self._client.config.attempt_timeout_s * 2,
        )
        if answer.succeeded:
            return True
        found = answer.responses[0].response_range.kvs
        if not found or found[0].create_revision != token.revision:
            if found and found[0].create_revision < token.revision:
                self._candidacy.watch.forget()  # it would have shown that key
            return None
        await self._renew_epoch(answer.header.revision)
        return False

    async def _renew_epoch(self, revision: int) -> None:
        who = self._candidacy.who
        self._epoch = await self._candidacy.guard.admit(self._candidacy.election, revision, who=who)

    # --- letting go ------------------------------------------------------------------------------------------

    async def _hand_over(self, left: Leaving) -> None:
        """Makes the next in line, or the one who was named, the leader; nothing when there is nobody or nothing left.

        What cannot be handed over is let go with the lease, and the next in line leads then.
        """
        if left.token is None or left.reason.takes_the_key:
            return
        keyspace, election = self._candidacy.keyspace, self._candidacy.election
        waiting = self._candidacy.watch.queue.behind(left.token.revision)
        try:
            for _ in range(_HANDOVER_TRIES):
                heirs = succession(waiting, self.successor)
                if not heirs:
                    return
                if await hand_over(self._client, keyspace, self._epoch, self.key, left.token, heirs):
                    self._handed_over = True
                    return
                listed = await self._client.list(keyspace.campaign(election))
                waiting = Queue.of(election, listed.kvs).behind(left.token.revision)
                await self._renew_epoch(listed.header.revision)
        except ElectionError as error:
            logger.warning("%s: the leadership could not be handed over: %s", self._candidacy.who, error)

    async def _say_ended(self, left: Leaving) -> bool:
        """Deletes the own key, and says that its term is over; False when it should be tried again.

        Whoever has seen the term alive, and its key go too early, waits for that, or for its deadline. A candidate that
        leaves may have been elected without having heard of it: then its key was written again.
        """
        ended = txn.put(self._candidacy.keyspace.ended(self._candidacy.election), ended_value(self.key))
        try:
            await self._client.txn(
                [] if left.token else [txn.rewritten(self.key)],
                [ended, txn.delete(self.key)],
                [txn.delete(self.key)],
                repeat=Repeat.SAFE,
                timeout_s=self._client.config.attempt_timeout_s,
            )
        except AccessDenied as error:
            logger.warning(
                "%s: others will wait, since it cannot be said that the term is over: %s", self._candidacy.who, error
            )
        except EtcdError as error:
            logger.info("%s: it could not be said that the term is over: %s", self._candidacy.who, error)
            return False
        return True
