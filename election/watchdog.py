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

logger = logging.getLogger("election")

_LOOK_S = 0.25
"""From the first look at a term that is past its deadline to the second: a process that was stopped as a whole wakes
up late in all its threads, and its loop notices as soon as it runs."""


@dataclass(eq=False, slots=True)
class _Watched:
    machine: Machine
    who: str
    grace_s: float
    thread: int
    looks: int = 0

    def overdue_s(self) -> float:
        """For how long the loop ought to have known that the term is over; negative before."""
        state = self.machine.state
        if not isinstance(state, Leading):
            return -self.grace_s  # it knows
        return self.machine.clock.now_s() - state.deadline_s - self.grace_s


class Watchdog:
    """One thread that looks after the terms of a connection; there is none while nobody leads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[_Watched] = set()
        self._runs = False
        self._changed = threading.Event()

    @contextmanager
    def watching(self, machine: Machine, *, who: str, grace_s: float) -> Iterator[None]:
        """Looks after the term of a machine, which belongs to the event loop of this thread."""
        watched = _Watched(machine, who, grace_s, threading.get_ident())
        with self._lock:
            self._watched.add(watched)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="election watchdog", daemon=True).start()
        self._changed.set()
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(watched)
            self._changed.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._changed.clear()
                watched = tuple(self._watched)
                if not watched:
                    self._runs = False
                    return
            for each in watched:
                self._look(each)
            # A deadline that moves on is looked at again when it was due.
            self._changed.wait(max(min(-each.overdue_s() for each in watched), _LOOK_S))

    def _look(self, watched: _Watched) -> None:
        watched.looks = watched.looks + 1 if watched.overdue_s() >= 0 else 0
        if watched.looks == 2:
            logger.critical(
                "%s: the term is over, and its event loop has not noticed: the work blocks it, and only fencing "
                "protects from it now; it hangs in %s",
                watched.who,
                where_thread(watched.thread),
            )
