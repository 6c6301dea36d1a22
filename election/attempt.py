"""One attempt to lead: from a fresh lease, through the queue and maybe a term, to the release of the key.

The Campaign RPC queues. The watch tells. A write proves. The deadline ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Protocol

from election import leadership
from election.backoff import Backoff
from election.clock import Clock
from election.config import CandidateConfig
from election.errors import EtcdError, EtcdUnavailable, LeaseNotFound, LossReason
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import Lease, let_go, renewals
from election.etcd.watch import Changes, Snapshot, follow
from election.keys import Keyspace
from election.leadership import Campaigning, Event, Leading, Leaving, State
from election.queue import Queue, succession
from election.records import Candidate as Queued
from election.records import CandidateRecord

logger = logging.getLogger("election")

_DEADLINE_LOOK_S = 1.0
"""The longest sleep of the deadline's watchman: asyncio's clock does not count the time of a suspend."""

_KEY_IS_GONE = (LossReason.EXPIRED, LossReason.KEY_DELETED)
"""The losses after which there is nothing to hand over."""

_HANDOVER_TRIES = 3
"""The queue may change while the work is joined; each try begins from a new list."""


class Machine(Protocol):
    """The state machine of the candidate that makes the attempt."""

    clock: Clock

    @property
    def state(self) -> State:
        """The present state."""
        ...

    def apply(self, event: Event) -> State:
        """Takes an event, and returns the state after it."""
        ...

    async def until(self, holds: Callable[[State], bool]) -> State:
        """Waits for a state for which `holds` is true."""
        ...


class Attempt:
    """One lease and one key. Nothing of it is used for another attempt."""

    def __init__(
        self,
        machine: Machine,
        client: EtcdClient,
        keyspace: Keyspace,
        election: str,
        record: CandidateRecord,
        lease: Lease,
        *,
        config: CandidateConfig,
        rng: random.Random,
    ) -> None:
        self.key = keyspace.candidate(election, lease.id)
        self.queue = Queue(election)
        self.successor: str | None = None
        """The id of the candidate to hand over to; None for the next in line."""
        self._machine = machine
        self._clock = machine.clock
        self._client = client
        self._prefix = keyspace.campaign(election)
        self._name = keyspace.campaign_name(election)
        self._who = f"{record.id} in {election!r}"
        self._record = record
        self._lease = lease
        self._config = config
        self._rng = rng
        self._listed = asyncio.Event()

    async def run(self, lead: Callable[[int], Awaitable[Any]]) -> Leaving:
        """Stands, runs `lead(token)` while leading, and releases the key; returns how it ended.

        `lead` is cancelled at a loss, and joined before the key is released. Cancellation does the same, and is
        passed on after the release.
        """
        # The call to Campaign outlives the work: cancelling it makes etcd delete the key.
        campaign = asyncio.create_task(self._campaign())
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(run()) for run in (self._renew, self._watch_queue, self._watch_deadline)]
                state = await self._win()
                if isinstance(state, Leading):
                    await self._work(lead(state.token))
                for helper in helpers:
                    helper.cancel()
        finally:
            self._stop(LossReason.CLOSED)  # does nothing after a loss
            left = self._machine.state
            assert isinstance(left, Leaving)
            try:
                await self._release(left)
            finally:
                campaign.cancel()
                await asyncio.wait({campaign})
                self._machine.apply(leadership.Released())
        if not campaign.cancelled():
            campaign.result()
        return left

    def _stop(self, reason: LossReason) -> None:
        self._machine.apply(leadership.Stopped(self._clock.now_s(), reason))

    def _backoff(self) -> Backoff:
        return Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)

    # --- what is learned -------------------------------------------------------------------------------------

    async def _campaign(self) -> None:
        """Calls etcd's Campaign once the watch is there. What it answers is one hint among others."""
        await self._listed.wait()
        try:
            answer = await self._client.campaign(self._name, self._lease.id, self._record.encode())
        except EtcdError as error:
            if not await self._is_queued():
                self._machine.apply(leadership.AttemptFailed(self._clock.now_s(), error))
        else:
            self._machine.apply(leadership.CampaignReturned(answer.leader.rev))

    async def _is_queued(self) -> bool:
        """Whether the key is there although the call failed: then the watch will show it, and decides."""
        try:
            return (await self._client.get(self.key))[0] is not None
        except EtcdError:
            return False

    async def _renew(self) -> None:
        """Moves the deadline with each renewal that etcd confirms."""
        backoff = Backoff(self._config.retry_s / 4, self._config.retry_s, self._rng)
        try:
            async with aclosing(renewals(self._client, self._lease, backoff)) as confirmed:
                async for renewal in confirmed:
                    self._machine.apply(leadership.Renewed(renewal.deadline_s, renewal.latency_s))
        except LeaseNotFound:
            self._machine.apply(leadership.LeaseLost(self._clock.now_s()))

    async def _watch_deadline(self) -> None:
        """Notices the deadline soon after it passed. `is_leader` and `check` do not wait for this."""
        while isinstance(state := self._machine.state, Campaigning | Leading):
            left_s = state.deadline_s - self._clock.now_s()
            if left_s > 0:
                await self._clock.sleep_s(min(left_s, _DEADLINE_LOOK_S))
            else:
                self._machine.apply(leadership.DeadlinePassed(self._clock.now_s()))

    async def _watch_queue(self) -> None:
        """Tells the state machine where the own key stands, for as long as etcd tells us."""
        backoff = self._backoff()
        while True:
            try:
                async with aclosing(follow(self._client, self._prefix, backoff)) as items:
                    async for item in items:
                        if isinstance(item, Snapshot):
                            self.queue.replace(item)
                            self._listed.set()
                            self._look(item.revision)
                        elif isinstance(item, Changes):
                            self.queue.change(item)
                            self._look(item.revision)
            except EtcdError as error:
                logger.warning("%s: the queue cannot be watched: %s", self._who, error)
            await self._clock.sleep_s(backoff.next_s())

    def _look(self, revision: int) -> None:
        own = self.queue.get(self.key)
        self._machine.apply(
            leadership.QueueSeen(
                at_s=self._clock.now_s(),
                revision=revision,
                token=own.token if own else 0,
                is_oldest=self.queue.is_oldest(self.key),
                is_proven=own is not None and own.elected_at is not None,
            )
        )

    # --- winning ---------------------------------------------------------------------------------------------

    async def _win(self) -> State:
        """Waits until the own key is the oldest, and proves it. Returns Leading, or Leaving."""
        queue_s = self._client.config.call_timeout_s
        member = self._client.member
        try:
            async with asyncio.timeout(queue_s):
                await self._machine.until(lambda state: not isinstance(state, Campaigning) or state.token > 0)
        except TimeoutError:
            self._client.avoid(member)
            hung = EtcdUnavailable(f"etcd did not queue the candidate within {queue_s:g} s")
            self._machine.apply(leadership.AttemptFailed(self._clock.now_s(), hung))
        state = await self._machine.until(lambda state: not isinstance(state, Campaigning) or state.may_prove)
        if isinstance(state, Campaigning):
            await self._prove(state.token)
        return self._machine.state

    async def _prove(self, token: int) -> None:
        """Writes `elected_at` if and only if the key is still the one that won.

        A linearizable read would prove nothing: it can be stale after a process pause (etcd #20418). The write is
        safe to repeat, since it does not change the key's create revision.
        """
        value = replace(self._record, elected_at=self._clock.wall()).encode()
        backoff = self._backoff()
        while isinstance(self._machine.state, Campaigning):
            try:
                answer = await self._client.txn(
                    [txn.created_at(self.key, token)],
                    [txn.put(self.key, value, lease=self._lease.id)],
                    repeat=Repeat.SAFE,
                    timeout_s=self._client.config.attempt_timeout_s * 2,
                )
            except EtcdError as error:
                logger.warning("%s: the leadership cannot be proven: %s", self._who, error)
                await self._clock.sleep_s(backoff.next_s())
                continue
            now_s = self._clock.now_s()
            self._machine.apply(leadership.Proved(now_s, token) if answer.succeeded else leadership.ProofRefused(now_s))

    # --- the work --------------------------------------------------------------------------------------------

    async def _work(self, work: Awaitable[Any]) -> None:
        """Runs the work until it ends or the term is lost; joined when this returns, even when cancelled."""
        working = asyncio.ensure_future(work)
        lost = asyncio.create_task(self._machine.until(lambda state: not isinstance(state, Leading)))
        try:
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            self._note_end_of_work(working)
        finally:
            self._stop(LossReason.CLOSED)  # only when cancelled
            lost.cancel()
            await self._join(working)

    def _note_end_of_work(self, working: asyncio.Future[Any]) -> None:
        if not working.done():
            return
        now_s = self._clock.now_s()
        if not working.cancelled() and (error := working.exception()):
            logger.error("%s: the work failed", self._who, exc_info=error)
            self._machine.apply(leadership.WorkFailed(now_s, error))
        else:
            self._machine.apply(leadership.WorkReturned(now_s))

    async def _join(self, working: asyncio.Future[Any]) -> None:
        """Cancels the work and waits for its end, however long that takes; says so when it is past the deadline."""
        loss = self._machine.state
        assert isinstance(loss, Leaving)
        cancelled = False
        reported = False
        # At its deadline the work still has the margin, half of which is kept for clocks that drift.
        deadline_s = loss.noticed_at_s + max(loss.margin_s, self._config.margin_s / 2)
        working.cancel()
        while not working.done():
            left_s = max(deadline_s - self._clock.now_s(), 0)
            try:
                await asyncio.wait({working}, timeout=None if reported else left_s)
            except asyncio.CancelledError:
                cancelled = True
                continue
            if not working.done() and not reported:
                reported = True
                logger.critical(
                    "%s: the work has not stopped by its deadline (token %d, lost: %s): another leader can start "
                    "while it runs, and only fencing protects from it now",
                    self._who,
                    loss.token,
                    loss.reason.value,
                )
        with suppress(asyncio.CancelledError, Exception):
            working.result()
        if cancelled:
            raise asyncio.CancelledError

    # --- letting go ------------------------------------------------------------------------------------------

    async def _release(self, left: Leaving) -> None:
        """Gives the key to somebody who waits, or lets it go; a lease that cannot be revoked expires by itself."""
        if left.token and left.reason not in _KEY_IS_GONE:
            try:
                await self._hand_over(left.token)
            except EtcdError as error:  # without a successor of its own choice, the next in line leads
                logger.warning("%s: the leadership could not be handed over: %s", self._who, error)
        await let_go(self._client, self._lease.id, whose=self._who)

    async def _hand_over(self, token: int) -> None:
        """Makes the next in line, or the one who was named, the leader, in one transaction; nothing when it cannot.

        The transaction compares the keys of both, so it is the successor's proof: the successor leads as soon as
        its watch shows it. Those in between lose their keys and queue anew. The key of another program is never
        deleted, and never given anything: it leads by being the oldest.
        """
        for _ in range(_HANDOVER_TRIES):
            heirs = succession(self.queue.behind(token), self.successor)
            if not heirs or await self._pass_on(token, heirs):
                return
            self.queue.replace(Snapshot.of(await self._client.list(self._prefix)))

    async def _pass_on(self, token: int, heirs: Sequence[Queued]) -> bool:
        *between, heir = heirs
        record = heir.record
        assert record is not None
        value = replace(record, elected_at=self._clock.wall()).encode()
        answer = await self._client.txn(
            [txn.created_at(self.key, token), *(txn.created_at(each.key.encode(), each.token) for each in heirs)],
            [
                txn.delete(self.key),
                *(txn.delete(each.key.encode()) for each in between),
                txn.put(heir.key.encode(), value, keep_lease=True),
            ],
        )
        return answer.succeeded
