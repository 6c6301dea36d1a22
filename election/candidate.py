"""Stands for an election, and stands again: the life of a candidate around its attempts (`attempt.py`)."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from election import leadership
from election.attempt import Attempt, Candidacy
from election.backoff import Backoff
from election.clock import pause
from election.config import CandidateConfig, check_labels
from election.epoch import EpochGuard
from election.errors import AccessDenied, ElectionError, EtcdError, LossReason, NotLeader
from election.etcd.client import EtcdClient
from election.etcd.lease import grant, let_go
from election.keys import COLLECTOR_ELECTION, Keyspace, check_name
from election.leadership import Leading, Leaving, State
from election.machine import Machine, Transition
from election.predecessor import Predecessor
from election.queue import QueueWatch, succession
from election.reader import LeaderEvent
from election.records import CandidateRecord
from election.term import Loss, Term
from election.token import LARGEST_EPOCH, Token
from election.views import View
from election.watchdog import Watchdog

logger = logging.getLogger("election")

Work = Callable[[Term], Awaitable[Any]]


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
        guard: EpochGuard | None = None,
        watchdog: Watchdog | None = None,
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
        self._guard = guard or EpochGuard(client, keyspace)
        self._watchdog = watchdog
        self._rng = rng or random.Random()
        self._record = CandidateRecord(self.id, address, check_labels(labels or {}), priority)
        _elected(self._record).encode()  # a record that is too large is an error now, not at its proof
        self._process = os.getpid()
        self._machine = Machine(self.clock)
        self._watch: QueueWatch | None = None
        self._attempt: Attempt | None = None
        self._left = asyncio.Event()
        self._left_reason = LossReason.RESIGNED

    @property
    def state(self) -> State:
        """The present state; immutable."""
        return self._machine.state

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call.

        False in a process that was forked while this candidate led.
        """
        state = self.state
        return isinstance(state, Leading) and self.clock.now_s() < state.deadline_s and os.getpid() == self._process

    @property
    def loss(self) -> Loss | None:
        """How the last term of this candidate ended; None before the end of the first."""
        return self._machine.loss

    def transitions(self) -> AsyncGenerator[Transition]:
        """The present state and then every later one with the event that led to it, in order."""
        return self._machine.transitions.values()

    async def observe(self) -> AsyncGenerator[LeaderEvent]:
        """Who leads this election now, or that nobody does, and then every change, vacancies included.

        Whoever it is: this candidate, another, or another program's. It needs no `lead`, and a watch of its own. Where
        changes may have been missed, it is told as a RESET who leads then.

        Raises:
            EtcdError: etcd could not be asked at first; later such failures are waited out.
            TooSlow: the reader lags too far behind.
        """
        async with (
            View(self._client, self._keyspace, prefix=self._keyspace.campaign(self.election), rng=self._rng) as view,
            aclosing(view.watch_leader(self.election)) as events,
        ):
            async for event in events:
                yield event

    def leave(self, reason: LossReason = LossReason.RESIGNED) -> None:
        """Asks to stop: the work is cancelled and joined, the next in line is made the leader, and `lead` returns.

        It is final. Call it in the candidate's event loop, in a signal handler of asyncio for example.
        """
        self._left_reason = reason
        self._left.set()
        self._machine.stop(reason)

    def hand_over(self, to: str | None = None) -> None:
        """Ends the present term in favour of the next in line, or of the candidate named, and stands again.

        The work is cancelled and joined first. Those who wait before the one named lose their places and queue anew.
        When the successor has gone by then, the next in line leads.

        Raises:
            NotLeader: this candidate does not lead.
            ElectionError: nobody waits, or not the one named, or the key of another program would have to be
                passed over, which is never done. The term goes on.
        """
        state = self.state
        if not isinstance(state, Leading) or self._attempt is None or self._watch is None:
            raise NotLeader(f"{self.id} does not lead {self.election!r}", reason=LossReason.EXPIRED)
        if not succession(self._watch.queue.behind(state.token.revision), to):
            whom = f"candidate {to!r}" if to else "a candidate of ours"
            raise ElectionError(f"{whom} does not wait for {self.election!r}, or waits behind another program's key")
        self._attempt.successor = to
        self._machine.stop(LossReason.TRANSFERRED)

    async def lead(
        self, work: Work, *, once: bool = False, reraise: bool = False, where: Callable[[], str] | None = None
    ) -> Loss | None:
        """Stands for the election, runs `work(term)` in each term that it wins, and stands again after it.

        The work is cancelled when the term is lost, and joined before the key is released. So work that ignores its
        cancellation keeps a successor waiting; where the key or the lease is lost, those wait who have seen the term
        alive, but no longer than its deadline, and then only fencing protects. Either way the log says where the work
        hangs, once it is past its deadline: what `where()` tells, or else where its coroutine waits. A work that
        returns resigns. A work that raises ends the term with `work_failed`; the error is logged and kept in the Loss,
        and the candidate stands again after a pause, which doubles while the work fails.

        Returns after `leave`, or with `once` after the first term, the Loss of the last term (None: it had none).
        With `reraise` it does not stand again after work that failed, and raises its error once the key is released.
        Cancelling it cancels and joins the work, hands over and releases the key, each within the call timeout of the
        client, and raises CancelledError.

        Raises:
            EtcdError: when etcd cannot be used at the first attempt, RolledBack among them. Later such failures are
                retried for ever.
            ConfigError: when the granted TTL does not fit the settings, or the state folder cannot be used.
        """
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        contacted = False
        last_term: Loss | None = None
        async with self._standing(where) as candidacy:
            while not self._left.is_set():
                try:
                    left = await self._stand(candidacy, work)
                except EtcdError as error:
                    if not contacted:
                        raise
                    self._machine.apply(leadership.AttemptFailed(self.clock.now_s(), error))
                    logger.warning("%s cannot stand for %r: %s", self.id, self.election, error)
                else:
                    self._explain(left, is_first=not contacted)
                    contacted = True
                    if left.token:
                        last_term = self._machine.loss
                        if left.reason is not LossReason.WORK_FAILED:
                            backoff.reset()
                        elif reraise and left.error is not None:
                            raise left.error
                        if once:
                            break
                await pause(self.clock, backoff.next_s(), self._left)
            if self._left.is_set():
                self._machine.apply(leadership.Departed())
        return last_term

    def _explain(self, left: Leaving, *, is_first: bool) -> None:
        """Says why an attempt ended without a term, if etcd has refused it; raises what will not pass by itself."""
        if left.token is not None or not isinstance(left.error, EtcdError):
            return
        if is_first and isinstance(left.error, AccessDenied):
            raise left.error
        logger.warning("%s cannot stand for %r: %s", self.id, self.election, left.error)

    @asynccontextmanager
    async def _standing(self, where: Callable[[], str] | None) -> AsyncGenerator[Candidacy]:
        """Watches the queue while the candidate stands, over all its attempts."""
        if self._watch is not None:
            raise ElectionError(f"candidate {self.id!r} already stands for {self.election!r}: one lead() at a time")
        watch = self._watch = QueueWatch(self._client, self._keyspace, self.election, who=self.id)
        ask_s = self._config.renew_interval_s
        candidacy = Candidacy(
            self._client,
            self._keyspace,
            self.election,
            self._record,
            self._config,
            self._guard,
            watch,
            Predecessor(self._client, self._keyspace, watch, ask_s=ask_s, who=self.id),
            self._rng,
            where,
        )
        following = {
            asyncio.create_task(watch.run(candidacy.backoff())),
            asyncio.create_task(candidacy.predecessor.run()),
        }
        try:
            with ExitStack() as stack:
                if self._watchdog is not None:
                    grace_s = self._config.margin_s / 2
                    stack.enter_context(self._watchdog.watching(self._machine, who=candidacy.who, grace_s=grace_s))
                yield candidacy
        finally:
            self._watch = None
            for task in following:
                task.cancel()
            await asyncio.wait(following)

    async def _stand(self, candidacy: Candidacy, work: Work) -> Leaving:
        """One attempt, with a lease that nothing else uses or will use."""
        if self._config.near_leader:
            await self._client.approach_leader()
        seen = candidacy.watch.looks.value
        lease = await grant(
            self._client,
            ttl_s=self._config.ttl_s,
            margin_s=self._config.margin_s,
            renew_s=self._config.renew_interval_s,
        )
        try:
            epoch = await self._guard.admit(self.election, lease.revision, who=self.id)
        except ElectionError:
            await let_go(self._client, lease.id, whose=self.id)
            raise
        if seen is not None and seen.revision > lease.revision:
            candidacy.watch.forget()
        self._machine.apply(leadership.LeaseGranted(lease.id, lease.deadline_s))
        if self._left.is_set():
            self._machine.stop(self._left_reason)
        candidacy.predecessor.own_lease = lease.id
        attempt = self._attempt = Attempt(candidacy, self._machine, lease, epoch)

        def lead(token: Token) -> Awaitable[Any]:
            term = self._machine.term = Term(self, attempt.key, token)
            return _begun(work, term)

        try:
            return await attempt.run(lead)
        finally:
            self._attempt = None


def _elected(record: CandidateRecord) -> CandidateRecord:
    """The record as the proof will write it, at its longest."""
    return replace(record, elected_at=datetime.max.replace(tzinfo=UTC), epoch=LARGEST_EPOCH)


async def _begun(work: Work, term: Term) -> None:
    """The work of a term; a call that raises, before there is anything to await, is work that failed as well."""
    await work(term)
