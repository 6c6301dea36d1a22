"""The lives of one agent in this process: registered, lost, registered again; and who may know of it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from election.errors import AgentLost, LossReason
from election.published import Published
from election.registration import Registration


@dataclass(frozen=True, slots=True)
class _Life:
    """Where an agent stands: registered; lost, and why; and whether it stays so."""

    registration: Registration | None = None
    loss: LossReason | None = None
    over: bool = False


class Lives:
    """Where an agent stands, and how it came there. Its owner says what happens; it does nothing by itself."""

    def __init__(self, agent: str, *, register_again: bool) -> None:
        self._agent = agent
        self._register_again = register_again
        self._life = Published(_Life())
        self._process = os.getpid()
        self.failure: BaseException | None = None
        """What nobody expected, and why the agent is not kept alive any more."""

    @property
    def registration(self) -> Registration | None:
        """The present registration; None while there is none."""
        return self._life.value.registration

    @property
    def over(self) -> bool:
        """Whether it stays lost, or has left."""
        return self._life.value.over

    def prepare(self) -> None:
        """It is about to register, for the first time or after it has left."""
        self.failure = None
        if self.over:
            self._life.set(_Life())

    def begin(self, registration: Registration) -> None:
        """It is registered."""
        self._life.set(_Life(registration))

    def lose(self, reason: LossReason) -> None:
        """The registration is over."""
        self._life.set(_Life(loss=reason, over=not self._register_again))

    def leave(self) -> None:
        """It leaves; harmless when all is over."""
        if not self.over:
            self._life.set(_Life(loss=LossReason.RESIGNED, over=True))

    def fail(self, error: BaseException | None) -> None:
        """Nobody keeps it alive any more."""
        self.failure = error
        self._life.set(_Life(loss=LossReason.CLOSED, over=True))

    # --- for those who ask -------------------------------------------------------------------------------------

    def registrations(self) -> AsyncGenerator[Registration | None]:
        """The present registration and every later one, and None for each loss; ends when it stays lost, or leaves."""
        return _registrations(self._life.values())

    @property
    def lost(self) -> Awaitable[LossReason]:
        """To be awaited, by any number of tasks: why the present registration ended, as soon as that is noticed."""
        return _Lost(self._life)

    def check(self, remaining_s: float) -> Registration:
        """The registration, if there is one whose deadline is in the future; raises AgentLost."""
        registration = self.registration
        if os.getpid() != self._process:
            raise AgentLost(f"agent {self._agent!r} was registered before this process was forked: register here anew")
        if registration is not None and remaining_s > 0:
            return registration
        if self.over or not self._register_again:
            raise AgentLost(f"agent {self._agent!r} has no lease any more, and stays lost") from self.failure
        raise AgentLost(f"agent {self._agent!r} has no living lease at present: wait until it has registered again")


@dataclass(frozen=True, slots=True)
class _Lost:
    lives: Published[_Life]

    def __await__(self) -> Generator[Any, None, LossReason]:
        life = yield from self.lives.until(lambda life: life.loss is not None).__await__()
        assert life.loss is not None
        return life.loss


async def _registrations(lives: AsyncGenerator[_Life]) -> AsyncGenerator[Registration | None]:
    async with aclosing(lives):
        async for life in lives:
            yield life.registration
            if life.over:
                return
