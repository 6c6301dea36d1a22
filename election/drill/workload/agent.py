"""Agents that store values until SIGTERM, and write down what they believe.

Each value says by whom it was written, as which incarnation, and when: so what etcd holds can be checked against who
may have written it. There is a line before each act that etcd would not tell of, and one after.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from election.agents import Agent
from election.clock import BootClock
from election.config import AgentConfig
from election.drill.history import Journal, Said
from election.drill.workload.options import USER
from election.errors import AgentExists, AgentLost, EtcdError
from election.store import Store, connect

_CLOCK = BootClock()
_TICK_S = (0.4, 1.2)
_EXISTS_S = 0.2
_BELIEF_S = 0.2
_LOST_S = 0.05
KEPT, STILL, CHANGING, EXTRA = "memory", ("assignment-1", "assignment-2"), ("status", "progress"), "scratch"
"""What an agent has put back after a reap; stores when it has registered; writes all the time; and deletes again."""
PROCESS = "process"
"""The label that tells which process has registered."""


@dataclass
class Worker:
    """What one agent does while it is registered."""

    agent: Agent
    process: str
    journal: Journal
    rng: random.Random
    pace: float
    written: int = 0
    incarnation: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def say(self, what: str, at_s: float, incarnation: int, **more: Any) -> None:
        """Writes a line."""
        self.journal.write(Said(at_s, what, self.agent.id, self.process, incarnation, **more))

    async def work(self) -> None:
        """Acts for as long as it is told nothing else."""
        while True:
            at_s = _CLOCK.now_s()
            try:
                incarnation = self.agent.check().incarnation
            except AgentLost:
                await asyncio.sleep(_LOST_S)
                continue
            if incarnation != self.incarnation:
                await self.begin(incarnation, at_s)
            await self.put(self.rng.choice(CHANGING))
            if self.rng.random() < 0.1:
                await self.put(EXTRA)
                await self.delete(EXTRA)
            await asyncio.sleep(self.rng.uniform(*_TICK_S) * self.pace)

    def believe(self) -> None:
        """Asks again and again whether it is alive.

        From a thread of its own: in a process that was stopped, it may well ask before anything else has run.
        """
        while not self.over.wait(_BELIEF_S * self.pace):
            at_s = _CLOCK.now_s()
            with suppress(AgentLost):
                self.say("acted", at_s, self.agent.check().incarnation)

    async def begin(self, incarnation: int, at_s: float) -> None:
        """What it does once in each life."""
        self.say("registered", at_s, incarnation)
        for key in STILL:
            await self.put(key)
        if not self.incarnation or self.rng.random() < 0.5:
            await self.put(KEPT, keep=True)
        self.incarnation = incarnation

    async def put(self, key: str, *, keep: bool = False) -> None:
        """Writes one value, and says when etcd has confirmed it."""
        with suppress(AgentLost, EtcdError):
            at_s = _CLOCK.now_s()
            incarnation = self.agent.check().incarnation
            self.written += 1
            value = {"by": self.process, "incarnation": incarnation, "n": self.written, "at_s": at_s}
            if keep:
                self.say("keeps", at_s, incarnation, key=key)
            await self.agent.put(key, json.dumps(value), keep=keep)
            self.say("wrote", at_s, incarnation, key=key, ended_at_s=_CLOCK.now_s())

    async def delete(self, key: str) -> None:
        """Deletes one value, and says so before."""
        with suppress(AgentLost, EtcdError):
            at_s = _CLOCK.now_s()
            incarnation = self.agent.check().incarnation
            self.say("deletes", at_s, incarnation, key=key)
            await self.agent.delete(key)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all agents of one process have in common."""

    process: str
    journal: Journal
    config: AgentConfig
    takeover: bool
    pace: float

    async def be(self, id: str, store: Store, stopped: asyncio.Event) -> None:
        """Is the agent until `stopped`, and then leaves."""
        while not stopped.is_set():
            agent = store.agent(id, labels={PROCESS: self.process}, config=self.config, takeover=self.takeover)
            with suppress(AgentExists, EtcdError):  # its predecessor's lease has not ended, or etcd cannot be reached
                async with agent:
                    worker = Worker(agent, self.process, self.journal, random.Random(f"{self.process} {id}"), self.pace)
                    await _until(stopped, worker)
                    return
            await asyncio.sleep(_EXISTS_S)


async def _until(stopped: asyncio.Event, worker: Worker) -> None:
    believing = threading.Thread(target=worker.believe, daemon=True)
    believing.start()
    working = asyncio.create_task(worker.work())
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopping):
        task.cancel()
    await asyncio.wait({working, stopping})
    worker.over.set()
    worker.say("leaves", _CLOCK.now_s(), worker.incarnation)
    if not working.cancelled():
        working.result()


async def _run(ids: tuple[str, ...], setup: Setup, endpoints: str, namespace: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with (
        connect(endpoints, namespace=namespace, user=os.environ.get(USER)) as store,
        asyncio.TaskGroup() as group,
    ):
        for id in ids:  # noqa: A001 - the word for what names an agent
            group.create_task(setup.be(id, store, stopped))


@click.command()
@click.argument("ids", nargs=-1, required=True)
@click.option("--process", required=True, help="The name of this process among all that have ever been.")
@click.option("--journal", type=click.Path(path_type=Path), required=True)
@click.option("--endpoints", required=True)
@click.option("--namespace", required=True)
@click.option("--ttl", type=int, required=True)
@click.option("--keep-state/--no-keep-state", default=True)
@click.option("--takeover", is_flag=True)
@click.option("--pace", type=float, default=1.0, help="How much slower it is than agents usually are.")
def main(
    ids: tuple[str, ...],
    process: str,
    journal: Path,
    endpoints: str,
    namespace: str,
    ttl: int,
    keep_state: bool,
    takeover: bool,
    pace: float,
) -> None:
    """Is all these agents until SIGTERM, and then leaves."""
    config = AgentConfig(ttl_s=ttl, keep_state=keep_state, retry_max_s=1.0)
    setup = Setup(process, Journal(journal), config, takeover, pace)
    asyncio.run(_run(ids, setup, endpoints, namespace))


if __name__ == "__main__":
    main()
