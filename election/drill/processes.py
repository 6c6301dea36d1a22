"""The processes of a drill, which die with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from election.dev.parent import bound_to_this_process
from election.drill.history import AGENTS, PROCESSES, Settings
from election.drill.workload.options import USER

ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_KILL_S = 10.0
_FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


class Process:
    """One process, from its start to its end. Signals are sent by its id, and only while it is our child.

    `leaving` says that it was told to end, whether or not it has.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], out: Path) -> None:
        self.name = name
        self.paused = self.leaving = False
        with out.open("ab") as stdout, out.with_suffix(".err").open("ab") as stderr:
            self._process = subprocess.Popen(
                bound_to_this_process(command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it exists; a paused one does."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; safe when it has ended."""
        if self.running:
            self._process.send_signal(number)
            self.paused = number == signal.SIGSTOP or (self.paused and number != signal.SIGCONT)
            self.leaving = self.leaving or number == signal.SIGTERM

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone. Safe when it has ended."""
        self.send(signal.SIGKILL)
        self._process.wait(_KILL_S)

    async def ended(self, timeout_s: float) -> bool:
        """Waits for its end, and says whether it came."""
        give_up_at_s = time.monotonic() + timeout_s
        while self.running and time.monotonic() < give_up_at_s:
            await asyncio.sleep(_POLL_S)
        return not self.running


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts the processes of one drill, with what they say below its folder.

    The name of a process tells it from all others that have ever been.
    """

    folder: Path
    settings: Settings
    user: tuple[str, str] | None = None
    collect_options: tuple[str, ...] = ()
    _faketime: Path | None = field(default_factory=lambda: faketime())

    def agent(self, name: str, ids: Iterable[str], endpoints: Iterable[str], *options: str) -> Process:
        """One process that is all these agents."""
        return self._python(
            "election.drill.workload.agent",
            name,
            *(*ids, "--process", name, "--journal", str(self.folder / AGENTS / f"{name}.jsonl")),
            *(*self._etcd(endpoints), "--ttl", f"{self.settings.ttl_s:g}", *options),
        )

    def orchestrator(
        self, name: str, id: str, endpoints: Iterable[str], register: str, *, is_blocking: bool
    ) -> Process:
        """A candidate that writes while it leads; its wall clock follows `clock_file`, where libfaketime is there."""
        return self._python(
            f"election.drill.workload.{'blocking_' if is_blocking else ''}orchestrator",
            name,
            *("--id", id, "--process", name, "--journal", str(self.journal(name)), *self._etcd(endpoints)),
            *("--election", self.settings.election, "--ttl", f"{self.settings.candidate_ttl_s:g}"),
            *("--sqlite", str(self.sqlite), "--register", register),
            **({} if is_blocking else self._faked_time(id)),  # libfaketime breaks `time.sleep`
        )

    def collector(self, id: str, endpoints: Iterable[str]) -> Process:
        """`election collect`, as an operator runs it."""
        settings = self.settings
        timing = ("--grace", f"{settings.grace_s:g}", "--reconcile", f"{settings.reconcile_s:g}")
        words = ("collect", "--id", id, "-o", "json", *self._etcd(endpoints), *timing, *self.collect_options)
        return self._python("election.cli", id, *words)

    def server(self, name: str, endpoints: Iterable[str], port: int) -> Process:
        """The gRPC API, which collects nothing."""
        return self._python(
            "election.cli", name, "serve", "--no-collect", "--grpc-port", f"{port}", *self._etcd(endpoints)
        )

    def register(self, name: str, port: int) -> Process:
        """The service that is written to."""
        words = ("--port", f"{port}", "--election", self.settings.election, "--sqlite", str(self.service_sqlite))
        return self._python("election.drill.workload.register", name, *words)

    def reader(self, name: str, servers: Mapping[str, str]) -> Process:
        """Asks the servers, and watches them."""
        named = [f"{server}={address}" for server, address in servers.items()]
        words = ("--process", name, "--journal", str(self.journal(name)), "--election", self.settings.election)
        return self._python("election.drill.workload.reader", name, *named, *words)

    def journal(self, name: str) -> Path:
        """What a process believes."""
        return self.folder / PROCESSES / f"{name}.jsonl"

    def output(self, name: str) -> Path:
        """What a process says; what it says on stderr is beside it."""
        return self.folder / "output" / f"{name}.out"

    def clock_file(self, id: str) -> Path:
        """Says by how much the wall clock of an orchestrator is wrong."""
        return self.folder / "clocks" / id

    @property
    def sqlite(self) -> Path:
        """The register that is a file."""
        return self.folder / "register.sqlite"

    @property
    def service_sqlite(self) -> Path:
        """What the register that is a service keeps."""
        return self.folder / "service.sqlite"

    def _etcd(self, endpoints: Iterable[str]) -> tuple[str, ...]:
        return ("--endpoints", ",".join(endpoints), "--namespace", self.settings.namespace)

    def _faked_time(self, id: str) -> dict[str, str]:
        if self._faketime is None:
            return {}
        file = self.clock_file(id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("+0\n")
        return {
            "LD_PRELOAD": str(self._faketime),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def _python(self, module: str, name: str, *words: str, **more: str) -> Process:
        out = self.output(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        others = ("ELECTION_", "ETCDCTL_", "OTEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        if self.user is not None:
            environment[USER] = ":".join(self.user)
        return Process(name, (sys.executable, "-m", module, *words), environment | more, out)


def faketime() -> Path | None:
    """The library that fakes the time of a process; None where it is not installed."""
    found = [path for pattern in _FAKETIME for path in Path("/").glob(pattern[1:])]
    return found[0] if found else None
