"""The highest tokens seen, in a SQLite database: beside the data that they guard, or in a file of their own."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from election.errors import ConfigError, HighWaterError
from election.token import Token

_TABLE = """
CREATE TABLE IF NOT EXISTS election_high_water (
    name TEXT PRIMARY KEY,
    token INTEGER NOT NULL CHECK (typeof(token) = 'integer')
) WITHOUT ROWID
"""
_RAISE = """
INSERT INTO election_high_water (name, token) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET token = excluded.token WHERE excluded.token > election_high_water.token
"""
_MARK = "SELECT token FROM election_high_water WHERE name = ?"
_UNUSABLE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


class SqliteHighWater:
    """Marks in the table `election_high_water` of a SQLite database (3.24 or newer), as integer forms.

    Any number of processes may share it; a lock that another connection holds is waited for up to `wait_s`. Written
    only when a mark rises. Every call has a connection of its own, so threads and forks need no care and nothing
    is held open; the journal mode stays the database's own, and all of a commit is synced in each of them.

    Raises:
        ConfigError: from the constructor, for a path that cannot be used or a file that is no database.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait_s: float = 5.0) -> None:
        self._path = Path(path).resolve()
        self._wait_s = wait_s
        try:
            with self._open() as database:
                database.execute(_TABLE)
        except HighWaterError as error:
            raise ConfigError(str(error)) from None

    def advance(self, name: str, token: Token) -> Token:
        """See `HighWater`."""
        with self._open() as database:
            mark = _mark(database, name)
            if mark is None or mark < token:
                database.execute(_RAISE, (name, int(token)))
                mark = _mark(database, name)
            assert mark is not None
            return mark

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # No isolation level: each statement is a transaction, which is on disk when it returns.
            with closing(sqlite3.connect(self._path, timeout=self._wait_s, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                yield database
        except sqlite3.Error as error:
            text = f"cannot keep the highest token seen in {self._path}: {error}"
            if getattr(error, "sqlite_errorcode", None) in _UNUSABLE:
                raise ConfigError(text) from None
            raise HighWaterError(text) from None


def _mark(database: sqlite3.Connection, name: str) -> Token | None:
    row = database.execute(_MARK, (name,)).fetchone()
    return None if row is None else Token.of_int(row[0])
