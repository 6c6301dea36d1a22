"""Notices from outside that a term is over and its event loop does not: the work blocks it, and cannot be cancelled.

`check` and `is_leader` are right all the same. What this adds is a line in the log that says where the loop hangs. Code
that holds the interpreter's lock, in a C extension for example, also holds up this thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from election.leadership import Leading
from election.machine import Machine
from election.stuck import where_thread
from election.token import Token

logger = logging.getLogger("election")

_LOOK_S = 0.5


@dataclass(eq=False, slots=True)
class _Watched:
    machine: Machine
    who: str
    grace_s: float
    thread: int
    suspect: Token | None = None
    reported: Token | None = None

    def look(self) -> None:
        """Reports a term whose loop ought to have known by now, and at the look before, that it is over.

        A process that was stopped as a whole wakes up late in all its threads, and its loop notices as soon as it runs.
        """
        state = self.machine.state
        if not isinstance(state, Leading) or self.machine.clock.now_s() < state.deadline_s + self.grace_s:
            self.suspect = None
        elif self.suspect != state.token:
            self.suspect = state.token
        elif self.reported != state.token:
            self.reported = state.token
            logger.critical(
                "%s: the term is over (token %s), and its event loop has not noticed: the work blocks it, and only "
                "fencing protects from it now; it hangs in %s",
                self.who,
                state.token,
                where_thread(self.thread),
            )


class Watchdog:
    """One thread that looks after all candidates of a connection; there is none while nobody stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[_Watched] = set()
        self._runs = False
        self._ended = threading.Event()

    @contextmanager
    def watching(self, machine: Machine, *, who: str, grace_s: float) -> Iterator[None]:
        """Looks after a machine, which belongs to the event loop of this thread."""
        watched = _Watched(machine, who, grace_s, threading.get_ident())
        with self._lock:
            self._watched.add(watched)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="election watchdog", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(watched)
                if not self._watched:
                    self._ended.set()

    def _run(self) -> None:
        while True:
            self._ended.wait(_LOOK_S)
            with self._lock:
                self._ended.clear()
                watched = tuple(self._watched)
                if not watched:
                    self._runs = False
                    return
            for each in watched:
                each.look()
