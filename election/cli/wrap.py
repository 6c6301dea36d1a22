"""The command `agents run`: a program that runs while, and only while, it is registered as an agent."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from election.agents import Agent
from election.cli.exits import LOST
from election.cli.join import agent_options
from election.cli.options import Settings, command, more_than_zero, setting
from election.cli.output import print_event
from election.clock import BootClock, Clock
from election.config import AgentConfig
from election.errors import AgentLost
from election.registration import Registration
from election.supervisor import STOP_S, CannotRun, Ended, Program, find, running

_SIGNALLED = 128


@command("run")
@click.argument("id")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@agent_options
@setting(
    "--on-loss",
    type=click.Choice(["restart", "stop", "ignore"]),
    default="restart",
    show_default=True,
    help="what becomes of CMD when the registration is lost",
)
@setting(
    "--kill-after",
    type=float,
    callback=more_than_zero,
    default=STOP_S,
    show_default=True,
    metavar="S",
    help="from SIGTERM to SIGKILL, seconds",
)
def agents_run(
    settings: Settings,
    id: str,
    command: tuple[str, ...],
    ttl: int,
    address: str,
    labels: dict[str, str],
    takeover: bool,
    drop_state: bool,
    on_loss: str,
    kill_after: float,
) -> int:
    """Run CMD while registered as the agent ID.

    Registers, runs CMD, leaves when CMD ends, and exits with its exit code. CMD finds ELECTION_AGENT_ID,
    ELECTION_AGENT_INCARNATION, ELECTION_NAMESPACE and ELECTION_ENDPOINTS in its environment. SIGINT and SIGTERM are
    passed on to it and to what it has started.

    When the registration is lost, CMD is stopped before another process can have the id: then it is started anew as
    the next incarnation (restart), or this exits with 4 (stop). `ignore` leaves CMD alone. What this command itself has
    to say goes to stderr.
    """
    config = AgentConfig(ttl_s=ttl, keep_state=not drop_state, register_again=on_loss != "stop")
    wrapped = _Wrapped(settings, command, config, on_loss, kill_after)

    async def run() -> int:
        try:
            find(command[0])
        except CannotRun as error:
            click.echo(f"error: {error}", err=True)
            return error.code
        async with (
            settings.store() as store,
            store.agent(id, address=address, labels=labels, config=config, takeover=takeover) as agent,
        ):
            return await wrapped.run(agent)

    return asyncio.run(wrapped.signals.guard(run()))


@dataclass(slots=True)
class _Signals:
    """SIGINT and SIGTERM go to the program while one runs, and end the command otherwise."""

    program: Program | None = None
    leaving: signal.Signals | None = None

    async def guard(self, run: Any) -> int:
        """Runs the command; what is stopped before it has a program exits as one that the signal has ended."""
        task = asyncio.ensure_future(run)
        with self._handled(task):
            await asyncio.wait({task})
        if task.cancelled() and self.leaving is not None:
            return _SIGNALLED + self.leaving
        return int(task.result())

    @contextmanager
    def _handled(self, task: asyncio.Task[int]) -> Generator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._handle, number, task)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _handle(self, number: signal.Signals, task: asyncio.Task[int]) -> None:
        if self.program is None:
            self.leaving = number
            task.cancel()
        elif number is signal.SIGTERM and self.leaving is None:
            self.leaving = number
            self.program.stop()
        else:  # a program may go on after SIGINT
            self.program.send(number)


@dataclass(slots=True)
class _Wrapped:
    """The program, and what becomes of it."""

    settings: Settings
    command: tuple[str, ...]
    config: AgentConfig
    on_loss: str
    stop_s: float
    signals: _Signals = field(default_factory=_Signals)
    clock: Clock = field(default_factory=BootClock)

    async def run(self, agent: Agent) -> int:
        """Runs the program in one registration after another; returns the exit code."""
        while True:
            registration = await self._registered(agent)
            if registration is None:
                return LOST
            self._tell("joined", agent, incarnation=registration.incarnation)
            ended = await self._run_once(agent, registration)
            if self.signals.leaving is not None or not ended.stopped:
                return ended.code
            self._tell("lost", agent, incarnation=registration.incarnation)
            if self.on_loss == "stop":
                return LOST

    async def _run_once(self, agent: Agent, registration: Registration) -> Ended:
        async with running(self.command, env=self._environment(agent, registration), stop_s=self.stop_s) as program:
            self.signals.program = program
            try:
                ending = asyncio.create_task(program.ended())
                if self.on_loss != "ignore":
                    while not ending.done():
                        self._bind(agent, registration, program)
                        await asyncio.wait({ending}, timeout=self._beat_s)
                return await ending
            finally:
                self.signals.program = None

    def _bind(self, agent: Agent, registration: Registration, program: Program) -> None:
        """Tells until when the program may run, as the deadline stands now; or that it may not any more."""
        present = agent.registration
        if present is None or present.incarnation != registration.incarnation:
            program.stop()
        else:
            over_at_s = self.clock.now_s() + agent.remaining_s()
            program.bind(over_at_s - self._notice_s, over_at_s)

    async def _registered(self, agent: Agent) -> Registration | None:
        """A registration with time enough to start a program; None when there will be none."""
        while True:
            try:
                registration = agent.check()
            except AgentLost:
                if not self.config.register_again:
                    return None
            else:
                if agent.remaining_s() > self._notice_s + self._beat_s:
                    return registration
            await self.clock.sleep_s(self._beat_s)

    @property
    def _beat_s(self) -> float:
        """How often the deadline is looked at."""
        return min(self.config.ttl_s / 30, 1.0)

    @property
    def _notice_s(self) -> float:
        """How long before the deadline the program is told to end, so that it can do so in order."""
        return min(self.stop_s, (self.config.ttl_s - self.config.margin_s) / 4)

    def _environment(self, agent: Agent, registration: Registration) -> Mapping[str, str]:
        return {
            "ELECTION_AGENT_ID": agent.id,
            "ELECTION_AGENT_INCARNATION": str(registration.incarnation),
            "ELECTION_NAMESPACE": self.settings.namespace,
            "ELECTION_ENDPOINTS": self.settings.endpoints,
        }

    def _tell(self, event: str, agent: Agent, **fields: object) -> None:
        print_event(self.settings.json, event, err=True, id=agent.id, **fields)
