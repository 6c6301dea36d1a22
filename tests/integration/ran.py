"""What ran in an election and who leads it: what tests of candidates ask about, on a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from election import Candidate, CandidateConfig, LossReason, Term
from election.clock import BootClock
from election.leadership import Campaigning, Closed, Leading

ELECTION = "demo"
QUICK = CandidateConfig(ttl_s=3, retry_max_s=1.0)
# Several attempts fit between a missed renewal and the deadline, so that a term outlives an election in etcd; and each
# candidate stays at the member that the test has chosen for it.
STEADY = CandidateConfig(ttl_s=5, renew_s=0.5, near_leader=False)
CLOCK = BootClock()


@dataclass
class Span:
    """A piece of work that ran: from when until when, on the machine's clock."""

    term: Term
    began_s: float
    ended_s: float | None = None


@dataclass
class Ran:
    """All work that ran in one election."""

    spans: list[Span] = field(default_factory=list)

    async def work(self, term: Term) -> None:
        """Notes when it ran, and never ends by itself."""
        span = Span(term, CLOCK.now_s())
        self.spans.append(span)
        try:
            await asyncio.Event().wait()
        finally:
            span.ended_s = CLOCK.now_s()

    def check(self) -> None:
        """No two pieces of work overlap, and tokens strictly grow."""
        self.check_tokens()
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            assert before.ended_s is not None
            assert before.ended_s <= after.began_s

    def check_tokens(self) -> None:
        """Tokens strictly grow: all that holds when a leader is robbed whom the next one has not seen alive before."""
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            assert before.term.token < after.term.token

    @property
    def ids(self) -> list[str]:
        return [span.term.id for span in self.spans]


async def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def until_true(holds: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.02)


def leading(candidate: Candidate) -> Leading:
    assert isinstance(candidate.state, Leading)
    return candidate.state


def token(candidate: Candidate) -> int:
    """The create revision of the candidate's key, as it knows it; 0 while it has none."""
    match candidate.state:
        case Campaigning(created=created):
            return created
        case Leading(token=held):
            return held.revision
        case _:
            return 0


def reason(candidate: Candidate) -> LossReason | None:
    """Why the candidate's last term ended."""
    return candidate.loss.reason if candidate.loss else None


def lease(candidate: Candidate) -> int:
    assert isinstance(candidate.state, Campaigning | Leading)
    return candidate.state.lease


async def leads(ran: Ran, *candidates: Candidate, timeout_s: float = 20.0) -> Candidate:
    """The one of them that leads, when one does and its work has begun."""

    def works() -> bool:
        tokens = [token(candidate) for candidate in candidates if candidate.is_leader]
        return bool(ran.spans) and tokens == [ran.spans[-1].term.token.revision]

    await until(works, timeout_s)
    [leader] = [candidate for candidate in candidates if candidate.is_leader]
    return leader


async def led_to_its_deadline(candidate: Candidate) -> Leading:
    """Waits until the leader has lost its term: it leads until its deadline and not a moment longer."""
    state = leading(candidate)
    while isinstance(candidate.state, Leading):
        state, before_s = candidate.state, CLOCK.now_s()
        said_so, after_s = candidate.is_leader, CLOCK.now_s()
        assert before_s < state.deadline_s if said_so else after_s >= state.deadline_s
        await asyncio.sleep(0.002)
    assert not candidate.is_leader
    return state


async def queued(candidate: Candidate, task: asyncio.Task[Any] | None = None) -> None:
    """Waits until the candidate knows its key, or its task has ended."""
    await until(lambda: token(candidate) > 0 or (task is not None and task.done()))


async def queued_anew(candidate: Candidate, lost: int) -> None:
    """Waits until the candidate has lost the key with this token, and has a new one."""
    await until(lambda: token(candidate) > lost)


@asynccontextmanager
async def standing(ran: Ran, *candidates: Candidate) -> AsyncIterator[None]:
    """Lets candidates stand, in this order; all leave at the end."""
    tasks = []
    try:
        for candidate in candidates:
            tasks.append(asyncio.create_task(candidate.lead(ran.work)))
            await queued(candidate, tasks[-1])
        yield
    finally:
        for candidate in candidates:
            candidate.leave()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert all(candidate.state == Closed() for candidate in candidates)
