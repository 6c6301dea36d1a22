"""One term of leadership, as the work that runs in it sees it, and how it ended."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from election.clock import Clock
from election.errors import LossReason, NotLeader
from election.leadership import Leading, State
from election.published import Published
from election.token import Token


@dataclass(frozen=True, slots=True)
class Loss:
    """How a term ended.

    `noticed_at` is when the candidate learned of it, and `margin_s` what was left then until its deadline: negative
    when it noticed too late, because the process was stopped, for example. `error` is that of work that failed.
    """

    token: Token
    reason: LossReason
    noticed_at: datetime
    margin_s: float
    error: BaseException | None


class Standing(Protocol):
    """What a term has to know of the candidate that leads it."""

    election: str
    id: str
    clock: Clock

    @property
    def state(self) -> State:
        """The present state."""
        ...

    def hand_over(self, to: str | None = None) -> None:
        """Gives the leadership to somebody who waits."""
        ...


class Term:
    """One term of leadership, given to the work that runs in it.

    Protected resources must check the token: a process that was paused can wake up and write after its term, and only
    the resource can refuse that. A process that is forked during a term does not lead, whatever its copy of the term
    remembers: nobody renews for it.
    """

    def __init__(self, candidate: Standing, key: bytes, token: Token) -> None:
        self._candidate = candidate
        self._process = os.getpid()
        self._ended: Published[Loss | None] = Published(None)
        self.election = candidate.election
        self.id = candidate.id
        self.key = key
        self.token = token

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        return self.remaining_s() > 0

    def remaining_s(self) -> float:
        """Seconds until the deadline, as it stands now; 0 when the term is over, and in a forked process."""
        state = self._candidate.state
        if not isinstance(state, Leading) or state.token != self.token or os.getpid() != self._process:
            return 0.0
        return max(state.deadline_s - self._candidate.clock.now_s(), 0.0)

    def check(self) -> None:
        """Returns if this process may act now, and raises otherwise.

        Call it before every step that must not happen outside of the term. True at the moment of the call and for
        no longer; for what reaches another machine, send the token along.

        Raises:
            NotLeader: with the reason of the loss; `expired` while nobody has noticed yet that the deadline passed.
        """
        if self.is_leader:
            return
        if os.getpid() != self._process:
            raise NotLeader(
                f"this process was forked from the one that leads {self.election!r}, and does not lead",
                reason=LossReason.CLOSED,
            )
        reason = self.loss.reason if self.loss else LossReason.EXPIRED
        raise NotLeader(
            f"{self.id} does not lead {self.election!r} any more (token {self.token}): {reason.value}", reason=reason
        )

    @property
    def loss(self) -> Loss | None:
        """How the term ended; None while nobody has noticed that it did."""
        return self._ended.value

    @property
    def lost(self) -> Awaitable[Loss]:
        """To be awaited, by any number of tasks and at any time: the loss, as soon as it is noticed.

        The work itself need not: it is cancelled then. Cancelling the wait does nothing else.
        """
        return _Lost(self._ended)

    def hand_over(self, to: str | None = None) -> None:
        """Ends the term in favour of the next in line, or of the candidate named; see `Candidate.hand_over`."""
        self.check()
        self._candidate.hand_over(to)

    def end(self, loss: Loss) -> None:
        """Called by the candidate, once."""
        self._ended.set(loss)


@dataclass(frozen=True, slots=True)
class _Lost:
    ended: Published[Loss | None]

    def __await__(self) -> Generator[Any, None, Loss]:
        loss = yield from self.ended.until(lambda loss: loss is not None).__await__()
        assert loss is not None
        return loss
