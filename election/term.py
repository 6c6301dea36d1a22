"""One term of leadership, as the work that runs in it sees it, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from election.clock import Clock
from election.errors import LossReason, NotLeader
from election.leadership import Leading, State


class Standing(Protocol):
    """What a term has to know of the candidate that leads it."""

    election: str
    id: str
    clock: Clock

    @property
    def state(self) -> State:
        """The present state."""
        ...

    def loss_of(self, token: int) -> LossReason:
        """Why the term with this token is over."""
        ...

    def hand_over(self, to: str | None = None) -> None:
        """Gives the leadership to somebody who waits."""
        ...


class Term:
    """One term of leadership, given to the work that runs in it.

    The token is the create revision of the candidate's key. Protected resources must check it: a process that was
    paused can wake up and write after its term, and only the resource can refuse that.
    """

    def __init__(self, candidate: Standing, key: bytes, token: int) -> None:
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

    def hand_over(self, to: str | None = None) -> None:
        """Ends the term in favour of the next in line, or of the candidate named; see `Candidate.hand_over`."""
        self.check()
        self._candidate.hand_over(to)


@dataclass(frozen=True, slots=True)
class Loss:
    """How a term ended. `margin_s` is what was left until the deadline when the loss was noticed."""

    token: int
    reason: LossReason
    margin_s: float
    error: BaseException | None
