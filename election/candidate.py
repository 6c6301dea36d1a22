"""Stands for an election, and stands again: the life of a candidate around its attempts (`attempt.py`)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from election import leadership
from election.attempt import Attempt
from election.backoff import Backoff
from election.clock import Clock
from election.config import CandidateConfig, check_labels
from election.errors import AccessDenied, ElectionError, EtcdError, LossReason, NotLeader
from election.etcd.client import EtcdClient
from election.etcd.lease import grant
from election.keys import COLLECTOR_ELECTION, Keyspace, check_name
from election.leadership import Event, Following, Leading, Leaving, State
from election.published import Published
from election.queue import succession
from election.records import CandidateRecord
from election.term import Loss, Term

logger = logging.getLogger("election")

Work = Callable[[Term], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Transition:
    """What a candidate learned, and the state that it led to. `at` is for people; decisions use the event's."""

    at: datetime
    event: Event | None
    state: State


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
        self._machine = _Machine(self.clock)
        self._attempt: Attempt | None = None
        self._left = asyncio.Event()
        self._left_reason = LossReason.RESIGNED
        self._standing = False

    @property
    def state(self) -> State:
        """The present state; immutable."""
        return self._machine.state

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        state = self.state
        return isinstance(state, Leading) and self.clock.now_s() < state.deadline_s

    def transitions(self) -> AsyncGenerator[Transition]:
        """The present state and then every later one with the event that led to it, in order."""
        return self._machine.transitions.values()

    def loss_of(self, token: int) -> LossReason:
        """Why the term with this token is over; `expired` while nobody has noticed yet that the deadline passed."""
        loss = self._machine.last_loss
        return loss.reason if loss and loss.token == token else LossReason.EXPIRED

    def leave(self, reason: LossReason = LossReason.RESIGNED) -> None:
        """Asks to stop: the work is cancelled and joined, the next in line is made the leader, and `lead` returns.

        It is final. Call it in the candidate's event loop, in a signal handler of asyncio for example.
        """
        self._left_reason = reason
        self._left.set()
        self._machine.apply(leadership.Stopped(self.clock.now_s(), reason))

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
        if not isinstance(state, Leading) or self._attempt is None:
            raise NotLeader(f"{self.id} does not lead {self.election!r}", reason=LossReason.EXPIRED)
        if not succession(self._attempt.queue.behind(state.token), to):
            whom = f"candidate {to!r}" if to else "a candidate of ours"
            raise ElectionError(f"{whom} does not wait for {self.election!r}, or waits behind another program's key")
        self._attempt.successor = to
        self._machine.apply(leadership.Stopped(self.clock.now_s(), LossReason.TRANSFERRED))

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
                    self._machine.apply(leadership.AttemptFailed(self.clock.now_s(), error))
                    logger.warning("%s cannot stand for %r: %s", self.id, self.election, error)
                else:
                    if not loss.token and isinstance(loss.error, EtcdError):
                        if not contacted and isinstance(loss.error, AccessDenied):
                            raise loss.error
                        logger.warning("%s cannot stand for %r: %s", self.id, self.election, loss.error)
                    contacted = True
                    if loss.token:
                        last_term = loss
                        backoff.reset()
                        if once:
                            break
                await self._pause(backoff.next_s())
            if self._left.is_set():
                self._machine.apply(leadership.Departed())
            if last_term is None:
                return None
            return Loss(last_term.token, last_term.reason, last_term.margin_s, last_term.error)
        finally:
            self._standing = False

    async def _stand(self, work: Work) -> Leaving:
        """One attempt, with a lease that nothing else uses or will use."""
        lease = await grant(
            self._client,
            ttl_s=self._config.ttl_s,
            margin_s=self._config.margin_s,
            renew_s=self._config.renew_interval_s,
        )
        self._machine.apply(leadership.LeaseGranted(lease.id, lease.deadline_s))
        if self._left.is_set():
            self._machine.apply(leadership.Stopped(self.clock.now_s(), self._left_reason))
        attempt = self._attempt = Attempt(
            self._machine,
            self._client,
            self._keyspace,
            self.election,
            self._record,
            lease,
            config=self._config,
            rng=self._rng,
        )
        try:
            return await attempt.run(lambda token: work(Term(self, attempt.key, token)))
        finally:
            self._attempt = None

    async def _pause(self, duration_s: float) -> None:
        """Waits between two attempts, but not for a candidate that was asked to leave."""
        waits = {asyncio.create_task(self.clock.sleep_s(duration_s)), asyncio.create_task(self._left.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class _Machine:
    """The state, the one place that changes it, and those who want to know."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.transitions = Published(Transition(clock.wall(), None, Following()))
        self.last_loss: Leaving | None = None

    @property
    def state(self) -> State:
        return self.transitions.value.state

    def apply(self, event: Event) -> State:
        before = self.state
        state = leadership.step(before, event)
        if isinstance(state, Leaving) and state is not before and state.token:
            self.last_loss = state
        if state != before or isinstance(event, leadership.Renewed | leadership.AttemptFailed):
            self.transitions.set(Transition(self.clock.wall(), event, state))
        return state

    async def until(self, holds: Callable[[State], bool]) -> State:
        return (await self.transitions.until(lambda transition: holds(transition.state))).state
