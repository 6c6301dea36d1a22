"""A reader of the gRPC API: it asks every server who leads, and watches, and writes down what it is told."""

from __future__ import annotations

import asyncio
import itertools
import signal
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from election.client.client import Client, dial
from election.clock import BootClock
from election.drill.history import Fact, Journal
from election.drill.vocabulary import Told
from election.errors import ElectionError
from election.reader import Source
from election.records import Leader

_ASK_S, _RETRY_S = 0.3, 0.5
_CLOCK = BootClock()


@dataclass
class Reader:
    """Reads from one server, or from several that stand in for each other."""

    name: str
    process: str
    client: Client
    election: str
    journal: Journal
    sessions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self) -> None:
        """Asks again and again."""
        while True:
            at_s = _CLOCK.now_s()
            try:
                answer = await self.client.leader(self.election)
            except ElectionError as error:
                self._say(Told.UNTOLD, at_s, "get", why=str(error)[:200])
            else:
                self._saw(at_s, "get", answer.value, answer.source)
            await asyncio.sleep(_ASK_S)

    async def watch(self) -> None:
        """Watches, and begins anew when a watch ends."""
        while True:
            session, at_s = next(self.sessions), _CLOCK.now_s()
            try:
                async with aclosing(self.client.watch_leader(self.election)) as events:
                    async for event in events:
                        self._saw(at_s, "watch", event.leader, event.source, session=session)
                        at_s = _CLOCK.now_s()
            except ElectionError as error:
                self._say(Told.UNTOLD, at_s, "watch", why=str(error)[:200])
            await asyncio.sleep(_RETRY_S)

    def _saw(self, at_s: float, via: str, leader: Leader | None, source: Source, **more: Any) -> None:
        found = {} if leader is None else {"token": str(leader.token), "leader": leader.id}
        self._say(Told.SAW, at_s, via, age_s=source.age_s, revision=source.revision, **found, **more)

    def _say(self, what: Told, at_s: float, via: str, **more: Any) -> None:
        said = {"process": self.process, "server": self.name, "via": via, "ended_at_s": _CLOCK.now_s(), **more}
        self.journal.write(Fact(at_s, what, self.process, said))


async def _run(servers: tuple[str, ...], process: str, journal: Path, election: str) -> None:
    named = dict(server.split("=") for server in servers)
    named["any"] = ",".join(named.values())
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    lines = Journal(journal)
    lines.write(Fact(_CLOCK.now_s(), Told.RUNS, process, {"process": process}))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read(name, where, process, lines, election)) for name, where in named.items()]
        await stopped.wait()
        for task in tasks:
            task.cancel()


async def _read(name: str, where: str, process: str, journal: Journal, election: str) -> None:
    async with dial(where) as client, asyncio.TaskGroup() as group:
        reader = Reader(name, process, client, election, journal)
        group.create_task(reader.ask())
        group.create_task(reader.watch())


@click.command()
@click.argument("servers", nargs=-1, required=True, metavar="NAME=ADDRESS...")
@click.option("--process", required=True)
@click.option("--journal", type=click.Path(path_type=Path), required=True)
@click.option("--election", required=True)
def main(servers: tuple[str, ...], process: str, journal: Path, election: str) -> None:
    """Reads from each server, and from all of them, until SIGTERM."""
    asyncio.run(_run(servers, process, journal, election))


if __name__ == "__main__":
    main()
