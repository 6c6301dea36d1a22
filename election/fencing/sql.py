"""Makes a SQL database refuse a leader that has been deposed: the check and the write are one transaction.

The table `election_fence` holds the highest token of each election. An admission raises it in the transaction that
also writes, or is refused, and locks the row until that transaction ends. So the admitted transactions of an election
happen one after the other, in the order of their tokens: a newer leader's waits for an older one that has begun, and
when a newer one has committed, no older one can.

    with sql.fenced(connection, term):                       # of psycopg 3 or sqlite3; fenced_async for async ones
        connection.execute("UPDATE job SET state = ...")     # raises Deposed before this if a newer leader was here

    with connection.transaction():                           # or in a transaction of your own, as its first step
        sql.admit(connection, "scheduler", token)

`CREATE_TABLE` makes the table, once, by whatever makes your tables. `ADMIT` is for other drivers.

Isolation. READ COMMITTED is enough: the admission waits for the row and compares what was committed last. Under
REPEATABLE READ and SERIALIZABLE it fails instead, with SQLSTATE 40001, when the row has changed since the snapshot,
and the transaction is to be run again, admission included. SQLite has one writer at a time; a transaction that has
read before its admission can fail with "database is locked", and one that began with BEGIN IMMEDIATE cannot.

What this does not do:

* The database hears of a new leader by its first admission, and admits the old one until then. So begin a term
  with an admission, and read what the work goes on from only after it.
* Nothing is guarded that the transaction does not write itself, and nothing after a rollback to a savepoint from before
  the admission. Never catch Deposed inside the transaction to go on with it.
* A process that is paused between admission and commit holds up its successor. Bound that by PostgreSQL's
  `idle_in_transaction_session_timeout`; in SQLite, the process has to be killed.
* An error from the commit itself leaves open whether it happened, and a replica that is promoted although it lags
  forgets tokens along with the writes. Elections of the same name in different namespaces need different databases
  or names, since their tokens are compared by name.

For writes of one row, a BIGINT column with `int(token)` does without table and transaction. When no row has changed,
the token was refused, or there is no such row. Each row has a mark of its own, though: one that the newer leader has
not written yet takes a write of the older one.

    UPDATE job SET state = %s, fence = %s WHERE id = %s AND fence <= %s
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from election.errors import ConfigError, Deposed
from election.fencing.claim import Claim
from election.token import Token

CREATE_TABLE = """\
CREATE TABLE IF NOT EXISTS election_fence (
  election text NOT NULL PRIMARY KEY,
  epoch    integer NOT NULL,
  revision bigint NOT NULL
)"""
"""For PostgreSQL and SQLite."""

ADMIT = """\
INSERT INTO election_fence AS fence (election, epoch, revision) VALUES ({}, {}, {})
ON CONFLICT (election) DO UPDATE SET epoch = excluded.epoch, revision = excluded.revision
WHERE (fence.epoch, fence.revision) <= (excluded.epoch, excluded.revision)
RETURNING epoch"""
"""Returns a row when the token is admitted and none when it is refused; for PostgreSQL, and SQLite from 3.35 on.

`ADMIT.format("$1", "$2", "$3")` puts in the driver's placeholders, for the election, `token.epoch` and
`token.revision`. Run it inside the transaction that writes, and roll that back when no row is returned.
"""

_MARK = "SELECT epoch, revision FROM election_fence WHERE election = {}"
_IDLE, _ACTIVE, _IN_TRANSACTION, _IN_FAILED_TRANSACTION = range(4)
"""libpq's PGTransactionStatusType."""
_LEGACY_TRANSACTION_CONTROL = -1
"""sqlite3's, of Python 3.12 and newer; before, there is no other control."""


def admit(connection: Any, election: str, token: Token) -> None:
    """Admits a token in the connection's transaction, which it opens if the driver opens them by itself.

    For connections of psycopg 3 and sqlite3.

    Raises:
        Deposed: a larger token was admitted before; let it roll back the transaction.
        ConfigError: no transaction is open, and the driver commits each statement (autocommit); nothing was sent.
    """
    session = _session(connection)
    session.check_one_transaction()
    with closing(connection.cursor()) as cursor:
        cursor.row_factory = session.tuples
        cursor.execute(session.says(ADMIT), (election, token.epoch, token.revision))
        if cursor.fetchone() is None:
            cursor.execute(session.says(_MARK), (election,))
            raise _deposed(election, token, cursor.fetchone())


async def admit_async(connection: Any, election: str, token: Token) -> None:
    """`admit` for async connections of psycopg 3."""
    session = _session(connection)
    session.check_one_transaction()
    async with connection.cursor() as cursor:
        cursor.row_factory = session.tuples
        await cursor.execute(session.says(ADMIT), (election, token.epoch, token.revision))
        if await cursor.fetchone() is None:
            await cursor.execute(session.says(_MARK), (election,))
            raise _deposed(election, token, await cursor.fetchone())


@contextmanager
def fenced(connection: Any, claim: Claim) -> Generator[None]:
    """Runs the block in a transaction of its own that the claim is admitted to, and commits it.

    The claim is checked first and once more before the commit; any exception rolls back. Do not commit inside, nor
    call sqlite3's `executescript`, which does.

    Raises:
        NotLeader: the term is over, by the local clock; nothing was written.
        Deposed: a larger token was admitted before; nothing was written.
        ConfigError: a transaction is open already; nothing was sent.
    """
    claim.check()
    with _session(connection).transaction():
        admit(connection, claim.election, claim.token)
        yield
        claim.check()


@asynccontextmanager
async def fenced_async(connection: Any, claim: Claim) -> AsyncGenerator[None]:
    """`fenced` for async connections of psycopg 3; cancellation rolls back, too."""
    claim.check()
    async with _session(connection).transaction():
        await admit_async(connection, claim.election, claim.token)
        yield
        claim.check()


@dataclass(frozen=True, slots=True)
class _Sqlite:
    """A connection of sqlite3, as it stands."""

    connection: sqlite3.Connection
    tuples = None

    def says(self, statement: str) -> str:
        return statement.format("?", "?", "?")

    def check_one_transaction(self) -> None:
        control = getattr(self.connection, "autocommit", _LEGACY_TRANSACTION_CONTROL)
        implicit = (
            not control if control != _LEGACY_TRANSACTION_CONTROL else self.connection.isolation_level is not None
        )
        if not (self.connection.in_transaction or implicit):
            raise _autocommit()

    def transaction(self) -> Any:
        if self.connection.in_transaction:
            raise _open_already()
        return self._immediate()

    @contextmanager
    def _immediate(self) -> Generator[None]:
        """By statements, since commit() and rollback() do nothing on an autocommit connection of Python 3.12."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


@dataclass(frozen=True, slots=True)
class _Psycopg:
    """A connection of psycopg 3, sync or async, as it stands."""

    connection: Any

    @staticmethod
    def tuples(cursor: Any) -> Any:
        return tuple

    def says(self, statement: str) -> str:
        return statement.format("%s", "%s", "%s")

    def check_one_transaction(self) -> None:
        """A pipeline is active from its first statement on, inside of a transaction and outside: that is refused."""
        if self.connection.autocommit and self.connection.info.transaction_status in (_IDLE, _ACTIVE):
            raise _autocommit()

    def transaction(self) -> Any:
        """Of its own: psycopg would make a savepoint inside another one."""
        if self.connection.info.transaction_status in (_ACTIVE, _IN_TRANSACTION, _IN_FAILED_TRANSACTION):
            raise _open_already()
        return self.connection.transaction()


def _session(connection: Any) -> _Sqlite | _Psycopg:
    """Told by what they have rather than by type, so that no driver is needed here and a wrapped one works."""
    if isinstance(getattr(connection, "in_transaction", None), bool):
        return _Sqlite(connection)
    if hasattr(connection, "transaction") and hasattr(getattr(connection, "info", None), "transaction_status"):
        return _Psycopg(connection)
    raise ConfigError(
        f"{type(connection).__name__} is not a connection of psycopg 3 or sqlite3: "
        "for other drivers, run election.fencing.sql.ADMIT inside the transaction that writes"
    )


def _deposed(election: str, token: Token, mark: tuple[int, int]) -> Deposed:
    return Deposed(f"the database refused token {token} of election {election!r}: it has seen {Token(*mark)}")


def _autocommit() -> ConfigError:
    return ConfigError(
        "no transaction is open and the connection is in autocommit, which would let a newer leader in between the "
        "check and the write: begin a transaction, or use fenced()"
    )


def _open_already() -> ConfigError:
    return ConfigError("a transaction is open already, and fenced() commits one of its own: use admit() inside of it")
