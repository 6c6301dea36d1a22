"""A candidate that stands for an election on a caller's behalf.

The caller cannot be asked whether it has stopped, and a message to it can take any time. So whatever it is told holds
from when it SENT a message, by its own clock; and the key is held until the caller has said that its work has ended,
or until the latest moment up to which it was told that it may act.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from google.protobuf.duration_pb2 import Duration

from election.api.elections import loss_message
from election.api.statuses import reason_of
from election.candidate import Candidate
from election.clock import pause
from election.errors import BadField, CallerSilent, ElectionError, LossReason
from election.keys import Keyspace
from election.leadership import Campaigning, Leading, Leaving, Renewed
from election.pb.election.v1 import election_pb2 as pb
from election.term import Term
from election.token import Token
from election.work import to_the_end

_LETTING_GO_S = 0.1
"""How long before the deadline the caller has to stop, so that the server has let go of the key by then."""

_DRIFT_S = 0.4
"""By how much the caller's clock may be behind when it has counted what it was told; with the time of letting go it is
less than the smallest margin, so that the lease lasts longer."""

_LOOK_S = 0.5
"""The longest sleep of what compares clocks: asyncio's does not count the time of a suspend."""


class Standing:
    """One caller's candidacy: `run` stands, `take` is what the caller says, `answers` is what it is told."""

    def __init__(self, candidate: Candidate, keyspace: Keyspace, ttl_s: float, sequence: int) -> None:
        self._candidate = candidate
        self._keyspace = keyspace
        self._clock = candidate.clock
        self._ttl_s = ttl_s
        self._sequence, self._heard_at_s = sequence, candidate.clock.now_s()
        self._held: Token | None = None
        """The term whose key is held for the caller. Only of this one it is told that it may act."""
        self._told_until_s = float("-inf")
        self._stopped = asyncio.Event()
        self._silent = False
        self._over = False
        self._news = asyncio.Event()
        self._failure: pb.Failure | None = None

    # --- what the caller says ----------------------------------------------------------------------------------

    def take(self, request: pb.CampaignRequest) -> None:
        """A message of the caller's; raises BadField for one that cannot be."""
        if request.sequence <= self._sequence:
            raise BadField(
                f"sequence {request.sequence} comes after {self._sequence}: it has to grow", field="sequence"
            )
        self._sequence, self._heard_at_s = request.sequence, self._clock.now_s()
        match request.WhichOneof("action"):
            case "heartbeat":
                pass
            case "stopped":
                if self._held is not None and int(self._held) == request.stopped.token:
                    self._stopped.set()
            case "hand_over":
                self._hand_over(request.hand_over.to or None)
            case "resign":
                self._stopped.set()
                self._candidate.leave(LossReason.RESIGNED)
            case "stand":
                raise BadField("a call stands once: begin another call for another candidate", field="stand")
            case None:
                raise BadField("a message needs an action: a heartbeat, where there is nothing else", field="action")
        self._news.set()

    def leave(self) -> None:
        """Stands no more. The caller may still believe that it leads, and the key is held for as long."""
        self._candidate.leave(LossReason.CLOSED)
        self._news.set()

    def _hand_over(self, to: str | None) -> None:
        try:
            self._candidate.hand_over(to)
        except ElectionError as error:
            self._failure = pb.Failure(reason=reason_of(error), message=str(error))

    # --- what the caller is told -------------------------------------------------------------------------------

    async def answers(self) -> AsyncGenerator[pb.CampaignResponse]:
        """The present state, and again after everything that changes it or that the caller says; ends after `run`."""
        while True:
            self._news.clear()
            over = self._over
            yield self._answer()
            if over:
                return
            await self._news.wait()

    def _answer(self) -> pb.CampaignResponse:
        """What is granted here is remembered: the key is held for as long."""
        state, now_s = self._candidate.state, self._clock.now_s()
        answer = pb.CampaignResponse(sequence=self._sequence, state=pb.CampaignResponse.STATE_FOLLOWING)
        if self._failure is not None:
            answer.failure.CopyFrom(self._failure)
            self._failure = None
        if isinstance(state, Campaigning | Leading | Leaving):
            answer.lease = state.lease
            answer.key = self._keyspace.candidate(self._candidate.election, state.lease).decode()
        if self._held is not None and not self._stopped.is_set():
            answer.token = int(self._held)
            if isinstance(state, Leading) and state.token == self._held and now_s < state.deadline_s - _LETTING_GO_S:
                self._told_until_s = state.deadline_s - _LETTING_GO_S
                answer.state = pb.CampaignResponse.STATE_LEADING
                remaining = Duration()
                remaining.FromNanoseconds(int((self._told_until_s - self._heard_at_s) * 1e9))
                answer.remaining.CopyFrom(remaining)
                return answer
            answer.state = pb.CampaignResponse.STATE_STOPPING
        if isinstance(state, Leaving):
            answer.reason = loss_message(state.reason)
        elif self._candidate.loss is not None:
            answer.reason = loss_message(self._candidate.loss.reason)
        return answer

    # --- standing ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stands until the caller resigns, is silent for a TTL, or `leave`; the key is released when this returns.

        Raises:
            CallerSilent: it was the caller's silence.
            ElectionError: as `Candidate.lead` does.
        """
        helpers = [asyncio.create_task(self._tell_transitions()), asyncio.create_task(self._notice_silence())]
        try:
            await self._candidate.lead(self._hold)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            self._over = True
            self._news.set()
        if self._silent:
            raise CallerSilent(f"nothing was heard from {self._candidate.id} for {self._ttl_s:g} s: stand anew")

    async def _hold(self, term: Term) -> None:
        """The work of a term, as the server does it: it ends when the caller's has ended."""
        self._held, self._told_until_s = term.token, float("-inf")
        self._stopped.clear()
        self._news.set()
        try:
            await self._stopped.wait()
        finally:
            await to_the_end(self._until_the_caller_has_stopped())
            self._held = None

    async def _until_the_caller_has_stopped(self) -> None:
        """Waits whatever happens: also when an event loop that is interrupted cancels everything that runs in it."""
        self._news.set()
        over_at_s = self._told_until_s + _DRIFT_S
        while (left_s := over_at_s - self._clock.now_s()) > 0 and not self._stopped.is_set():
            with suppress(asyncio.CancelledError):
                await pause(self._clock, min(left_s, _LOOK_S), self._stopped)

    async def _tell_transitions(self) -> None:
        async for transition in self._candidate.transitions():
            if not isinstance(transition.event, Renewed):  # the caller is granted more when it is heard
                self._news.set()

    async def _notice_silence(self) -> None:
        while (left_s := self._heard_at_s + self._ttl_s - self._clock.now_s()) > 0:
            await self._clock.sleep_s(min(left_s, _LOOK_S))
        self._silent = True
        self._candidate.leave(LossReason.CLOSED)
