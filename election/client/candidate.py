"""A candidate without etcd: it stands through the gRPC API, and a server holds its key (`Elections.Campaign`).

It runs the same state machine as a candidate on etcd. What differs is where its deadline comes from: the server says
for how long the caller may act, counted from when the caller sent a message, and the caller's clock says when that was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any

from google.protobuf.duration_pb2 import Duration

from election import leadership
from election.api.elections import loss_from
from election.backoff import Backoff
from election.client.campaign_call import Call, CampaignCall
from election.client.servers import Servers
from election.clock import BootClock, Clock, pause
from election.config import CandidateConfig, check_labels
from election.errors import ConfigError, ElectionError, LossReason, NotLeader
from election.keys import check_name
from election.leadership import Following, Leading, Leaving, State
from election.machine import Machine
from election.pb.election.v1 import election_pb2 as pb
from election.term import Loss, Term
from election.token import Token
from election.watchdog import Watchdog
from election.work import run_work

logger = logging.getLogger("election")

Work = Callable[[Term], Awaitable[Any]]
_LOOK_S = 0.5
"""The longest sleep of the deadline's watchman: asyncio's clock does not count the time of a suspend."""


class RemoteCandidate:
    """A candidate for one election; made by `Client.candidate`. One `lead` at a time.

    The promises are those of a `Candidate`, with one more way to lose a term: the connection to the server. Then the
    work is cancelled at once, and nobody else leads before the deadline that it had; a server that was killed holds the
    key for up to a TTL more.
    """

    def __init__(
        self,
        servers: Servers,
        converse: Callable[[], Call],
        election: str,
        *,
        id: str,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        ttl_s: int = CandidateConfig().ttl_s,
        watchdog: Watchdog | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.election = check_name("election", election)
        self.id = check_name("candidate", id)
        self.clock = clock or BootClock()
        self._config = CandidateConfig(ttl_s=ttl_s)
        self._servers = servers
        self._converse = converse
        self._stand = pb.CampaignRequest.Stand(
            election=election,
            id=id,
            address=address,
            labels=check_labels(labels or {}),
            priority=priority,
            ttl=Duration(seconds=ttl_s),
        )
        self._watchdog = watchdog
        self._rng = rng or random.Random()
        self._process = os.getpid()
        self._machine = Machine(self.clock)
        self._call: CampaignCall | None = None
        self._key = b""
        self._standing = False
        self._left = asyncio.Event()

    @property
    def state(self) -> State:
        """The present state; immutable."""
        return self._machine.state

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        state = self.state
        return isinstance(state, Leading) and self.clock.now_s() < state.deadline_s and os.getpid() == self._process

    @property
    def loss(self) -> Loss | None:
        """How the last term of this candidate ended; None before the end of the first."""
        return self._machine.loss

    def leave(self, reason: LossReason = LossReason.RESIGNED) -> None:
        """Asks to stop: the work is cancelled and joined, the next in line is made the leader, and `lead` returns."""
        self._left.set()
        self._machine.stop(reason)

    def hand_over(self, to: str | None = None) -> None:
        """Asks the server to end the term in favour of the next in line, or of the candidate named.

        What the server refuses is logged, and the term goes on.

        Raises:
            NotLeader: this candidate does not lead.
        """
        if not self.is_leader or self._call is None:
            raise NotLeader(f"{self.id} does not lead {self.election!r}", reason=LossReason.EXPIRED)
        self._call.say(pb.CampaignRequest(hand_over=pb.CampaignRequest.HandOver(to=to or "")))

    async def lead(self, work: Work, *, once: bool = False, reraise: bool = False) -> Loss | None:
        """Stands for the election, runs `work(term)` in each term that it wins, and stands again after it.

        It returns, and treats its work and its cancellation, as `Candidate.lead` does. Where a server fails, it stands
        again through another one.

        Raises:
            ElectionError: none of the servers has answered anything; or one has refused what this candidate is.
        """
        if self._standing:
            raise ElectionError(f"candidate {self.id!r} already stands for {self.election!r}: one lead() at a time")
        self._standing = True
        first = self.loss
        try:
            with ExitStack() as stack:
                if self._watchdog is not None:
                    grace_s = self._config.margin_s / 2
                    stack.enter_context(self._watchdog.watching(self._machine, who=self._who, grace_s=grace_s))
                await self._lead(work, once=once, reraise=reraise)
        finally:
            self._standing = False
        return None if self.loss is first else self.loss

    async def _lead(self, work: Work, *, once: bool, reraise: bool) -> None:
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        refused, heard = 0, False
        while not self._left.is_set():
            before = self.loss
            call = self._call = CampaignCall(self._servers, self._converse, self.clock, self._config.renew_interval_s)
            try:
                async with call.opened(self._stand):
                    await self._stand_in(call, work, once=once)
            except ConfigError:
                raise
            except ElectionError as error:
                refused += 1
                if not (heard or call.heard) and refused >= len(self._servers.addresses):
                    raise
                logger.warning("%s stands anew: %s", self._who, error)
            finally:
                self._call = None
            heard = heard or call.heard
            if (loss := self.loss) is not None and loss is not before:
                if loss.reason is not LossReason.WORK_FAILED:
                    backoff.reset()
                elif reraise and loss.error is not None:
                    raise loss.error
            if not self._left.is_set():
                await pause(self.clock, backoff.next_s(), self._left)

    @property
    def _who(self) -> str:
        return f"{self.id} in {self.election!r}"

    async def _stand_in(self, call: CampaignCall, work: Work, *, once: bool) -> None:
        """Terms as they come, until the call breaks, the work fails or the candidate leaves; no work runs after it."""
        helpers: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._listen(call)),
            asyncio.create_task(self._watch_deadline()),
            asyncio.create_task(self._left.wait()),
        ]
        try:
            while True:
                elected = asyncio.create_task(self._machine.until(lambda state: not isinstance(state, Following)))
                try:
                    await asyncio.wait({elected, *helpers}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    elected.cancel()
                if isinstance(state := self.state, Leading):
                    term = self._machine.term = Term(self, self._key, state.token)
                    await run_work(self._machine, _begun(work, term), margin_s=self._config.margin_s, who=self._who)
                if isinstance(state := self.state, Leaving):
                    self._machine.apply(leadership.Released())
                    assert state.token is not None
                    call.say(pb.CampaignRequest(stopped=pb.CampaignRequest.Stopped(token=int(state.token))))
                    if once:
                        self._left.set()
                    if once or state.reason is LossReason.WORK_FAILED:
                        return
                elif self._left.is_set():
                    return
                for helper in helpers:
                    if helper.done():
                        helper.result()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            if isinstance(self.state, Leaving):
                self._machine.apply(leadership.Released())

    # --- what the server says ----------------------------------------------------------------------------------

    async def _listen(self, call: CampaignCall) -> None:
        """Tells the state machine what each answer says; when the connection is lost, so is the term."""
        try:
            while True:
                self._take(*await call.answer())
        except ElectionError:
            self._machine.stop(LossReason.EXPIRED)
            raise

    def _take(self, answer: pb.CampaignResponse, sent_at_s: float) -> None:
        if answer.HasField("failure"):
            logger.warning("%s cannot hand over: %s", self._who, answer.failure.message)
        state, now_s = self.state, self.clock.now_s()
        if answer.state == pb.CampaignResponse.STATE_LEADING:
            deadline_s = sent_at_s + answer.remaining.ToNanoseconds() / 1e9
            token = Token.of_int(answer.token)
            if isinstance(state, Following) and now_s < deadline_s and self._is_new(token):
                self._key = answer.key.encode()
                self._machine.apply(leadership.LeaseGranted(answer.lease, deadline_s))
                seen = leadership.QueueSeen(now_s, token.revision, token.revision, is_oldest=True, epoch=token.epoch)
                self._machine.apply(seen)
            elif isinstance(state, Leading) and state.token == token:
                self._machine.apply(leadership.Renewed(deadline_s, now_s - sent_at_s))
        elif isinstance(state, Leading):
            self._machine.stop(loss_from(answer.reason) or LossReason.EXPIRED)

    def _is_new(self, token: Token) -> bool:
        """Whether this term may begin: what the server said before it heard of the last one's end comes late."""
        return not self._left.is_set() and (self.loss is None or token > self.loss.token)

    async def _watch_deadline(self) -> None:
        """Notices the deadline soon after it passed. `is_leader` and `check` do not wait for this."""
        while True:
            state = await self._machine.until(lambda state: isinstance(state, Leading))
            while isinstance(state := self.state, Leading):
                left_s = state.deadline_s - self.clock.now_s()
                if left_s <= 0:
                    self._machine.apply(leadership.DeadlinePassed(self.clock.now_s()))
                else:
                    await self.clock.sleep_s(min(left_s, _LOOK_S))


async def _begun(work: Work, term: Term) -> None:
    await work(term)
