"""Runs a program for as long as something lasts: a registration of an agent, or a term of leadership.

A process of its own stands between (keeper.py). It ends the program by a deadline also while this process is stopped
or hangs, and kills it, with every process that it has started, when this process is gone however it ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from election import keeper
from election.clock import BootClock, Clock
from election.errors import ConfigError, ElectionError

STOP_S = 10.0
"""How long a program has from SIGTERM to SIGKILL, where nothing else is said."""


class CannotRun(ElectionError):
    """There is no such program, or it cannot be executed. `code` is the exit code that shells give it."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit code as shells tell it, 128 + n for signal n; and whether it was stopped."""

    code: int
    stopped: bool


class Program:
    """A program that runs; made by `running`.

    It is in a session of its own, and each signal goes to its whole process group. Its processes are told to end with
    SIGTERM and killed later; those that have left the group are killed when it is empty.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, clock: Clock) -> None:
        self._process = process
        self._control = control
        self._clock = clock
        self._stop_at_s = self._kill_at_s = float("inf")

    def bind(self, stop_at_s: float, kill_at_s: float) -> None:
        """Sets when it is stopped and when it is killed, by the clock, unless it is bound again before.

        It holds whatever becomes of this process. A program that is being stopped goes on being stopped.
        """
        self._kill_at_s = kill_at_s
        self._say(f"until {min(stop_at_s, self._stop_at_s)!r} {kill_at_s!r}")

    def stop(self) -> None:
        """SIGTERM now, and SIGKILL after `stop_s`, or when it is bound to be killed. Safe to repeat."""
        self._stop_at_s = min(self._stop_at_s, self._clock.now_s())
        self.bind(self._stop_at_s, self._kill_at_s)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the program's process group."""
        self._say(f"signal {int(number)}")

    async def ended(self) -> Ended:
        """Waits until nothing is left of the program; cancelling the wait does nothing else."""
        code = await self._process.wait()
        said = b""
        with suppress(OSError):
            said = self._control.recv(64)
        return Ended(code if code >= 0 else 128 - code, stopped=bool(said))

    def _say(self, line: str) -> None:
        with suppress(OSError):  # it has ended, or hears nothing
            self._control.send(f"{line}\n".encode())


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stop_s: float = STOP_S,
    clock: Clock | None = None,
) -> AsyncGenerator[Program]:
    """Runs a program, with `env` added to the environment, for as long as the block lasts, which stops it otherwise.

    It has stdin, stdout and stderr of this process. One that cannot be executed says so on stderr in one line, and
    ends with 127 or 126; `find` tells before. A block that is left twice over (cancelled while the program is being
    stopped) kills it.
    """
    if not command or not command[0] or any("\0" in argument for argument in command):
        raise ConfigError("the command to run is empty or has a NUL character")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            number = theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", keeper.__file__, str(number), repr(stop_s), *command),
                env={**os.environ, **(env or {})},
                pass_fds=(number,),
                start_new_session=True,  # Ctrl-C and Ctrl-Z in the terminal are for this process
            )
        program = Program(process, ours, clock or BootClock())
        try:
            try:
                yield program
            finally:
                program.stop()
                await process.wait()
        finally:
            ours.close()
            await process.wait()


def find(name: str) -> None:
    """Returns if there is a program of this name, as a path or on PATH, that can be executed.

    Raises:
        CannotRun: there is none.
    """
    if shutil.which(name) is not None:
        return
    if "/" in name and Path(name).exists():
        reason = "it is a folder" if Path(name).is_dir() else "it is not executable"
        raise CannotRun(f"{name!r} cannot be run: {reason}", code=126)
    raise CannotRun(f"{name!r} cannot be run: no such program", code=127)
