"""A candidate, without asyncio: it stands in the background, and a thread does the work of its terms."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from election import candidate as asynchronous
from election import term as terms
from election.background import Background
from election.blocking.term import Term
from election.errors import LossReason, NotLeader
from election.leadership import State
from election.reader import LeaderEvent
from election.stuck import where_thread
from election.term import Loss

Work = Callable[[Term], Any]


class _Body:
    """The work of one term, which another thread does."""

    def __init__(self, term: Term) -> None:
        self.term = term
        self._over = asyncio.Event()
        self._error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        """Called in the loop; the first call counts."""
        if not self._over.is_set():
            self._error = error
            self._over.set()

    async def joined(self) -> None:
        """Waits for the end, however often it is cancelled."""
        while not self._over.is_set():
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                continue
        if self._error is not None:
            raise self._error


class _Standing:
    """A candidate that stands in the background, for a thread that does the work of its terms."""

    def __init__(self, background: Background, candidate: asynchronous.Candidate, *, once: bool, reraise: bool) -> None:
        self._background = background
        self._thread = threading.get_ident()
        self._bodies: SimpleQueue[_Body | None] = SimpleQueue()
        self._body: _Body | None = None
        self._abandoned = False
        self.running = background.begin(self._stand(candidate, once, reraise), lambda: self._bodies.put(None))

    async def _stand(self, candidate: asynchronous.Candidate, once: bool, reraise: bool) -> Loss | None:
        return await candidate.lead(self._hold, once=once, reraise=reraise, where=lambda: where_thread(self._thread))

    async def _hold(self, term: terms.Term) -> None:
        if not self._abandoned:
            self._body = _Body(Term(self._background, term))
            self._bodies.put(self._body)
            await self._body.joined()

    def next(self, timeout_s: float | None = None) -> _Body | None:
        """Waits for the next term; None when there will be none. Raises TimeoutError."""
        try:
            return self._bodies.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"not elected within {timeout_s:g} s") from None

    def ended(self, body: _Body, error: Exception | None = None) -> None:
        """The work of a term has ended; nothing happens in a process that was forked in the middle of it."""
        self._background.soon(lambda: body.end(error))

    def finish(self, body: _Body, error: Exception | None = None) -> None:
        """The work of the last term has ended: waits until the key is released."""
        self.ended(body, error)
        if self._background.is_ours:
            self.running.result()

    def abandon(self) -> None:
        """Stands no longer, and waits until the key is released."""
        if self._background.is_ours:
            self.running.cancel(then=self._abandon)

    def _abandon(self) -> None:
        self._abandoned = True
        if self._body is not None:
            self._body.end()


class Candidate:
    """A candidate for one election; made by `Store.candidate`. One `lead` at a time."""

    def __init__(self, background: Background, inner: asynchronous.Candidate) -> None:
        self.election = inner.election
        self.id = inner.id
        self._background = background
        self._inner = inner

    @property
    def state(self) -> State:
        """The present state; immutable."""
        return self._inner.state

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now. Compares the clock with the deadline at every call."""
        return self._inner.is_leader

    @property
    def loss(self) -> Loss | None:
        """How the last term of this candidate ended; None before the end of the first."""
        return self._inner.loss

    def leave(self) -> None:
        """Asks to stop, for good; safe in a signal handler, so it takes effect a moment after it has returned.

        `run` returns when the work has ended.
        """
        self._background.soon(self._inner.leave)

    def hand_over(self, to: str | None = None) -> None:
        """Ends the present term in favour of somebody who waits; see `election.Candidate.hand_over`."""

        async def hand_over() -> None:
            self._inner.hand_over(to)

        self._background.call(hand_over())

    def observe(self) -> Iterator[LeaderEvent]:
        """Who leads this election now, or that nobody does, and then every change; see `election.Candidate.observe`."""
        return self._background.iterate(self._inner.observe())

    @contextmanager
    def lead(self, *, timeout_s: float | None = None) -> Iterator[Term]:
        """Waits until this candidate leads; the block is the work of its term, and resigns at its end.

        An error in the block ends the term with `work_failed`, and is raised once the key is released. The end of
        the term does not end the block: it has to look.

        Raises:
            NotLeader: the candidate was asked to leave before it led.
            TimeoutError: it does not lead after `timeout_s`, and does not stand any more.
            EtcdError, ConfigError: as `election.Candidate.lead`.
        """
        standing = _Standing(self._background, self._inner, once=True, reraise=False)
        try:
            body = standing.next(timeout_s)
            if body is None:
                standing.running.result()
                raise NotLeader(f"{self.id} left {self.election!r} before it led", reason=LossReason.RESIGNED)
            try:
                yield body.term
            except Exception as error:
                standing.finish(body, error)
                raise
            standing.finish(body)
        except BaseException:
            standing.abandon()
            raise

    def run(self, work: Work, *, once: bool = False, reraise: bool = False) -> Loss | None:
        """Stands, and runs `work(term)` in this thread in each term that it wins; see `election.Candidate.lead`."""
        standing = _Standing(self._background, self._inner, once=once, reraise=reraise)
        try:
            while (body := standing.next()) is not None:
                try:
                    work(body.term)
                except Exception as error:  # noqa: BLE001 (kept in the Loss, or raised again with `reraise`)
                    standing.ended(body, error)
                else:
                    standing.ended(body)
            return standing.running.result()
        except BaseException:
            standing.abandon()
            raise
