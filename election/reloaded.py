"""What some files hold, read again when the files change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from election.clock import Clock
from election.errors import ConfigError

T = TypeVar("T")

logger = logging.getLogger("election")

_LOOK_S = 1.0
"""The files are looked at when somebody asks, and at most this often."""

_Seen = tuple[tuple[int, int, int] | None, ...]
"""For each file when it was written, its size and its inode; None for one that cannot be looked at."""


class Reloaded(Generic[T]):
    """What the files hold now, or held when they could last be used. Any thread may ask.

    Files are replaced one by one, or all at once behind a symbolic link as Kubernetes does it. Those that do not fit
    together, or are half written, are reported once and change nothing until they change again.

    `what` names the files in the log, in the plural; `read` reads them all and raises ConfigError for what cannot be
    used.

    Raises:
        ConfigError: when the files cannot be used at the beginning.
    """

    def __init__(self, what: str, files: Iterable[Path], read: Callable[[], T], clock: Clock) -> None:
        self._what = what
        self._files = tuple(files)
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._complaint = ""
        self._look_at_s = clock.now_s() + _LOOK_S
        self._seen = self._look()
        self._held = read()

    def now(self) -> T:
        """The same object for as long as nothing new can be used. It may read files, which are taken to be small."""
        if self._clock.now_s() >= self._look_at_s:
            with self._lock:
                if self._clock.now_s() >= self._look_at_s:
                    self._look_at_s = self._clock.now_s() + _LOOK_S
                    self._read_changes()
        return self._held

    def _read_changes(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        try:
            read, complaint = self._read(), ""
        except (ConfigError, RecursionError) as error:  # the latter for what is nested without end
            read, complaint = None, str(error)
        if self._look() != seen:
            return  # they change at this moment, so what was read may be of both: look again
        self._seen = seen
        if read is not None:
            self._held = read
            level = logging.WARNING if self._complaint else logging.INFO  # whoever was warned hears that it is well
            files = ", ".join(map(str, self._files))
            logger.log(level, "the %s have changed, and are in use: %s", self._what, files)
        elif complaint != self._complaint:
            logger.warning("the %s have changed, and those before stay in use: %s", self._what, complaint)
        self._complaint = complaint

    def _look(self) -> _Seen:
        return tuple(map(_look_at, self._files))


def read_text(file: Path) -> str:
    """A file's text; raises ConfigError where it cannot be read or is no UTF-8."""
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _look_at(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
