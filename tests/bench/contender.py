"""A process that stands for an election and prints its key when it leads: one of ours, or `etcdctl elect`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from election.dev.binaries import find_binary
from election.dev.parent import bound_to_this_process
from election.errors import ElectionError

ROOT = Path(__file__).parents[2]
_LINE_S = 20.0
"""How long anybody may take to lead, a lease's expiry included."""
_END_S = 10.0
_READ_BYTES = 64 * 1024


class BenchFailed(ElectionError):
    """What was to be measured did not happen."""


class Contender:
    """The process, from its start to its end; it ends with this process at the latest."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("ELECTION_", "ETCDCTL_", "ETCD_"))
        }
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                bound_to_this_process([str(word) for word in command]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**inherited, **environment},
                cwd=ROOT,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.stdout_fd = self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def says_nothing(self) -> bool:
        """Whether all that it has printed was read."""
        return not select.select([self.stdout_fd], [], [], 0)[0]

    def wait_readable(self) -> None:
        """Blocks until there is something to read, or the process has ended."""
        if not select.select([self.stdout_fd], [], [], _LINE_S)[0]:
            raise BenchFailed(f"{self.name} does not lead after {_LINE_S:g} s")

    def read(self) -> str:
        """What it has printed and nobody has read yet; blocks while there is nothing."""
        self.wait_readable()
        if not (read := os.read(self.stdout_fd, _READ_BYTES)):
            raise BenchFailed(f"{self.name} has ended with exit code {self._process.wait()}, rather than lead")
        return read.decode()

    def cpu_ns(self) -> int:
        """The CPU time that its threads have used, by the kernel's scheduler. Linux only."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks)

    def wait_ended(self) -> None:
        """Blocks until the process is gone; kills it when that takes too long."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchFailed(f"{self.name} has not ended {_END_S:g} s after its signal") from None

    def kill(self) -> None:
        """SIGKILL, whatever it does. Safe when it has ended, and more than once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(_END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def ours(election: str, id: str, *, endpoints: Sequence[str], namespace: str, log: Path, ttl_s: int) -> Contender:
    """A process that stands with this library."""
    return Contender(
        id,
        [sys.executable, "-m", "tests.bench.orchestrator", election, id, str(ttl_s)],
        {"ELECTION_ENDPOINTS": ",".join(endpoints), "ELECTION_NAMESPACE": namespace},
        log,
    )


def etcdctl(name: str, id: str, *, endpoints: Sequence[str], log: Path) -> Contender:
    """A process that stands with etcd's own command, on a lease of 60 s."""
    return Contender(
        id,
        [find_binary("etcdctl"), "elect", name, id],
        {"ETCDCTL_ENDPOINTS": ",".join(endpoints), "ETCDCTL_API": "3"},
        log,
    )


def handover_ns(leader: Contender, follower: Contender, number: signal.Signals) -> int:
    """From the signal to the leader until the follower's first byte can be read here."""
    if not follower.says_nothing():
        raise BenchFailed(f"{follower.name} leads before {leader.name} was asked to hand over")
    sent_at_ns = time.monotonic_ns()
    os.kill(leader.pid, number)
    follower.wait_readable()
    return time.monotonic_ns() - sent_at_ns
