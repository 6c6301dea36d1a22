"""The processes of a drill: agents and collectors, which die with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from election.dev.parent import bound_to_this_process
from tests.chaos.history import AGENTS, Settings

ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_KILL_S = 10.0


class Process:
    """One process, from its start to its end. Signals are sent by its id, and only while it is our child."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], out: Path) -> None:
        self.name = name
        self.paused = False
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

    def agent(self, id: str, number: int, *, keep_state: bool) -> Process:
        """An agent; `number` tells it from all that have had the id before."""
        name = f"{id}-{number}"
        return Process(
            name,
            (
                *(sys.executable, "-m", "tests.chaos.agent", id, "--process", name),
                *("--journal", str(self.folder / AGENTS / f"{name}.jsonl")),
                *("--endpoints", ",".join(self.endpoints), "--namespace", self.settings.namespace),
                *("--ttl", f"{self.settings.ttl_s:g}", "--keep-state" if keep_state else "--no-keep-state"),
            ),
            _environment(),
            self._out("agents", name),
        )

    def collector(self, id: str) -> Process:
        """`election collect`, as an operator runs it."""
        return Process(
            id,
            (
                *(sys.executable, "-m", "election.cli", "collect", "--id", id, "-o", "json"),
                *("--endpoints", ",".join(self.endpoints), "--namespace", self.settings.namespace),
                *("--grace", f"{self.settings.grace_s:g}", *self.collect_options),
            ),
            _environment(),
            self._out("collectors", id),
        )

    def _out(self, kind: str, name: str) -> Path:
        path = self.folder / "output" / kind / f"{name}.out"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("ELECTION_", "ETCDCTL_", "OTEL_"))
    }
