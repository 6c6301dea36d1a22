"""A process of the demo: started, listened to, and started again after it died."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from election.dev.parent import bound_to_this_process

Tell = Callable[[dict[str, Any]], None]
_LINE_LIMIT = 1024 * 1024


class Process:
    """A program that prints one JSON object per line. What it says on stderr goes to a file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command = bound_to_this_process(command)
        self._environment = {
            # What the user has set up for another cluster is not for this one.
            **{name: value for name, value in os.environ.items() if not name.startswith(("ELECTION_", "ETCDCTL_"))},
            **environment,
        }
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    async def run(self, respawn_s: float, tell: Tell) -> None:
        """Runs the program until cancelled, and `respawn_s` seconds after each end again (0: never again).

        Cancelling it leaves the program running: `stop` ends it.
        """
        while True:
            with self._log.open("ab") as log:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    limit=_LINE_LIMIT,
                    start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends the rest in order
                )
            tell({"event": "started", "process": self.name, "pid": process.pid})
            assert process.stdout is not None
            async for line in process.stdout:
                with suppress(ValueError):
                    tell({**json.loads(line), "process": self.name})
            code = await process.wait()
            again = {"respawn_s": respawn_s} if respawn_s else {}
            tell({"event": "ended", "process": self.name, "pid": process.pid, "code": code, **again})
            if not respawn_s:
                return
            await asyncio.sleep(respawn_s)

    async def stop(self, wait_s: float) -> None:
        """SIGTERM, and SIGKILL after `wait_s` seconds. Safe when it has ended."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(wait_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
