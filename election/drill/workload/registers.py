"""Three resources that refuse a deposed leader, as an orchestrator writes to them; each keeps all rows in order."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc

from election.errors import Deposed
from election.fencing import sql
from election.fencing.claim import Claim
from election.keys import Keyspace
from election.token import Token

ETCD, SQLITE, GRPC = "etcd", "sqlite", "grpc"
METHOD = "/drill.Register/Write"
TIMEOUT_S = 1.0

_TABLE = "CREATE TABLE IF NOT EXISTS register (at INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT, n INTEGER, by TEXT)"


def etcd_key(keyspace: Keyspace) -> bytes:
    """The key of the register in etcd: its rows are the values that it has had."""
    return keyspace.root + b"drill/register"


def row(token: Token, n: int, by: str) -> bytes:
    """What is written: a number that its writer has not used before."""
    return json.dumps({"token": str(token), "n": n, "by": by}).encode()


def fields_of(value: bytes) -> tuple[str, int, str]:
    """Token, number and writer of a row."""
    found = json.loads(value)
    return found["token"], found["n"], found["by"]


class SqliteRegister:
    """A table in a file, behind the SQL guard."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Makes the tables, where they are not there."""
        with closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(sql.CREATE_TABLE)
            connection.execute(_TABLE)

    def write(self, claim: Claim, value: bytes) -> None:
        """Adds a row. Raises Deposed, NotLeader, sqlite3.Error."""
        with closing(self._connect()) as connection, sql.fenced(connection, claim):
            connection.execute("INSERT INTO register (token, n, by) VALUES (?, ?, ?)", fields_of(value))

    def rows(self) -> list[tuple[str, int, str]]:
        """All rows, in the order in which they were written."""
        with closing(self._connect()) as connection:
            return connection.execute("SELECT token, n, by FROM register ORDER BY at").fetchall()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=TIMEOUT_S, isolation_level=None)
        connection.execute("PRAGMA synchronous=OFF")  # processes die here, and the machine does not
        return connection


async def joined(function: Callable[..., None], *arguments: Any) -> None:
    """Runs a function in a thread; a cancellation is passed on once it has ended, so that nothing goes on unseen."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()
        raise


def deposed(error: Any) -> Deposed | None:
    """What a refusal by a service's fence is to its caller; None for any other failure of a call."""
    return Deposed(error.details()) if error.code() is grpc.StatusCode.FAILED_PRECONDITION else None
