"""Binds a process to the one that starts it: when that ends, however it ends, the kernel kills the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# A program of its own, because code between fork and exec is not safe in a process with gRPC's threads.
# PR_SET_PDEATHSIG is 1.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_this_process(command: Sequence[str]) -> tuple[str, ...]:
    """The command, so started that it is killed when the thread that starts it ends. Only Linux can do that."""
    if sys.platform != "linux":
        return tuple(command)
    return (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command)
