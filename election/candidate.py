"""Stands for an election and runs work while leading: the I/O around `leadership.step`.

The Campaign RPC queues. The watch tells. A write proves. The deadline ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from election import leadership
from election.backoff import Backoff
from election.config import CandidateConfig, check_labels
from election.errors import (
    ElectionError,
    EtcdError,
    EtcdUnavailable,
    LeaseNotFound,
    LossReason,
    NotLeader,
)
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import Lease, grant, renewals
from election.etcd.watch import Changes, Snapshot, follow
from election.keys import COLLECTOR_ELECTION, Keyspace, check_name
from election.leadership import Campaigning, Closed, Event, Following, Leading, Leaving, State
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.published import Published
from election.records import CandidateRecord

logger = logging.getLogger("election")

_DEADLINE_LOOK_S = 1.0
"""The longest sleep of the deadline's watchman: asyncio's clock does not count the time of a suspend."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What a candidate learned, and the state that it led to. `at` is for people; decisions use the event's."""

    at: datetime
    event: Event | None
    state: State


class Term:
    """One term of leadership, given to the work that runs in it.

    The token is the create revision of the candidate's key. Protected resources must check it: a process that was
    paused can wake up and write after its term, and only the resource can refuse that.
    """

    def __init__(self, candidate: Candidate, key: bytes, token: int) -> None:
        self._candidate = candidate
        self.election = candidate.election
        self.id = candidate.id
        self.key = key
        self.token = token

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        return self.remaining_s() > 0

    def remaining_s(self) -> float:
        """Seconds until the deadline, as it stands now; 0 when the term is over."""
        state = self._candidate.state
        if not isinstance(state, Leading) or state.token != self.token:
            return 0.0
        return max(state.deadline_s - self._candidate.clock.now_s(), 0.0)

    def check(self) -> None:
        """Returns if this process may act now, and raises otherwise.

        Call it before every step that must not happen outside of the term. True at the moment of the call and for
        no longer; for what reaches another machine, send the token along.

        Raises:
            NotLeader: with the reason of the loss.
        """
        if self.is_leader:
            return
        reason = self._candidate.loss_of(self.token)
        raise NotLeader(
            f"{self.id} does not lead {self.election!r} any more (token {self.token}): {reason.value}", reason=reason
        )


Work = Callable[[Term], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Loss:
    """How a term ended. `margin_s` is what was left until the deadline when the loss was noticed."""

    token: int
    reason: LossReason
    margin_s: float
    error: BaseException | None


class Candidate:
    """A candidate for one election; made by `Store.candidate`. One `lead` at a time."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        election: str,
        *,
        id: str,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        config: CandidateConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if election != COLLECTOR_ELECTION:
            check_name("election", election)
        self.election = election
        self.id = check_name("candidate", id)
        self.clock = client.clock
        self._client = client
        self._keyspace = keyspace
        self._config = config or CandidateConfig()
        self._rng = rng or random.Random()
        self._record = CandidateRecord(self.id, address, check_labels(labels or {}), priority)
        self._record.encode()  # a record that is too large is an error now, not at the first campaign
        self._published = Published(Transition(self.clock.wall(), None, Following()))
        self._last_loss: Leaving | None = None
        self._left = asyncio.Event()
        self._left_reason = LossReason.RESIGNED
        self._standing = False

    @property
    def state(self) -> State:
        """The present state; immutable."""
        return self._published.value.state

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        state = self.state
        return isinstance(state, Leading) and self.clock.now_s() < state.deadline_s

    def transitions(self) -> AsyncGenerator[Transition]:
        """The present state and then every later one with the event that led to it, in order."""
        return self._published.values()

    def loss_of(self, token: int) -> LossReason:
        """Why the term with this token is over; `expired` while nobody has noticed yet that the deadline passed."""
        loss = self._last_loss
        return loss.reason if loss and loss.token == token else LossReason.EXPIRED

    def leave(self, reason: LossReason = LossReason.RESIGNED) -> None:
        """Asks to stop: the work is cancelled and joined, the key released, and `lead` returns. It is final."""
        self._left_reason = reason
        self._left.set()
        self._apply(leadership.Stopped(self.clock.now_s(), reason))

    async def lead(self, work: Work, *, once: bool = False) -> Loss | None:
        """Stands for the election, runs `work(term)` in each term that it wins, and stands again after it.

        The work is cancelled when the term is lost, and joined before the key is released; so work that ignores
        its cancellation delays its successor up to the end of the lease, and no longer: from then on only fencing
        protects. A work that returns resigns. A work that raises ends the term with `work_failed`; the error is
        logged and kept in the Loss, and the candidate stands again.

        Returns after `leave`, or with `once` after the first term, the Loss of the last term (None: it had none).
        Cancelling it cancels and joins the work, releases the key within the call timeout of the client, and
        raises CancelledError.

        Raises:
            EtcdError: when etcd cannot be used at the first attempt. Later such failures are retried for ever.
            ConfigError: when the granted TTL does not fit the settings.
        """
        if self._standing:
            raise ElectionError(f"candidate {self.id!r} already stands for {self.election!r}: one lead() at a time")
        self._standing = True
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        contacted = False
        last_term: Leaving | None = None
        try:
            while not self._left.is_set():
                try:
                    loss = await self._stand(work)
                except EtcdError as error:
                    if not contacted:
                        raise
                    self._apply(leadership.AttemptFailed(self.clock.now_s(), error))
                    logger.warning("%s cannot stand for %r: %s", self.id, self.election, error)
                else:
                    contacted = True
                    if loss.token:
                        last_term = loss
                        backoff.reset()
                        if once:
                            break
                await self._pause(backoff.next_s())
            if self._left.is_set():
                self._apply(leadership.Departed())
            if last_term is None:
                return None
            return Loss(last_term.token, last_term.reason, last_term.margin_s, last_term.error)
        finally:
            self._standing = False

    def _apply(self, event: Event) -> State:
        """The one place that changes the state and publishes it."""
        before = self.state
        state = leadership.step(before, event)
        if isinstance(state, Leaving) and state is not before and state.token:
            self._last_loss = state
        if state != before or isinstance(event, leadership.Renewed | leadership.AttemptFailed):
            self._published.set(Transition(self.clock.wall(), event, state))
        return state

    async def _until(self, holds: Callable[[State], bool]) -> State:
        return (await self._published.until(lambda transition: holds(transition.state))).state

    async def _pause(self, duration_s: float) -> None:
        """Waits between two attempts, but not for a candidate that was asked to leave."""
        waits = {asyncio.create_task(self.clock.sleep_s(duration_s)), asyncio.create_task(self._left.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # --- one attempt, from a fresh lease to its release ------------------------------------------------------

    async def _stand(self, work: Work) -> Leaving:
        lease = await grant(
            self._client,
            ttl_s=self._config.ttl_s,
            margin_s=self._config.margin_s,
            renew_s=self._config.renew_interval_s,
        )
        self._apply(leadership.LeaseGranted(lease.id, lease.deadline_s))
        if self._left.is_set():
            self._apply(leadership.Stopped(self.clock.now_s(), self._left_reason))
        listed = asyncio.Event()
        # The call to Campaign outlives the work: cancelling it makes etcd delete the key.
        campaign = asyncio.create_task(self._campaign(lease, listed))
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._renew(lease)),
                    group.create_task(self._watch_queue(lease, listed)),
                    group.create_task(self._watch_deadline()),
                ]
                state = await self._win(lease)
                if isinstance(state, Leading):
                    key = self._keyspace.candidate(self.election, lease.id)
                    await self._work(work, Term(self, key, state.token))
                for helper in helpers:
                    helper.cancel()
        finally:
            self._apply(leadership.Stopped(self.clock.now_s(), LossReason.CLOSED))  # does nothing after a loss
            left = self.state
            try:
                await self._release(lease)
            finally:
                campaign.cancel()
                await asyncio.wait({campaign})
                self._apply(leadership.Released())
        if not campaign.cancelled():
            campaign.result()
        assert isinstance(left, Leaving)
        return left

    async def _release(self, lease: Lease) -> None:
        """Revokes the lease, which deletes the key; a lease that cannot be revoked expires by itself."""
        try:
            await self._client.lease_revoke(lease.id)
        except LeaseNotFound:
            pass
        except EtcdError as error:
            logger.warning("%s could not revoke its lease for %r: %s", self.id, self.election, error)

    async def _campaign(self, lease: Lease, listed: asyncio.Event) -> None:
        """Calls etcd's Campaign once the watch is there. What it answers is one hint among others."""
        await listed.wait()
        try:
            name = self._keyspace.campaign_name(self.election)
            answer = await self._client.campaign(name, lease.id, self._record.encode())
        except EtcdError as error:
            self._apply(leadership.AttemptFailed(self.clock.now_s(), error))
        else:
            self._apply(leadership.CampaignReturned(answer.leader.rev))

    async def _renew(self, lease: Lease) -> None:
        """Moves the deadline with each renewal that etcd confirms."""
        backoff = Backoff(self._config.retry_s, self._config.retry_s * 2, self._rng)
        try:
            async with aclosing(renewals(self._client, lease, backoff)) as confirmed:
                async for renewal in confirmed:
                    self._apply(leadership.Renewed(renewal.deadline_s, renewal.latency_s))
        except LeaseNotFound:
            self._apply(leadership.LeaseLost(self.clock.now_s()))

    async def _watch_deadline(self) -> None:
        """Notices the deadline soon after it passed. `is_leader` and `check` do not wait for this."""
        while isinstance(state := self.state, Campaigning | Leading):
            left_s = state.deadline_s - self.clock.now_s()
            if left_s > 0:
                await self.clock.sleep_s(min(left_s, _DEADLINE_LOOK_S))
            else:
                self._apply(leadership.DeadlinePassed(self.clock.now_s()))

    async def _watch_queue(self, lease: Lease, listed: asyncio.Event) -> None:
        """Tells the state machine where the own key stands, for as long as etcd tells us."""
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        while True:
            try:
                await self._read_queue(lease, listed, backoff)
            except EtcdError as error:
                logger.warning("%s cannot watch the queue of %r: %s", self.id, self.election, error)
            await self.clock.sleep_s(backoff.next_s())

    async def _read_queue(self, lease: Lease, listed: asyncio.Event, backoff: Backoff) -> None:
        own = self._keyspace.candidate(self.election, lease.id)
        queue: dict[bytes, int] = {}  # the create revision of each candidate's key
        async with aclosing(follow(self._client, self._keyspace.campaign(self.election), backoff)) as items:
            async for item in items:
                match item:
                    case Snapshot(revision=revision, kvs=kvs):
                        queue = {kv.key: kv.create_revision for kv in kvs}
                        listed.set()
                    case Changes(revision=revision, events=events):
                        for event in events:
                            if event.type == KvEvent.DELETE:
                                queue.pop(event.kv.key, None)
                            else:
                                queue[event.kv.key] = event.kv.create_revision
                    case _:
                        continue
                token = queue.get(own, 0)
                is_oldest = token > 0 and token == min(queue.values())
                self._apply(leadership.QueueSeen(self.clock.now_s(), revision, token, is_oldest))

    async def _win(self, lease: Lease) -> State:
        """Waits until the own key is the oldest, and proves it. Returns Leading, or Leaving."""
        queue_s = self._client.config.call_timeout_s
        member = self._client.member
        try:
            async with asyncio.timeout(queue_s):
                await self._until(lambda state: not isinstance(state, Campaigning) or state.token > 0)
        except TimeoutError:
            self._client.avoid(member)
            hung = EtcdUnavailable(f"etcd did not queue the candidate within {queue_s:g} s")
            self._apply(leadership.AttemptFailed(self.clock.now_s(), hung))
        state = await self._until(lambda state: not isinstance(state, Campaigning) or state.may_prove)
        if isinstance(state, Campaigning):
            await self._prove(lease, state.token)
        return self.state

    async def _prove(self, lease: Lease, token: int) -> None:
        """Writes `elected_at` if and only if the key is still the one that won.

        A linearizable read would prove nothing: it can be stale after a process pause (etcd #20418). The write is
        safe to repeat, since it does not change the key's create revision.
        """
        key = self._keyspace.candidate(self.election, lease.id)
        value = replace(self._record, elected_at=self.clock.wall()).encode()
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        while isinstance(self.state, Campaigning):
            try:
                answer = await self._client.txn(
                    [txn.created_at(key, token)],
                    [txn.put(key, value, lease=lease.id)],
                    repeat=Repeat.SAFE,
                    timeout_s=self._client.config.attempt_timeout_s * 2,
                )
            except EtcdError as error:
                logger.warning("%s cannot prove that it leads %r: %s", self.id, self.election, error)
                await self.clock.sleep_s(backoff.next_s())
                continue
            now_s = self.clock.now_s()
            self._apply(leadership.Proved(now_s, token) if answer.succeeded else leadership.ProofRefused(now_s))

    # --- the work --------------------------------------------------------------------------------------------

    async def _work(self, work: Work, term: Term) -> None:
        """Runs the work until it ends or the term is lost; joined when this returns, even when cancelled."""
        working = asyncio.ensure_future(work(term))
        lost = asyncio.create_task(self._until(lambda state: not isinstance(state, Leading)))
        try:
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            self._note_end_of_work(working)
        finally:
            self._apply(leadership.Stopped(self.clock.now_s(), LossReason.CLOSED))  # only when cancelled
            lost.cancel()
            await self._join(working)

    def _note_end_of_work(self, working: asyncio.Future[Any]) -> None:
        if not working.done():
            return
        now_s = self.clock.now_s()
        if working.cancelled():
            self._apply(leadership.WorkReturned(now_s))
        elif error := working.exception():
            logger.error("the work of %s in %r failed", self.id, self.election, exc_info=error)
            self._apply(leadership.WorkFailed(now_s, error))
        else:
            self._apply(leadership.WorkReturned(now_s))

    async def _join(self, working: asyncio.Future[Any]) -> None:
        """Cancels the work and waits for its end, however long that takes; says so when it is past the deadline."""
        loss = self.state
        assert isinstance(loss, Leaving)
        cancelled = False
        reported = False
        # At its deadline the work still has the margin, half of which is kept for clocks that drift.
        deadline_s = loss.noticed_at_s + max(loss.margin_s, self._config.margin_s / 2)
        working.cancel()
        while not working.done():
            left_s = max(deadline_s - self.clock.now_s(), 0)
            try:
                await asyncio.wait({working}, timeout=None if reported else left_s)
            except asyncio.CancelledError:
                cancelled = True
                continue
            if not working.done() and not reported:
                reported = True
                logger.critical(
                    "the work of %s in %r has not stopped by its deadline (token %d, lost: %s): another leader can "
                    "start while it runs, and only fencing protects from it now",
                    self.id,
                    self.election,
                    loss.token,
                    loss.reason.value,
                )
        with suppress(asyncio.CancelledError, Exception):
            working.result()
        if cancelled:
            raise asyncio.CancelledError


__all__ = ["Candidate", "Closed", "Loss", "Term", "Transition", "Work"]
