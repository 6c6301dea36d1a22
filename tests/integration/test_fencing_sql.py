"""The SQL guard on a real PostgreSQL and on SQLite files: what a deposed leader writes late is never seen."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row

from election.errors import ConfigError, Deposed, LossReason, NotLeader
from election.fencing import sql
from election.fencing.claim import PassedOn
from election.token import Token
from tests.postgres import Postgres

OLD, NEW = Token(3, 900), Token(4, 7)
"""In the order of tokens, though not of revisions: an operator has raised the epoch between them."""
ELECTION = "demo"
ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")
TRY_AGAIN = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected, sqlite3.OperationalError)
BLOCKED_S = 0.03
"""A step that takes longer is taken to wait for a lock. When it does not, another order is tried; no result changes."""
STRESS_S = 2.0


@dataclass(frozen=True)
class Database:
    """Connections of one kind to one database, with a job whose writes are counted in the order of their commits.

    Every write changes the one row of `job`, whose lock is held up to the commit, and notes the count that it found
    there: so `log` is in the order of commits, guard or not.
    """

    connect: Callable[[], Any]
    placeholder: str

    def begin(self, connection: Any) -> None:
        """Begins and reads, so that the transaction has a snapshot where there is one."""
        connection.execute("BEGIN")
        connection.execute("SELECT token FROM job").fetchone()

    def write(self, connection: Any, token: Token) -> None:
        """Writes the token into the job and the log."""
        ((n,),) = connection.execute(
            f"UPDATE job SET n = n + 1, token = {self.placeholder} RETURNING n", (int(token),)
        ).fetchall()
        connection.execute(
            f"INSERT INTO log (n, token) VALUES ({self.placeholder}, {self.placeholder})", (n, int(token))
        )

    def start_again(self, connection: Any) -> None:
        """Nothing has been written, and no leader has been here."""
        for statement in ("DELETE FROM election_fence", "DELETE FROM log", "UPDATE job SET n = 0, token = 0"):
            connection.execute(statement)

    def tokens(self) -> list[int]:
        """What has been written, in the order of commits."""
        with closing(self.connect()) as connection:
            return [token for (token,) in connection.execute("SELECT token FROM log ORDER BY n").fetchall()]

    def marks(self) -> list[tuple[str, int, int]]:
        """The fence's rows."""
        with closing(self.connect()) as connection:
            return [tuple(row) for row in connection.execute("SELECT * FROM election_fence").fetchall()]


@pytest.fixture(params=[*ISOLATION_LEVELS, "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Autocommit connections, so that each test begins its transactions where it wants them."""
    if request.param == "sqlite":
        return made(Database(lambda: sqlite_connection(tmp_path / "test.db", isolation_level=None), "?"))
    server: Postgres = request.getfixturevalue("postgres")
    return made(Database(connector(server, request.param), "%s"))


@pytest.fixture
def conninfo(postgres: Postgres) -> str:
    """A database of PostgreSQL with the tables, for tests that are about its driver."""
    conninfo = postgres.new_database()
    made(Database(lambda: psycopg.connect(conninfo, autocommit=True), "%s"))
    return conninfo


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of SQLite with the tables, for tests that are about its driver."""
    made(Database(lambda: sqlite_connection(tmp_path / "test.db", isolation_level=None), "?"))
    return tmp_path / "test.db"


def connector(server: Postgres, isolation: str) -> Callable[[], Any]:
    conninfo = server.new_database()
    options = f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
    return lambda: psycopg.connect(conninfo, autocommit=True, options=options)


def sqlite_connection(file: Path, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(file, timeout=20, check_same_thread=False, **options)
    return connection


def made(database: Database) -> Database:
    with closing(database.connect()) as connection:
        if database.placeholder == "?":
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = off")
        connection.execute(sql.CREATE_TABLE)
        connection.execute("CREATE TABLE job (n bigint NOT NULL, token bigint NOT NULL)")
        connection.execute("CREATE TABLE log (n bigint NOT NULL, token bigint NOT NULL)")
        connection.execute("INSERT INTO job VALUES (0, 0)")
    return database


def falls(tokens: list[int]) -> list[tuple[int, int]]:
    """Each place where a smaller token follows a larger one."""
    return [(before, after) for before, after in itertools.pairwise(tokens) if after < before]


def guard(connection: Any, token: Token) -> None:
    sql.admit(connection, ELECTION, token)


def no_guard(connection: Any, token: Token) -> None:
    """What happens to those who only write."""


Guard = Callable[[Any, Token], None]


# --- every order of two leaders' steps --------------------------------------------------------------------------


@dataclass
class Leader:
    """One transaction, in a thread of its own that does one step after the other, and how it has ended."""

    database: Database
    guard: Guard
    token: Token
    connection: Any = None
    ended: str = ""
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def steps(self) -> Iterator[Callable[[], None]]:
        yield lambda: self.database.begin(self.connection)
        yield lambda: self.guard(self.connection, self.token)
        yield lambda: self.database.write(self.connection, self.token)
        yield self._commit

    def do(self, step: Callable[[], None]) -> Future[None]:
        return self.thread.submit(self._do, step)

    def _do(self, step: Callable[[], None]) -> None:
        if self.ended:
            return
        try:
            step()
        except (Deposed, *TRY_AGAIN) as error:
            self.connection.execute("ROLLBACK")
            self.ended = type(error).__name__

    def _commit(self) -> None:
        self.connection.execute("COMMIT")
        self.ended = "committed"


def ends_in_every_order(database: Database, guard: Guard) -> tuple[set[tuple[str, str]], int]:
    """How the old and the new leader's transactions ended, and in how many orders the old one's write came last."""
    ends, damaged = set(), 0
    with closing(database.connect()) as watcher, closing(database.connect()) as old, closing(database.connect()) as new:
        for order in itertools.combinations(range(8), 4):
            database.start_again(watcher)
            leaders = Leader(database, guard, OLD, old), Leader(database, guard, NEW, new)
            steps = [leader.steps() for leader in leaders]
            begun, seen = [], [0]
            for turn in range(8):
                whose = 0 if turn in order else 1
                begun.append(leaders[whose].do(next(steps[whose])))
                wait(begun[-1:], BLOCKED_S)
                seen.append(watcher.execute("SELECT token FROM job").fetchone()[0])
            for step in begun:
                step.result(20)
            for leader in leaders:
                leader.thread.shutdown()
            seen.append(watcher.execute("SELECT token FROM job").fetchone()[0])
            damaged += bool(falls(seen) or falls(database.tokens()))
            ends.add((leaders[0].ended, leaders[1].ended))
    return ends, damaged


def test_in_no_order_of_steps_is_the_deposed_ones_write_seen_after_the_newer_ones(database: Database) -> None:
    """Two transactions of four steps each, in all 70 orders: the value that a third one reads never goes back."""
    ends, damaged = ends_in_every_order(database, guard)
    assert damaged == 0
    assert {("committed", "committed"), ("Deposed", "committed")} <= ends


def test_without_the_guard_the_deposed_ones_write_comes_last(database: Database) -> None:
    """The same orders without the admission: no isolation level helps against a transaction that begins late."""
    ends, damaged = ends_in_every_order(database, no_guard)
    assert damaged >= 1
    assert ("committed", "committed") in ends


def test_an_admission_outside_of_the_transaction_does_not_help(postgres: Postgres) -> None:
    """The newer leader gets in between the check and the write."""
    database = made(Database(connector(postgres, "read committed"), "%s"))

    def apart(connection: Any, token: Token) -> None:
        with closing(database.connect()) as other, sql.fenced(other, PassedOn(ELECTION, token)):
            pass

    _, damaged = ends_in_every_order(database, apart)
    assert damaged >= 1


# --- many leaders, at random ------------------------------------------------------------------------------------


@dataclass
class Stress:
    """Writers that lead, pause, are deposed without noticing and write again, each on its own connection."""

    database: Database
    guarded: bool
    seed: int
    refused: int = 0
    _terms: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, writers: int = 4) -> None:
        give_up_at_s = time.monotonic() + STRESS_S
        with ThreadPoolExecutor(writers) as threads:
            for done in [threads.submit(self._write, number, give_up_at_s) for number in range(writers)]:
                done.result()

    def _write(self, number: int, give_up_at_s: float) -> None:
        rng = random.Random(f"{self.seed}-{number}")
        token = self._elected()
        with closing(self.database.connect()) as connection:
            while time.monotonic() < give_up_at_s:
                if rng.random() < 0.1:
                    token = self._elected()
                time.sleep(rng.random() * 0.01)
                try:
                    with self._transaction(connection, token):
                        pause(rng)
                        self.database.write(connection, token)
                        pause(rng)
                except Deposed:
                    with self._lock:
                        self.refused += 1
                    if rng.random() < 0.3:
                        token = self._elected()
                except TRY_AGAIN:
                    continue

    def _transaction(self, connection: Any, token: Token) -> Any:
        if self.guarded:
            return sql.fenced(connection, PassedOn(ELECTION, token))
        return nullcontext() if self.database.placeholder == "?" else connection.transaction()

    def _elected(self) -> Token:
        """The next term's token. Every seventh one, the epoch rises and the revision falls."""
        with self._lock:
            term = next(self._terms)
        return Token(term // 7, 100 + term % 7)


def drawn_seed() -> int:
    """ELECTION_TEST_SEED gives the writers the same tokens and pauses again, if not the same order of threads."""
    return int(os.environ.get("ELECTION_TEST_SEED") or random.SystemRandom().getrandbits(32))


def pause(rng: random.Random) -> None:
    if rng.random() < 0.3:
        time.sleep(rng.random() * 0.004)


def test_under_stress_tokens_never_fall_in_the_order_of_commits(database: Database) -> None:
    """Four writers for two seconds; many are refused, many leaders get through, and no token follows a larger one."""
    stress = Stress(database, guarded=True, seed=drawn_seed())
    stress.run()
    tokens = database.tokens()
    assert falls(tokens) == [], stress
    assert len(set(tokens)) > 5, stress
    assert stress.refused > 0, stress


def test_under_stress_without_the_guard_tokens_fall(database: Database) -> None:
    """So that the test above could fail."""
    stress = Stress(database, guarded=False, seed=drawn_seed())
    stress.run()
    assert falls(database.tokens()), stress


# --- admission --------------------------------------------------------------------------------------------------


def test_a_refusal_names_both_tokens_and_leaves_nothing(database: Database) -> None:
    """The mark stays, the transaction can be rolled back, and another election is not concerned."""
    with closing(database.connect()) as connection:
        with sql.fenced(connection, PassedOn(ELECTION, NEW)):
            database.write(connection, NEW)
        with (
            pytest.raises(Deposed, match="token 3-900 of election 'demo': it has seen 4-7"),
            sql.fenced(connection, PassedOn(ELECTION, OLD)),
        ):
            pytest.fail("the block ran")
        with sql.fenced(connection, PassedOn("other", OLD)):
            database.write(connection, OLD)
    assert database.tokens() == [int(NEW), int(OLD)]
    assert sorted(database.marks()) == [("demo", 4, 7), ("other", 3, 900)]


def test_the_same_term_is_admitted_again_and_again(database: Database) -> None:
    """A token equal to the mark is the leader's own."""
    with closing(database.connect()) as connection:
        for _ in range(3):
            with sql.fenced(connection, PassedOn(ELECTION, OLD)):
                database.write(connection, OLD)
    assert database.tokens() == [int(OLD)] * 3


def test_what_is_rolled_back_takes_its_admission_along(database: Database) -> None:
    """Any error of the block rolls back the write and the mark."""

    def fail_after_writing(database: Database, connection: Any) -> None:
        database.write(connection, NEW)
        raise ZeroDivisionError

    with closing(database.connect()) as connection:
        with pytest.raises(ZeroDivisionError), sql.fenced(connection, PassedOn(ELECTION, NEW)):
            fail_after_writing(database, connection)
        with sql.fenced(connection, PassedOn(ELECTION, OLD)):
            database.write(connection, OLD)
    assert database.tokens() == [int(OLD)]


@dataclass
class Ending:
    """A claim whose term is found to be over at the given check."""

    over_at: int
    election: str = ELECTION
    token: Token = OLD
    checks: int = 0

    def check(self) -> None:
        self.checks += 1
        if self.checks == self.over_at:
            raise NotLeader("over", reason=LossReason.EXPIRED)


@pytest.mark.parametrize("over_at", [1, 2])
def test_a_term_that_is_over_commits_nothing(database: Database, over_at: int) -> None:
    """The deadline is compared before the transaction begins and before it commits."""
    with closing(database.connect()) as connection:
        with pytest.raises(NotLeader), sql.fenced(connection, Ending(over_at)):
            database.write(connection, OLD)
        with sql.fenced(connection, Ending(3)):
            database.write(connection, NEW)
    assert database.tokens() == [int(NEW)]


def test_the_statement_for_other_drivers_returns_a_row_when_it_admits(database: Database) -> None:
    """And none when it refuses."""
    statement = sql.ADMIT.format(*[database.placeholder] * 3)
    with closing(database.connect()) as connection:
        for token, admitted in ((OLD, True), (NEW, True), (OLD, False), (NEW, True)):
            rows = connection.execute(statement, (ELECTION, token.epoch, token.revision)).fetchall()
            assert bool(rows) == admitted


def test_one_statement_guards_one_row(database: Database) -> None:
    """A number in the row does without a table, but each row has a mark of its own."""
    with closing(database.connect()) as connection:
        connection.execute("CREATE TABLE part (id integer, state text, fence bigint NOT NULL)")
        connection.execute("INSERT INTO part VALUES (1, '', 0), (2, '', 0)")
        update = "UPDATE part SET state = ?, fence = ? WHERE id = ? AND fence <= ?".replace("?", database.placeholder)

        def written(id: int, token: Token) -> bool:
            return bool(connection.execute(update, (str(token), int(token), id, int(token))).rowcount)

        assert written(1, OLD)
        assert written(1, NEW)
        assert not written(1, OLD)
        assert written(2, OLD)  # which the newer leader has not written yet
        assert connection.execute("SELECT state FROM part ORDER BY id").fetchall() == [("4-7",), ("3-900",)]


# --- what is refused, because it would be no guard --------------------------------------------------------------


def test_autocommit_without_a_transaction_is_refused(database: Database) -> None:
    """Each statement would be a transaction of its own."""
    with closing(database.connect()) as connection:
        with pytest.raises(ConfigError, match="autocommit"):
            sql.admit(connection, ELECTION, OLD)
        connection.execute("BEGIN")
        sql.admit(connection, ELECTION, OLD)
        connection.execute("COMMIT")
    assert database.marks() == [("demo", 3, 900)]


def test_a_transaction_that_is_open_already_is_not_committed_by_the_guard(database: Database) -> None:
    """It may hold what somebody else has yet to decide on."""
    with closing(database.connect()) as connection:
        connection.execute("BEGIN")
        with pytest.raises(ConfigError, match="use admit"), sql.fenced(connection, PassedOn(ELECTION, OLD)):
            pytest.fail("the block ran")
        connection.execute("ROLLBACK")


def test_a_connection_of_an_unknown_driver_is_refused() -> None:
    """Nobody knows whether it commits by itself."""

    class Connection:
        def in_transaction(self) -> bool:
            return True

    with pytest.raises(ConfigError, match="Connection is not a connection of psycopg 3 or sqlite3"):
        sql.admit(Connection(), ELECTION, OLD)


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def test_psycopg_opens_the_transaction_by_itself_without_autocommit(conninfo: str) -> None:
    """Its default: the admission is the first statement of the transaction that the caller commits."""
    with psycopg.connect(conninfo) as connection:
        sql.admit(connection, ELECTION, NEW)
        connection.rollback()
        sql.admit(connection, ELECTION, OLD)
        connection.commit()
        with sql.fenced(connection, PassedOn(ELECTION, NEW)):
            connection.execute("UPDATE job SET n = 1")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with connection.transaction(), pytest.raises(Deposed):
            sql.admit(connection, ELECTION, OLD)


def test_a_pipeline_of_psycopg_is_admitted_only_where_the_transaction_shows(conninfo: str) -> None:
    """Statements before the admission hide from the driver whether there is one."""
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.pipeline() as pipeline:
        with connection.transaction():
            sql.admit(connection, ELECTION, OLD)
            connection.execute("UPDATE job SET n = 1")
        connection.execute("UPDATE job SET n = 2")
        with pytest.raises(ConfigError, match="autocommit"):
            sql.admit(connection, ELECTION, NEW)
        pipeline.sync()


@pytest.mark.parametrize("row_factory", [dict_row, scalar_row])
def test_the_rows_that_a_connection_makes_do_not_matter(conninfo: str, file: Path, row_factory: Any) -> None:
    """The guard asks for tuples."""
    with psycopg.connect(conninfo, row_factory=row_factory) as connection, closing(sqlite_connection(file)) as other:
        other.row_factory = lambda cursor, row: dict(enumerate(map(str, row), 7))
        for each in (connection, other):
            sql.admit(each, ELECTION, NEW)
            with pytest.raises(Deposed, match="it has seen 4-7"):
                sql.admit(each, ELECTION, OLD)


async def test_async_connections_are_fenced_the_same(conninfo: str) -> None:
    """Admitted, refused, rolled back when cancelled, and refused in autocommit or inside a transaction."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        with pytest.raises(ConfigError, match="autocommit"):
            await sql.admit_async(connection, ELECTION, OLD)
        async with connection.transaction():
            await sql.admit_async(connection, ELECTION, OLD)
            with pytest.raises(ConfigError, match="use admit"):
                await sql.fenced_async(connection, PassedOn(ELECTION, OLD)).__aenter__()
        begun = asyncio.Event()

        async def cancelled() -> None:
            async with sql.fenced_async(connection, PassedOn(ELECTION, Token(9, 9))):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(cancelled())
        async with asyncio.timeout(20):
            await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        async with sql.fenced_async(connection, PassedOn(ELECTION, NEW)):
            await connection.execute("UPDATE job SET n = 1")
        with pytest.raises(Deposed, match="it has seen 4-7"):
            async with sql.fenced_async(connection, PassedOn(ELECTION, OLD)):
                pytest.fail("the block ran")


def test_a_leader_that_is_paused_in_its_transaction_holds_up_the_next_one_until_the_database_ends_it(
    conninfo: str,
) -> None:
    """With `idle_in_transaction_session_timeout`; without, the newer one would wait for as long as the pause lasts."""
    with psycopg.connect(conninfo, options="-c idle_in_transaction_session_timeout=300") as paused:
        sql.admit(paused, ELECTION, OLD)
        paused.execute("UPDATE job SET token = 1")
        with psycopg.connect(conninfo, autocommit=True, options="-c lock_timeout=50") as impatient:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                sql.fenced(impatient, PassedOn(ELECTION, NEW)).__enter__()
            impatient.execute("SET lock_timeout = 0")
            with sql.fenced(impatient, PassedOn(ELECTION, NEW)):
                impatient.execute("UPDATE job SET token = 2")
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                paused.commit()
            assert impatient.execute("SELECT token FROM job").fetchone() == (2,)


# --- SQLite -----------------------------------------------------------------------------------------------------


def test_sqlite3_opens_the_transaction_by_itself_in_its_legacy_mode(file: Path) -> None:
    """Its default before and after Python 3.12: the caller commits."""
    with closing(sqlite_connection(file)) as connection, closing(sqlite_connection(file)) as other:
        sql.admit(connection, ELECTION, NEW)
        assert connection.in_transaction
        connection.rollback()
        with sql.fenced(connection, PassedOn(ELECTION, OLD)):
            connection.execute("UPDATE job SET n = 1")
        assert not connection.in_transaction
        assert other.execute("SELECT epoch FROM election_fence").fetchall() == [(3,)]


class Autocommit(sqlite3.Connection):
    """As Python 3.12 and newer show a connection with autocommit=True, whatever its isolation level says."""

    autocommit = True
    isolation_level = "DEFERRED"


def test_sqlite3s_new_autocommit_counts_more_than_its_isolation_level(file: Path) -> None:
    """An autocommit connection still has the isolation level that used to mean the opposite."""
    new = sys.version_info >= (3, 12)
    options: dict[str, Any] = {"autocommit": True} if new else {"factory": Autocommit, "isolation_level": None}
    with closing(sqlite_connection(file, **options)) as connection:
        assert connection.isolation_level is not None
        with pytest.raises(ConfigError, match="autocommit"):
            sql.admit(connection, ELECTION, OLD)
        with sql.fenced(connection, PassedOn(ELECTION, OLD)):
            connection.execute("UPDATE job SET n = 1")
        assert not connection.in_transaction
        assert connection.execute("SELECT n FROM job").fetchall() == [(1,)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit=False before Python 3.12")
def test_sqlite3_without_autocommit_is_always_in_a_transaction(file: Path) -> None:
    """So admit() works at once, and fenced(), which needs one of its own, says so."""
    with closing(sqlite_connection(file, autocommit=False)) as connection:
        with pytest.raises(ConfigError, match="use admit"), sql.fenced(connection, PassedOn(ELECTION, OLD)):
            pytest.fail("the block ran")
        sql.admit(connection, ELECTION, OLD)
        connection.commit()


def test_a_commit_that_sqlite_refuses_is_rolled_back(file: Path) -> None:
    """Outside of WAL mode a reader keeps a commit from happening; the connection is not left in the transaction."""
    with closing(sqlite_connection(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = delete")
        writer.execute("PRAGMA busy_timeout = 20")
        with closing(sqlite_connection(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM job").fetchall()
            with (
                pytest.raises(sqlite3.OperationalError, match="locked"),
                sql.fenced(writer, PassedOn(ELECTION, OLD)),
            ):
                writer.execute("UPDATE job SET n = 1")
            assert not writer.in_transaction
            reader.execute("COMMIT")
        assert writer.execute("SELECT n FROM job").fetchall() == [(0,)]
