"""The process between a supervisor and the program that it runs: what makes sure that the program ends in time.

`python keeper.py CONTROL STOP_S PROGRAM ARGUMENT...`, where CONTROL is the number of a socket. It is run as a file and
imports nothing of ours, since it must be small, and go on when its supervisor is stopped, hangs or is killed.

The supervisor writes lines. `until STOP_AT KILL_AT` sets when the program is stopped and when it is killed, in seconds
of CLOCK_BOOTTIME; `signal N` is passed on. When the supervisor's end is closed, everything is killed at once. The
keeper writes one line, `stopped`, when it stops the program, and ends with the program's exit code as shells tell it.
When the keeper itself is killed, so is the program, but not what it has started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NEVER = float("inf")
_LONGEST_WAIT_S = 0.25
"""While there is a deadline; what waits does not count the time for which the machine is suspended."""

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class Keeper:
    """The parent of one program, and of every process that loses its own parent below it."""

    def __init__(self, control: int, stop_s: float, program: int) -> None:
        self._control = control
        self._stop_s = stop_s
        self._program = program
        self._heard = b""
        self._stop_at_s = self._kill_at_s = self._patience_ends_at_s = _NEVER
        self._stopped = False
        self._code: int | None = None

    def run(self, wake: int) -> int:
        """Returns the exit code when nothing is left of the program; `wake` is readable when a process has ended."""
        listening = [self._control, wake]
        while True:
            ready, _, _ = select.select(listening, [], [], self._wait_s())
            if wake in ready:
                os.read(wake, 4096)
            if self._control in ready and not self._hear():
                listening.remove(self._control)
                self._kill_at_s = 0.0
            if self._is_over():
                assert self._code is not None
                return self._code

    def _wait_s(self) -> float | None:
        left_s = min(self._kill_at_s, self._patience_ends_at_s if self._stopped else self._stop_at_s) - _now_s()
        return None if left_s == _NEVER else min(max(left_s, 0.0), _LONGEST_WAIT_S)

    def _hear(self) -> bool:
        """Reads what the supervisor says; False when it says nothing any more."""
        try:
            data = os.read(self._control, 4096)
        except ConnectionResetError:
            data = b""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            match line.split():
                case [b"until", stop_at, kill_at]:
                    self._stop_at_s, self._kill_at_s = float(stop_at), float(kill_at)
                case [b"signal", number]:
                    self._send(int(number))
        return bool(data)

    def _is_over(self) -> bool:
        """Does what is due now; whether the program has ended and no process of it is left."""
        now_s = _now_s()
        if now_s >= min(self._kill_at_s, self._patience_ends_at_s):
            self._kill()
            return True
        if self._reap():
            return True
        if self._code is not None and not self._send(0):  # what is left has gone out of the program's group on purpose
            self._kill()
            return True
        if not self._stopped and (self._code is not None or now_s >= self._stop_at_s):
            self._stop(now_s)
        return False

    def _stop(self, now_s: float) -> None:
        if self._code is None:
            with contextlib.suppress(OSError):
                os.write(self._control, b"stopped\n")
        self._stopped = True
        self._patience_ends_at_s = now_s + self._stop_s
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> bool:
        """Sends a signal to the program's group; whether there is one."""
        try:
            os.killpg(self._program, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # of a program that has become another user
            pass
        return True

    def _kill(self) -> None:
        """Kills until nothing is left: whoever loses its parent by that is our child next."""
        if self._code is None:
            with contextlib.suppress(OSError):
                os.write(self._control, b"stopped\n")
        while not self._reap():
            self._send(signal.SIGKILL)
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _reap(self) -> bool:
        """Buries those who have ended; whether nobody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._program:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _children() -> Sequence[int]:
    """The processes whose parent this one is; none where the kernel does not tell."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _execute(command: list[str], parent: int, mask: Iterable[int]) -> None:
    """Becomes the program, in a session of its own, or ends as a shell would that cannot run it."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and programs inherit
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvp(command[0], command)  # noqa: S606 - it is what the user asked to run
    except OSError as error:
        reason = error.strerror
        code = _NOT_FOUND if isinstance(error, FileNotFoundError | NotADirectoryError) else _NOT_EXECUTABLE
    os.write(2, f"error: {command[0]!r} cannot be run: {reason}\n".encode(errors="replace"))
    os._exit(code)


def main(control: int, stop_s: float, command: list[str]) -> int:
    """Runs the program to its end and returns its exit code."""
    # What is meant for the program comes through the supervisor; what is sent to all processes of a service must not
    # end the keeper before the program. Blocked rather than ignored, so that the program loses none while it starts.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
    os.set_inheritable(control, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, noticed = os.pipe()
    os.set_blocking(noticed, False)
    signal.set_wakeup_fd(noticed)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    keeper = os.getpid()
    executed, executing = os.pipe()
    if (program := os.fork()) == 0:
        _execute(command, keeper, mask)
    os.close(executing)
    os.read(executed, 1)  # ends when the program has its own group, to which signals are sent
    os.close(executed)
    return Keeper(control, stop_s, program).run(wake)


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
