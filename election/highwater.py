"""The highest token seen, by name: what a resource has to remember to refuse a leader that has been deposed.

A mark only ever rises. Keep it where the resource keeps its data: a mark that is lost in a restart lets a deposed
leader in again, until the present one has been heard.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from election.errors import ConfigError, HighWaterError
from election.token import Token

_POLL_S = 0.002


class HighWater(Protocol):
    """Remembers the highest token seen of each name. All stores may be used from any number of threads."""

    def advance(self, name: str, token: Token) -> Token:
        """Raises the mark of `name` to the token if it is below it, and returns the mark.

        A mark that equals the token admits it; a larger one is that of a later leader. Atomic among all users of
        the store, and what is returned is durable as far as the store is. When it raises, the mark may have risen
        all the same, which is harmless.

        Raises:
            HighWaterError: the mark cannot be read or kept at present.
            ConfigError: the store is damaged, and somebody has to look at it.
        """
        ...


class AsyncHighWater(Protocol):
    """A HighWater that is asked without blocking the event loop."""

    async def advance(self, name: str, token: Token) -> Token:
        """As `HighWater.advance`; cancelling it may leave the mark raised."""
        ...


class MemoryHighWater:
    """Marks of this process, which end with it."""

    def __init__(self) -> None:
        self._marks: dict[str, Token] = {}
        self._lock = threading.Lock()

    def advance(self, name: str, token: Token) -> Token:
        """See `HighWater`; never waits, and never raises."""
        with self._lock:
            mark = self._marks[name] = max(token, self._marks.get(name, token))
            return mark


def asynchronous(store: HighWater | AsyncHighWater) -> AsyncHighWater:
    """The store as one that does not block the event loop: asked in a thread, unless it is in memory."""
    if inspect.iscoroutinefunction(store.advance):
        return cast("AsyncHighWater", store)
    return _Asynchronous(cast("HighWater", store))


class _Asynchronous:
    def __init__(self, store: HighWater) -> None:
        self._store = store

    async def advance(self, name: str, token: Token) -> Token:
        if isinstance(self._store, MemoryHighWater):
            return self._store.advance(name, token)
        return await asyncio.to_thread(self._store.advance, name, token)


class FileHighWater:
    """Marks in one JSON file, `{"scheduler": "0-1234"}`, on a local file system.

    The file is replaced as a whole, only when a mark rises, and is on disk, with its entry in the folder, before
    `advance` returns. Any number of processes may share it: `flock` on the file PATH.lock beside it keeps them
    apart, and is waited for up to `wait_s`. Nothing is held open between calls.

    A file that is gone stands for no marks. One that cannot be understood is never overwritten.

    Raises:
        ConfigError: from the constructor, for a path that cannot be used or a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait_s: float = 5.0) -> None:
        self._path = Path(path).resolve()
        self._tries = int(wait_s / _POLL_S) + 1
        self._durable: dict[str, Token] = {}  # marks that are known to be on disk
        try:
            with self._locked():
                self._read()
        except OSError as error:
            raise ConfigError(f"cannot keep the highest token seen in {self._path}: {error.strerror}") from None

    def advance(self, name: str, token: Token) -> Token:
        """See `HighWater`; one short read, and some milliseconds when the mark rises."""
        try:
            with self._locked():
                marks = self._read()
                mark = max(token, marks.get(name, token), self._durable.get(name, token))
                if marks.get(name) != mark:
                    self._write({**marks, name: mark})
                elif self._durable.get(name) != mark:
                    _sync(self._path.parent)  # who wrote it may have died between the replacement and its sync
                self._durable[name] = mark
                return mark
        except OSError as error:
            raise HighWaterError(f"cannot keep the highest token seen in {self._path}: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock; a descriptor of its own for each time keeps threads apart as well."""
        descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        for _ in range(self._tries):
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_POLL_S)
        raise HighWaterError(
            f"{self._path}.lock has been held for {self._tries * _POLL_S:.3g} s: is one of its processes stopped?"
        )

    def _read(self) -> dict[str, Token]:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            return {name: Token.parse(mark) for name, mark in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise ConfigError(
                f"{self._path} is damaged, and with it the highest tokens seen ({error}): restore it, "
                "or delete it when no deposed leader can be alive any more"
            ) from None

    def _write(self, marks: Mapping[str, Token]) -> None:
        new = Path(f"{self._path}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({name: str(mark) for name, mark in marks.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        _sync(self._path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
