"""The state of one candidate, the one place that changes it, and those who want to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from election import leadership
from election.clock import Clock
from election.errors import LossReason
from election.leadership import Event, Following, Leaving, State
from election.published import Published
from election.term import Loss, Term


@dataclass(frozen=True, slots=True)
class Transition:
    """What a candidate learned, and the state that it led to. `at` is for people; decisions use the event's."""

    at: datetime
    event: Event | None
    state: State


class Machine:
    """Takes events and publishes the states that they lead to; `leadership.step` decides."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.transitions = Published(Transition(clock.wall(), None, Following()))
        self.term: Term | None = None
        """The term under way; set by who runs its work."""
        self.loss: Loss | None = None
        """How the last term ended."""

    @property
    def state(self) -> State:
        """The present state."""
        return self.transitions.value.state

    def apply(self, event: Event) -> State:
        """Takes an event, and returns the state after it."""
        before = self.state
        state = leadership.step(before, event)
        at = self.clock.wall()
        if isinstance(state, Leaving) and state is not before and state.token is not None:
            self.loss = Loss(state.token, state.reason, at, state.margin_s, state.error)
            if self.term is not None:
                self.term.end(self.loss)
                self.term = None
        if state != before or isinstance(event, leadership.Renewed | leadership.AttemptFailed):
            self.transitions.set(Transition(at, event, state))
        return state

    def stop(self, reason: LossReason) -> None:
        """Ends the attempt or term under way; does nothing when there is none."""
        self.apply(leadership.Stopped(self.clock.now_s(), reason))

    async def until(self, holds: Callable[[State], bool]) -> State:
        """Waits for a state for which `holds` is true."""
        return (await self.transitions.until(lambda transition: holds(transition.state))).state
