"""One etcd process, and what can be done to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from election.dev.log import gist, read_end, taken_port
from election.dev.parent import bound_to_this_process
from election.errors import ConfigError, EtcdUnavailable

_KILL_WAIT_S = 10.0
_POLL_S = 0.02


class PortTaken(ConfigError):
    """A member cannot start because somebody else listens on one of its ports."""

    def __init__(self, message: str, *, port: int) -> None:
        super().__init__(message)
        self.port = port


class Member:
    """One member of an `EtcdCluster`: a process in a session of its own, its data and its log.

    On Linux the process dies with the thread that started it, whatever way that ends; so start members from the
    main thread. Signals are sent at once and do not need an event loop.
    """

    def __init__(
        self, *, index: int, name: str, endpoint: str, peer_url: str, data_dir: Path, command: Sequence[str], log: Path
    ) -> None:
        self.index = index
        self.name = name
        self.endpoint = endpoint
        self.peer_url = peer_url
        self.data_dir = data_dir
        self.log = log
        self.paused = False
        self._command = tuple(command)
        self._cluster_state = "new"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        state = "down" if not self.running else "paused" if self.paused else "running"
        return f"<Member {self.name} at {self.endpoint}, pid {self.pid}, {state}>"

    def __str__(self) -> str:
        return f"etcd member {self.name} at {self.endpoint}"

    @property
    def pid(self) -> int | None:
        """The process id, also of a process that has ended; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the process ended (a negative number: by that signal); None while it runs."""
        return None if self._process is None else self._process.poll()

    def spawn(self) -> None:
        """Starts the process with the same data as before and returns at once; does nothing when it runs."""
        if self.running:
            return
        command = bound_to_this_process([*self._command, f"--initial-cluster-state={self._cluster_state}"])
        # etcd reads a setting from the environment where no flag says it; the one for odd machines must stay.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - the program is the one that the user has chosen
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.paused = False

    async def start(self, timeout_s: float = 10.0) -> None:
        """Starts the process and waits until it listens; whether it serves, `EtcdCluster.wait_healthy` tells.

        Raises:
            ConfigError: when the process ended instead; `PortTaken` when its port is in use.
            EtcdUnavailable: when it does not listen in time. It is left running.
        """
        self.spawn()
        give_up_at_s = time.monotonic() + timeout_s
        while True:
            self.check_running()
            if self.listens():
                return
            if time.monotonic() >= give_up_at_s:
                raise EtcdUnavailable(f"{self} does not listen after {timeout_s:g} s; its log: {self.says()}")
            await asyncio.sleep(_POLL_S)

    async def restart(self, timeout_s: float = 10.0) -> None:
        """Kills the process if it runs, and starts it with the same data."""
        self.kill()
        await self.start(timeout_s)

    def kill(self) -> None:
        """Sends SIGKILL and waits until the process is gone. Safe when it is gone already."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(_KILL_WAIT_S)
        self.paused = False

    def wipe(self) -> None:
        """Kills the process and removes its data: it can be started again once the cluster was told to add a member.

        That member has to have this one's peer URL; it is a new one to the others, which know the old one no more.
        """
        self.kill()
        shutil.rmtree(self.data_dir)
        self._cluster_state = "existing"

    def terminate(self) -> None:
        """Sends SIGTERM and returns at once; etcd may take seconds to end its calls. A paused one goes on first."""
        self.resume()
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """Sends SIGSTOP, and returns when all threads stand still: it keeps its connections, and answers nothing."""
        self._signal(signal.SIGSTOP)
        self.paused = self.running
        if self._process is not None and self.paused:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Sends SIGCONT; safe when the process is not paused."""
        self._signal(signal.SIGCONT)
        self.paused = False

    async def wait_ended(self, timeout_s: float) -> bool:
        """Waits until the process is gone, and says whether it is."""
        give_up_at_s = time.monotonic() + timeout_s
        while True:
            if not self.running or time.monotonic() >= give_up_at_s:
                return not self.running
            await asyncio.sleep(_POLL_S)

    def listens(self) -> bool:
        """Whether the client port accepts connections."""
        host, _, port = self.endpoint.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as dialled:
            dialled.settimeout(_POLL_S)
            return dialled.connect_ex((host, int(port))) == 0

    def check_running(self) -> None:
        """Returns if the process runs.

        Raises:
            PortTaken: when it ended because a port is in use; the text names the port.
            ConfigError: when it ended for another reason; the text has the gist of its log.
        """
        if self._process is None:
            raise ConfigError(f"{self} was not started")
        if self.running:
            return
        if (port := taken_port(read_end(self.log, self._log_start))) is not None:
            raise PortTaken(f"{self} cannot start: port {port} is in use by another program", port=port)
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
        raise ConfigError(f"{self} {how}; its log: {self.says()}")

    def says(self) -> str:
        """The line of the log, since the process was last started, that tells most."""
        return gist(read_end(self.log, self._log_start))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
