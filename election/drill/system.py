"""The running system of a drill: an etcd with an observer of it, the processes that use it, and the notes on them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from election.dev.ports import free_ports
from election.drill.history import FACTS, LATER, REVISIONS, Fact, Journal, Settings, write_settings
from election.drill.observer import HistoryLost, Observer
from election.drill.processes import Process, Starter
from election.drill.relay import HOST
from election.drill.site import PROBE_KEY, Site
from election.drill.slots import LETTERS, Role, Slot
from election.drill.vocabulary import Done
from election.errors import EtcdError
from election.etcd.client import EtcdClient
from election.keys import COLLECTOR_ELECTION, AliveKey, Keyspace, ReapRequestKey, StateKey
from election.records import CandidateRecord

_PROBE_S = 0.25
_POLL_S = 0.05
_KEEP_S = 0.2


class DrillFailed(Exception):
    """The drill could not go on: what it waited for did not come about."""


@dataclass
class System:
    """Made by `running`."""

    site: Site
    keyspace: Keyspace
    settings: Settings
    starter: Starter
    facts: Journal
    ports: dict[str, int]
    """Where the services listen, by their slots' names."""
    _stack: AsyncExitStack
    _group: asyncio.TaskGroup
    observer: Observer = field(init=False)
    slots: dict[str, Slot] = field(default_factory=dict)
    _observing: asyncio.Task[None] | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def note(self, what: str, who: str = "", **more: Any) -> None:
        """Writes down a fact."""
        self.facts.write(Fact(self.site.control.clock.now_s(), what, who, more))

    # --- processes ---------------------------------------------------------------------------------------------

    async def add(self, role: Role, number: int) -> Slot:
        """A new slot, by its role's letter and number; its process is started by the keeper, or by `start`."""
        name = f"{LETTERS[role]}{number}"
        endpoints = await self.site.endpoints_for(name) if role not in (Role.REGISTER, Role.READER) else ()
        starter = self.starter
        register = f"127.0.0.1:{self.ports['r1']}"
        servers = {name: f"127.0.0.1:{port}" for name, port in self.ports.items() if name != "r1"}
        keeps = "--keep-state" if number % 2 else "--no-keep-state"
        starts: dict[Role, Callable[[str], Process]] = {
            Role.REGISTER: lambda process: starter.register(process, self.ports[name]),
            Role.SERVER: lambda process: starter.server(process, endpoints, self.ports[name]),
            Role.READER: lambda process: starter.reader(process, servers),
            Role.COLLECTOR: lambda process: starter.collector(process, endpoints),
            Role.AGENT: lambda process: starter.agent(process, [name], endpoints, keeps),
            Role.ORCHESTRATOR: lambda process: starter.orchestrator(
                process, name, endpoints, register, is_blocking=False
            ),
            Role.BLOCKING: lambda process: starter.orchestrator(process, name, endpoints, register, is_blocking=True),
        }
        slot = self.slots[name] = Slot(name, role, starts[role])
        return slot

    def start(self, slot: Slot) -> None:
        """Starts a process in the slot, and wants it to run from now on."""
        slot.started += 1
        slot.wanted = True
        name = f"{slot.name}-{slot.started}"
        self.note(Done.STARTED, name, role=slot.role, slot=slot.name)
        slot.since = self.observer.revision
        slot.process = slot.start(name)

    async def second(self, first: Slot, *, takeover: bool) -> Slot:
        """Starts another process that wants to be the same agent; when it ends, it is not started again."""
        endpoints = await self.site.endpoints_for(first.name)
        first.started += 1
        name = f"{first.name}-{first.started}"
        options = ("--keep-state", "--takeover") if takeover else ("--keep-state",)
        slot = self.slots[name] = Slot(
            name, Role.SECOND, lambda process: self.starter.agent(process, [first.name], endpoints, *options)
        )
        self.note(Done.STARTED, name, role=slot.role, slot=first.name, takeover=takeover)
        slot.process = slot.start(name)
        return slot

    def kill(self, slot: Slot) -> None:
        """Kills the process, and wants none."""
        slot.wanted = False
        if slot.process is not None:
            self.note(Done.KILLED, slot.process.name, slot=slot.name)
            slot.process.kill()
            self.note(Done.GONE, slot.process.name, slot=slot.name)

    def leave(self, slot: Slot) -> None:
        """Tells the process to end, and wants none."""
        slot.wanted = False
        if slot.process is not None:
            self.note(Done.LEAVES, slot.process.name, slot=slot.name)
            slot.process.send(signal.SIGCONT)
            slot.process.send(signal.SIGTERM)

    def pause(self, slot: Slot) -> None:
        """Lets the process stand still."""
        if slot.process is not None:
            self.note(Done.PAUSED, slot.process.name)
            slot.process.send(signal.SIGSTOP)

    def resume(self, process: Process) -> None:
        """Lets it go on; safe when it is gone."""
        if process.running:
            self.note(Done.RESUMED, process.name)
            process.send(signal.SIGCONT)

    def of(self, *roles: Role) -> list[Slot]:
        """The slots of these roles."""
        return [slot for slot in self.slots.values() if slot.role in roles]

    async def keep(self) -> None:
        """Starts processes that are wanted and have ended, as Kubernetes would; until cancelled."""
        while True:
            for slot in self.slots.values():
                if slot.wanted and slot.process is not None and not slot.process.running:
                    self.note(Done.ENDED, slot.process.name, code=slot.process.exit_code)
                    self.start(slot)
            await asyncio.sleep(_KEEP_S)

    def kill_all(self) -> None:
        """Ends every process but etcd's. Safe to call again."""
        for slot in self.slots.values():
            slot.wanted = False
            if slot.process is not None:
                slot.process.kill()

    # --- what etcd holds, as far as the observer has seen ---------------------------------------------------------

    def candidates(self, election: str) -> list[tuple[int, CandidateRecord | None]]:
        """The create revisions and records of those that stand, the oldest first."""
        prefix = self.keyspace.campaign(election)
        found = [each for key, each in self.observer.stored.items() if key.startswith(prefix)]
        return [(each.created, CandidateRecord.decode(each.value)) for each in sorted(found, key=lambda it: it.created)]

    def leading(self, *roles: Role) -> Slot | None:
        """The slot whose process leads the orchestrators, or the collectors, and has proved it."""
        collect = Role.COLLECTOR in roles
        for created, record in self.candidates(COLLECTOR_ELECTION if collect else self.settings.election)[:1]:
            for slot in self.of(*roles):
                id = slot.process.name if collect and slot.process else slot.name  # noqa: A001
                if record is not None and record.elected_at and record.id == id and created > slot.since:
                    return slot
        return None

    @property
    def is_led(self) -> bool:
        """Whether anybody leads the election, and has proved it."""
        return any(record and record.elected_at for _, record in self.candidates(self.settings.election)[:1])

    def alive(self) -> set[str]:
        """The agents with a liveness key."""
        keys = map(self.keyspace.parse, self.observer.stored)
        return {key.agent for key in keys if isinstance(key, AliveKey)}

    def stale(self) -> set[str]:
        """The agents with state that are not alive."""
        keys = map(self.keyspace.parse, self.observer.stored)
        return {key.agent for key in keys if isinstance(key, StateKey)} - self.alive()

    def requests(self) -> bool:
        """Whether an operator has asked for a reap, and nobody has done it."""
        return any(isinstance(self.keyspace.parse(key), ReapRequestKey) for key in self.observer.stored)

    async def until(self, holds: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Waits until something holds; raises DrillFailed."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DrillFailed(f"{otherwise} after {timeout_s:g} s") from None

    # --- looking on ------------------------------------------------------------------------------------------------

    async def probe(self) -> None:
        """Reads etcd again and again, linearizably, and notes whether it answers; until cancelled."""
        config = replace(self.site.config, call_timeout_s=1.5, attempt_timeout_s=0.5)
        async with EtcdClient(config) as client:
            while True:
                began_at_s = client.clock.now_s()
                try:
                    await client.get(PROBE_KEY)
                except EtcdError:
                    ok = False
                else:
                    ok = True
                ended_at_s = client.clock.now_s()
                self.facts.write(Fact(began_at_s, Done.PROBED, more={"ok": ok, "ended_at_s": ended_at_s}))
                await asyncio.sleep(_PROBE_S)

    async def observe(self) -> None:
        """Begins to write down what etcd does, from its first revision on, or from now where it was set back."""
        client = await self._stack.enter_async_context(EtcdClient(self.site.config))
        is_first, whole = self._observing is None, self.settings.whole
        journal = Journal(self.site.folder / (REVISIONS if is_first else LATER))
        self.observer = Observer(client, journal, b"" if whole else self.keyspace.root)
        if not (is_first and whole):
            await self.observer.begin()
        self._observing = self._group.create_task(self.observer.run())

    @asynccontextmanager
    async def set_back(self, *, bumped: bool) -> AsyncGenerator[None]:
        """Around what starts etcd from a snapshot, once in a drill: what it does afterwards is another history."""
        assert self._observing is not None
        self.note(Done.SET_BACK, bumped=bumped)
        self._observing.cancel()
        await asyncio.wait({self._observing})
        yield
        await self.observe()

    def watch(self) -> None:
        """Begins to probe etcd, and to start again what ends."""
        self._tasks += [self._group.create_task(self.probe()), self._group.create_task(self.keep())]

    def unwatch(self) -> None:
        """Ends what `watch` and `observe` have begun."""
        for task in (*self._tasks, self._observing):
            if task is not None:
                task.cancel()


def _ports(servers: int) -> dict[str, int]:
    names = ["r1", *(f"s{number}" for number in range(1, servers + 1))]
    return dict(zip(names, free_ports(len(names), HOST), strict=True))


@asynccontextmanager
async def running(
    made: AbstractAsyncContextManager[Site],
    settings: Settings,
    *,
    servers: int = 2,
    collect_options: tuple[str, ...] = (),
) -> AsyncGenerator[System]:
    """A site with an observer, and no process yet; everything ends with the block.

    Raises:
        HistoryLost: the observer cannot go on.
        ElectionError: etcd does not start, or cannot be used.
    """
    failure: BaseException | None = None
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(made)
        folder = site.folder
        settings = replace(settings, etcd=site.cluster.version)
        write_settings(folder, settings)
        try:
            async with asyncio.TaskGroup() as group:
                system = System(
                    site=site,
                    keyspace=Keyspace(settings.namespace),
                    settings=settings,
                    starter=Starter(folder, settings, site.user, collect_options),
                    facts=Journal(folder / FACTS),
                    ports=_ports(servers),
                    _stack=stack,
                    _group=group,
                )
                try:
                    await system.observe()
                    system.note(Done.DISTURBED, how="start", unwell=False)
                    system.watch()
                    yield system
                finally:
                    system.unwatch()
                    system.kill_all()
        except* (DrillFailed, HistoryLost) as failed:
            failure = failed.exceptions[0]
    if failure is not None:
        raise failure
