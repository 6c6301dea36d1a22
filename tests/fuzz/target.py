"""The server that is attacked, and what has to be true of it all the time."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from election.client import Client, dial
from election.dev.parent import bound_to_this_process
from election.store import Store
from election.term import Term

ELECTION = "watched"


@dataclass
class Target:
    """A server, a leader that it has to know all the time, and the client that asks it."""

    address: str
    process: asyncio.subprocess.Process
    client: Client
    term: Term

    @property
    def memory_mib(self) -> float:
        """What the server has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    async def check(self) -> None:
        """Raises when the server is gone, or does not tell what is true."""
        assert self.process.returncode is None, f"the server has ended: {self.process.returncode}"
        async with asyncio.timeout(20):
            leader = (await self.client.leader(ELECTION, linearizable=True)).value
            assert leader is not None, "the server says that nobody leads"
            assert leader.token == self.term.token, f"{leader} is told to lead, and {self.term.token} does"
            assert (await self.client.check_token(ELECTION, self.term.token)).value.current, "the token is refused"
            await self.client.agents()

    async def watch(self) -> None:
        """Checks again and again until it is cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(0.5)


@asynccontextmanager
async def target(store: Store) -> AsyncGenerator[Target]:
    """A server of its own process, without limits of requests, and a leader that leads for as long as it is there."""
    where = ("--endpoints", ",".join(store.config.endpoints), "--namespace", store.keyspace.namespace)
    serve = ("serve", "--grpc-port", "0", "--no-collect", "--max-requests-per-second", "0", "-o", "json")
    command = bound_to_this_process([sys.executable, "-m", "election.cli", *serve, *where])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        address = json.loads(await process.stdout.readline())["grpc"]
        elected: asyncio.Future[Term] = asyncio.get_running_loop().create_future()

        async def work(term: Term) -> None:
            elected.set_result(term)
            await asyncio.Event().wait()

        leading = asyncio.create_task(store.candidate(ELECTION, id="leader").lead(work))
        try:
            async with dial(address) as client:
                yield Target(address, process, client, await elected)
        finally:
            leading.cancel()
            with suppress(asyncio.CancelledError):
                await leading
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
