"""The same for programs without asyncio: the names and the promises of the asyncio API, from any thread.

    with blocking.connect("10.0.0.1:2379") as store, store.candidate("scheduler").lead() as term:
        while jobs:
            term.check()
            run(jobs.pop(), token=term.token)

Each store has one thread with one event loop, on which its candidates campaign and renew, also while the program
computes or sleeps. Nothing can cancel a thread: when the term is lost, the work has to notice, by `term.check()` before
each step or by `term.lost`. The key is released only when the work has ended; work that is still there at its deadline
is reported in the log, with the line that it is at, and from then on only fencing protects.

Signals: `Candidate.leave` may be called from a signal handler; Ctrl-C in the work, or while waiting for the term,
resigns. SIGTERM ends a program that does not handle it without any of this, and the key stays until its lease ends.

Fork: a forked process does not lead, whatever its copies of a term say, and cannot use a store that was made before
the fork. gRPC does not outlive a fork: start processes that need a store of their own with multiprocessing's `spawn`.
What gRPC itself does after a fork would crash the child, so importing this package sets GRPC_ENABLE_FORK_SUPPORT=0
where it is not set; that counts if gRPC was not imported before.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from election import candidate as asynchronous
from election import store as stores
from election import term as terms
from election.background import Background
from election.config import DEFAULT_ENDPOINT, DEFAULT_NAMESPACE, CandidateConfig, TlsConfig
from election.errors import LossReason, NotLeader
from election.fencing import txn as fencing
from election.leadership import State
from election.pb.etcd import rpc_pb2 as rpc
from election.reader import LeaderEvent
from election.stuck import where_thread
from election.term import Loss
from election.token import Token

__all__ = ["Candidate", "Store", "Term", "connect"]

Work = Callable[["Term"], Any]


class Store:
    """A connection to etcd, used for one namespace; made by `connect`.

    It opens itself at the first use and is closed by `close`, at the end of a `with` block, or with the program. Any
    number of threads may use it.
    """

    def __init__(self, store: stores.Store) -> None:
        self.keyspace = store.keyspace
        self.config = store.config
        self._store = store
        self._lock = threading.Lock()
        self._background: Background | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def background(self) -> Background:
        """The thread in which everything happens, and the open store."""
        with self._lock:
            if self._background is None:
                self._background = Background()
                self._background.call(self._store.__aenter__())
            return self._background

    def close(self) -> None:
        """Ends the connection. End its candidates before."""
        with self._lock:
            background = self._background
            if background is not None and background.is_ours:
                background.call(self._store.__aexit__(None, None, None))
                background.close()

    def candidate(
        self,
        election: str,
        *,
        id: str | None = None,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        config: CandidateConfig | None = None,
    ) -> Candidate:
        """A candidate for an election; see `election.Store.candidate`."""

        async def make() -> asynchronous.Candidate:
            return self._store.candidate(
                election, id=id, address=address, labels=labels, priority=priority, config=config
            )

        return Candidate(self.background, self.background.call(make()))

    def fenced_txn(
        self,
        term: Term,
        compare: Sequence[rpc.Compare],
        success: Sequence[rpc.RequestOp],
        failure: Sequence[rpc.RequestOp] = (),
    ) -> rpc.TxnResponse:
        """Runs a transaction while the term lasts; see `election.fenced_txn`."""
        return self.background.call(fencing.fenced_txn(self._store.client, term.inner, compare, success, failure))

    def fenced_put(self, term: Term, key: bytes, value: bytes, *, lease: int = 0) -> int:
        """Writes one key while the term lasts; see `election.fenced_put`."""
        return self.background.call(fencing.fenced_put(self._store.client, term.inner, key, value, lease=lease))

    def fenced_delete(self, term: Term, key: bytes) -> bool:
        """Deletes one key while the term lasts; see `election.fenced_delete`."""
        return self.background.call(fencing.fenced_delete(self._store.client, term.inner, key))


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
        events = self._inner.observe()

        async def next_event() -> LeaderEvent | None:
            return await anext(events, None)

        try:
            while (event := self._background.call(next_event())) is not None:
                yield event
        finally:
            if self._background.is_ours:
                self._background.call(events.aclose())

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


def connect(
    endpoints: str | Iterable[str] = DEFAULT_ENDPOINT,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    tls: TlsConfig | None = None,
    user: str | None = None,
    state_dir: Path | None = None,
) -> Store:
    """A store; nothing is sent before its first use. See `election.connect`."""
    return Store(stores.connect(endpoints, namespace=namespace, tls=tls, user=user, state_dir=state_dir))
