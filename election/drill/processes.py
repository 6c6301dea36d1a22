"""The processes of a drill: agents and collectors, which die with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from election.dev.parent import bound_to_this_process
from election.drill.history import AGENTS, Settings

ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_KILL_S = 10.0


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
    """Starts the processes of one drill, on one etcd, with what they say below its folder."""

    folder: Path
    endpoints: tuple[str, ...]
    settings: Settings
    collect_options: tuple[str, ...] = ()

    def agents(self, name: str, ids: Iterable[str], *options: str) -> Process:
        """One process that is all these agents; its name tells it from all others that have been one of them."""
        return self._python(
            "election.drill.workload.agent",
            name,
            *(*ids, "--process", name, "--journal", str(self.folder / AGENTS / f"{name}.jsonl")),
            *(*self._etcd, "--ttl", f"{self.settings.ttl_s:g}", *options),
        )

    def collector(self, id: str) -> Process:
        """`election collect`, as an operator runs it."""
        settings = self.settings
        timing = ("--grace", f"{settings.grace_s:g}", "--reconcile", f"{settings.reconcile_s:g}")
        words = ("collect", "--id", id, "-o", "json", *self._etcd, *timing, *self.collect_options)
        return self._python("election.cli", id, *words)

    def server(self, name: str, port: int) -> Process:
        """The gRPC API, which collects nothing."""
        return self._python("election.cli", name, "serve", "--no-collect", "--grpc-port", f"{port}", *self._etcd)

    def output(self, name: str) -> Path:
        """What a process says; what it says on stderr is beside it."""
        return self.folder / "output" / f"{name}.out"

    @property
    def _etcd(self) -> tuple[str, ...]:
        return ("--endpoints", ",".join(self.endpoints), "--namespace", self.settings.namespace)

    def _python(self, module: str, name: str, *words: str) -> Process:
        out = self.output(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        others = ("ELECTION_", "ETCDCTL_", "OTEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return Process(name, (sys.executable, "-m", module, *words), environment, out)
