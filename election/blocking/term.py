"""One term of leadership, without asyncio."""

from __future__ import annotations

from election import term as terms
from election.background import Background
from election.term import Loss
from election.token import Token


class Term:
    """One term of leadership; see `election.Term`. Any number of threads may use it."""

    def __init__(self, background: Background, inner: terms.Term) -> None:
        self.inner = inner
        self.election = inner.election
        self.id = inner.id
        self.key = inner.key
        self.token: Token = inner.token
        self._background = background

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        return self.inner.is_leader

    def remaining_s(self) -> float:
        """Seconds until the deadline, as it stands now; 0 when the term is over, and in a forked process."""
        return self.inner.remaining_s()

    def check(self) -> None:
        """Returns if this process may act now, and raises NotLeader otherwise; see `election.Term.check`."""
        self.inner.check()

    @property
    def loss(self) -> Loss | None:
        """How the term ended; None while nobody has noticed that it did."""
        return self.inner.loss

    def wait_lost(self, timeout_s: float | None = None) -> Loss | None:
        """Waits until the loss of the term is noticed; None when it was not within `timeout_s`."""

        async def wait() -> Loss:
            return await self.inner.lost

        return self._background.call_within(wait(), timeout_s)

    def hand_over(self, to: str | None = None) -> None:
        """Ends the term in favour of somebody who waits, once the work has ended; see `election.Term.hand_over`."""

        async def hand_over() -> None:
            self.inner.hand_over(to)

        self._background.call(hand_over())
