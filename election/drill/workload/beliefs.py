"""What an orchestrator writes down: its terms and deadlines, when it would have acted, and what its writes came to."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from election.clock import BootClock
from election.drill.history import Fact, Journal
from election.drill.vocabulary import Told
from election.drill.workload.registers import row
from election.errors import Deposed, EtcdError, NotLeader
from election.leadership import Leading, State
from election.term import Loss
from election.token import Token

_SAMPLE_S = 0.1


class Standing(Protocol):
    """A candidate, of asyncio or blocking."""

    id: str

    @property
    def state(self) -> State:
        """The present state."""
        ...

    @property
    def is_leader(self) -> bool:
        """Whether it may act now."""
        ...


class Beliefs:
    """The beliefs of one candidate in one process; any thread may say something."""

    def __init__(self, journal: Journal, process: str, candidate: Standing) -> None:
        self._journal = journal
        self._process = process
        self._candidate = candidate
        self._clock = BootClock()
        self._numbers = itertools.count(1)
        self._deadline_s = 0.0
        journal.write(Fact(self._clock.now_s(), Told.RUNS, candidate.id, {"process": process}))

    def watch(self) -> None:
        """Asks the candidate again and again whether it leads, until the process ends.

        From a thread of its own: in a process that was stopped, it may well ask before anything else has run.
        """
        threading.Thread(target=self._watch, daemon=True).start()

    def began(self, token: Token) -> None:
        """The work of a term begins."""
        state = self._candidate.state
        deadline_s = state.deadline_s if isinstance(state, Leading) else 0.0
        self._say(Told.TERM_BEGAN, self._clock.now_s(), token, deadline_s=deadline_s)

    def ended(self, token: Token) -> None:
        """The work of a term has ended."""
        self._say(Told.TERM_ENDED, self._clock.now_s(), token)

    def lost(self, loss: Loss) -> None:
        """Why a term has ended."""
        self._say(Told.TERM_LOST, self._clock.now_s(), loss.token, reason=loss.reason.value, remained_s=loss.margin_s)

    @contextmanager
    def writing(self, register: str, token: Token, *, late: bool = False) -> Iterator[bytes]:
        """Says before the block, which writes, and after it what came of that; the block gets the row to write."""
        at_s, number = self._clock.now_s(), next(self._numbers)
        about = {"register": register, "n": number}
        self._say(Told.WRITES, at_s, token, **about, **({"late": True} if late else {}))
        try:
            yield row(token, number, self._process)
        except NotLeader:
            return  # nothing was sent
        except Deposed as refused:
            self._say(Told.REFUSED, at_s, token, **about, **self._now, why=str(refused))
        except (EtcdError, sqlite3.Error, grpc.RpcError, TimeoutError) as failed:
            self._say(Told.UNSURE, at_s, token, **about, **self._now, why=f"{type(failed).__name__}: {failed}"[:200])
        else:
            self._say(Told.WROTE, at_s, token, **about, **self._now)

    @property
    def _now(self) -> dict[str, float]:
        return {"ended_at_s": self._clock.now_s()}

    def _watch(self) -> None:
        while True:
            at_s = self._clock.now_s()
            state, leads = self._candidate.state, self._candidate.is_leader
            if isinstance(state, Leading) and leads:
                if state.deadline_s != self._deadline_s:
                    self._deadline_s = state.deadline_s
                    self._say(Told.DEADLINE, at_s, state.token, deadline_s=state.deadline_s)
                self._say(Told.ACTED, at_s, state.token, **self._now)
            threading.Event().wait(_SAMPLE_S)

    def _say(self, what: Told, at_s: float, token: Token, **more: Any) -> None:
        said = {"process": self._process, "token": str(token), **more}
        self._journal.write(Fact(at_s, what, self._candidate.id, said))
