"""A leader is paused in the middle of its work, and wakes up when another one leads.

    .venv/bin/python examples/paused_leader.py        # or: make story

Whoever leads the election "payments" books deposits: it reads the balance and the deposits that are pending, works out
the new balance, and writes it. Two processes stand for it on a real etcd; the account is in an SQLite file.

1. A leads, reads, checks that it leads, and is stopped before it writes (SIGSTOP), for longer than its lease. The
   migration of a virtual machine, swapping or a suspended laptop do the same to a process.
2. B is elected, reads and writes.
3. A is woken (SIGCONT) and goes on where it was: it writes what it had worked out from what it had read.

`term.check()` is right at every call, so A begins nothing more after its term. It does not help with the write that was
to come next: A did lead when it asked. Only the database can tell that this write is late, if it is shown the token of
the term: `sql.admit`, in the transaction that writes. The story runs without that line and with it. The program exits
with 0 if the first run lost money and the second did not, and with 1 otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from election import CandidateConfig, Deposed, ElectionError, NotLeader, blocking
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.fencing import sql

TTL_S = 3
PATIENCE_S = 20.0
TABLES = """
CREATE TABLE account (balance integer NOT NULL);
CREATE TABLE deposit (id integer PRIMARY KEY, amount integer NOT NULL, booked_by text);
INSERT INTO account VALUES (100);
INSERT INTO deposit (amount) VALUES (50);
"""


# --- what A and B do --------------------------------------------------------------------------------------------


@contextmanager
def transaction(connection: sqlite3.Connection, term: blocking.Term, fenced: bool) -> Generator[None]:
    """Commits at the end of the block. With the fence, the database refuses it to a leader that has been deposed."""
    with connection:
        if fenced:
            sql.admit(connection, term.election, term.token)  # the line that makes the difference
        yield


def book(term: blocking.Term, connection: sqlite3.Connection, fenced: bool) -> None:
    """Adds the pending deposits to the balance."""
    with transaction(connection, term, fenced):  # fenced, too: from now on no older leader changes what is read
        [(balance,)] = connection.execute("SELECT balance FROM account").fetchall()
        pending = connection.execute("SELECT id, amount FROM deposit WHERE booked_by IS NULL").fetchall()
    amounts = [amount for _, amount in pending]
    print(f"{term.id} reads: balance {balance}, pending {amounts}")

    balance += sum(amounts)
    term.check()
    print(f"{term.id} passes term.check(): it leads at this moment")
    if term.id == "A":
        print("A is stopped before it writes (SIGSTOP)")
        signal.raise_signal(signal.SIGSTOP)

    try:
        with transaction(connection, term, fenced):
            connection.execute("UPDATE account SET balance = ?", (balance,))
            for deposit, _ in pending:
                connection.execute("UPDATE deposit SET booked_by = ? WHERE id = ?", (str(term.token), deposit))
        print(f"{term.id} writes: balance {balance}, booked {amounts}")
        term.check()  # before the next deposits
    except (Deposed, NotLeader) as error:
        print(f"{term.id} ends with {type(error).__name__}: {error}")


def work(id: str, endpoints: str, file: str, fenced: bool) -> None:
    """Books deposits once it leads, and goes on leading until its stdin is closed."""
    with (
        closing(sqlite3.connect(file, isolation_level="IMMEDIATE")) as connection,
        blocking.connect(endpoints) as store,
        store.candidate("payments", id=id, config=CandidateConfig(ttl_s=TTL_S)).lead(timeout_s=PATIENCE_S) as term,
    ):
        print(f"{id} leads with token {term.token}")
        book(term, connection, fenced)
        sys.stdin.read()


# --- the story --------------------------------------------------------------------------------------------------


def story(endpoints: str, file: str, fenced: bool) -> bool:
    """Tells it, and returns whether all that was booked is in the balance."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(sql.CREATE_TABLE)
        database.executescript(TABLES)
        a = start("A", endpoints, file, fenced)
        listen(a, until="SIGSTOP")
        os.waitid(os.P_PID, a.pid, os.WSTOPPED)
        stopped_at_s = time.monotonic()

        database.execute("INSERT INTO deposit (amount) VALUES (30)")
        print("30 more are paid in")
        b = start("B", endpoints, file, fenced)
        listen(b, until="writes")

        print(f"A is woken after {time.monotonic() - stopped_at_s:.1f} s (SIGCONT)")
        a.send_signal(signal.SIGCONT)
        listen(a)
        listen(b)
        [(balance,)] = database.execute("SELECT balance FROM account").fetchall()
        booked = [amount for (amount,) in database.execute("SELECT amount FROM deposit WHERE booked_by IS NOT NULL")]
    expected = 100 + sum(booked)
    verdict = "right" if balance == expected else f"{expected - balance} ARE LOST"
    print(f"In the end: balance {balance}, booked {booked}; expected {expected}: {verdict}\n")
    return bool(balance == expected)


def start(id: str, endpoints: str, file: str, fenced: bool) -> subprocess.Popen[str]:
    """Starts a process that does `work`."""
    command = bound_to_this_process([sys.executable, "-u", __file__, id, endpoints, file, "fenced" if fenced else ""])
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def listen(worker: subprocess.Popen[str], until: str = "") -> None:
    """Passes on what a worker says: up to the line with this word, or else to its end, which it lets it come to."""
    if not until and worker.stdin:
        worker.stdin.close()
    for line in worker.stdout or ():
        print(textwrap.fill(line, 80, subsequent_indent="  "), flush=True)
        if until and until in line:
            return
    if until or worker.wait(PATIENCE_S):
        raise ElectionError("a worker has failed: see what it said above")


def main() -> int:
    """Tells the story without the fence and with it; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="election-story-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), members=1))
        try:
            print(f"WITHOUT THE FENCE (a lease lasts {TTL_S} s)")
            alone_right = story(cluster.endpoints[0], f"{folder}/alone.db", fenced=False)
            print("WITH THE FENCE")
            fenced_right = story(cluster.endpoints[0], f"{folder}/fenced.db", fenced=True)
        finally:
            cluster.kill()
    return 0 if fenced_right and not alone_right else 1


if __name__ == "__main__":
    try:
        if len(sys.argv) == 1:
            sys.exit(main())
        work(sys.argv[1], sys.argv[2], sys.argv[3], fenced=sys.argv[4] == "fenced")
    except ElectionError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
