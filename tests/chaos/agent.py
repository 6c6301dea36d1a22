"""`python -m tests.chaos.agent ID`: an agent that stores values until SIGTERM, and writes down what it believes.

Each value says by whom it was written, as which incarnation, and when: so what etcd holds can be checked against who
may have written it. Its history has a line before each act that etcd would not tell of, and one after.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from election import Agent, AgentConfig, AgentExists, AgentLost, EtcdError, connect
from election.clock import BootClock
from tests.chaos.history import Journal, Said

_CLOCK = BootClock()
_TICK_S = (0.2, 0.6)
_EXISTS_S = 0.2
STILL, CHANGING = ("memory", "assignment-1", "assignment-2"), ("status", "progress")
"""What an agent stores when it has registered, and what it writes all the time."""
EXTRA = "scratch"
"""What it stores and deletes again."""
PROCESS = "process"
"""The label that tells which process has registered."""


@dataclass
class Worker:
    """What the process does while it is registered."""

    agent: Agent
    process: str
    journal: Journal
    rng: random.Random
    written: int = 0
    incarnation: int = 0

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
                if self.incarnation:
                    self.say("lost", at_s, self.incarnation)
                    self.incarnation = 0
                await asyncio.sleep(_TICK_S[0] / 4)
                continue
            self.say("acted", at_s, incarnation)
            if incarnation != self.incarnation:
                self.incarnation = incarnation
                self.say("registered", at_s, incarnation)
                for key in STILL:
                    await self.put(key)
            await self.put(self.rng.choice(CHANGING))
            if self.rng.random() < 0.1:
                await self.put(EXTRA)
                await self.delete(EXTRA)
            await asyncio.sleep(self.rng.uniform(*_TICK_S))

    async def put(self, key: str) -> None:
        """Writes one value, and says when etcd has confirmed it."""
        with suppress(AgentLost):
            at_s = _CLOCK.now_s()
            incarnation = self.agent.check().incarnation
            self.written += 1
            value = {"by": self.process, "incarnation": incarnation, "n": self.written, "at_s": at_s}
            with suppress(EtcdError):
                await self.agent.put(key, json.dumps(value))
                self.say("wrote", at_s, incarnation, key=key, ended_at_s=_CLOCK.now_s())

    async def delete(self, key: str) -> None:
        """Deletes one value, and says so before."""
        with suppress(AgentLost, EtcdError):
            at_s = _CLOCK.now_s()
            incarnation = self.agent.check().incarnation
            self.say("deletes", at_s, incarnation, key=key)
            await self.agent.delete(key)


async def _run(id: str, process: str, journal: Journal, endpoints: str, namespace: str, config: AgentConfig) -> None:
    rng = random.Random(process)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with connect(endpoints, namespace=namespace) as store:
        while not stopped.is_set():
            try:
                async with store.agent(id, labels={PROCESS: process}, config=config) as agent:
                    worker = Worker(agent, process, journal, rng)
                    working = asyncio.create_task(worker.work())
                    stopping = asyncio.create_task(stopped.wait())
                    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    working.cancel()
                    await asyncio.wait({working})
                    worker.say("leaves", _CLOCK.now_s(), worker.incarnation)
                    if not working.cancelled():
                        working.result()
                    return
            except (AgentExists, EtcdError):  # its predecessor's lease has not ended, or etcd cannot be reached
                await asyncio.sleep(_EXISTS_S)


@click.command()
@click.argument("id")
@click.option("--process", required=True, help="The name of this process among all that have ever had the id.")
@click.option("--journal", type=click.Path(path_type=Path), required=True)
@click.option("--endpoints", required=True)
@click.option("--namespace", required=True)
@click.option("--ttl", type=int, required=True)
@click.option("--keep-state/--no-keep-state", default=True)
def main(id: str, process: str, journal: Path, endpoints: str, namespace: str, ttl: int, keep_state: bool) -> None:
    """Is the agent ID until SIGTERM, and then leaves."""
    config = AgentConfig(ttl_s=ttl, keep_state=keep_state, retry_max_s=1.0)
    asyncio.run(_run(id, process, Journal(journal), endpoints, namespace, config))


if __name__ == "__main__":
    main()
