"""The running system of a drill: etcd, an observer of it, agents and collectors, and the notes on what is done."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from election.agent_control import REQUEST_TTL_S
from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.drill.checker.agents import FINAL
from election.drill.checker.deadlines import KILLED
from election.drill.checker.health import What
from election.drill.checker.replay import World, object_of
from election.drill.checker.writes import STARTED
from election.drill.history import FACTS, REVISIONS, Fact, Journal, Settings, write_settings
from election.drill.observer import HistoryLost, Observer
from election.drill.processes import Process, Starter
from election.errors import EtcdError
from election.etcd.client import EtcdClient
from election.keys import COLLECTOR_ELECTION, Keyspace, ReapRequestKey, StateKey

_PROBE_S = 0.25
_POLL_S = 0.05
_LEAVE_S = 20.0
_CROWD_PACE = 5.0
_HEALTHY_S = 90.0
"""How long it may take until all is well; when that is, is no promise of ours, so it is generous."""


class DrillFailed(Exception):
    """The drill could not go on: what it waited for did not come about."""


@dataclass
class System:
    """Made by `running`. `agents` has the process that is an agent now, `others` those that also are or were."""

    cluster: EtcdCluster
    client: EtcdClient
    observer: Observer
    starter: Starter
    facts: Journal
    keyspace: Keyspace
    agents: dict[str, Process] = field(default_factory=dict)
    others: dict[str, Process] = field(default_factory=dict)
    collectors: dict[str, Process] = field(default_factory=dict)
    _started: Counter[str] = field(default_factory=Counter)

    def note(self, what: str, who: str = "", **more: Any) -> None:
        """Writes down a fact."""
        self.facts.write(Fact(self.client.clock.now_s(), what, who, more))

    # --- processes ---------------------------------------------------------------------------------------------

    def start_agent(self, id: str, *, keep_state: bool, takeover: bool = False) -> Process:
        """Starts a process that wants to be this agent."""
        self._started[id] += 1
        name = f"{id}-{self._started[id]}"
        self.note(STARTED, id, process=name, takeover=takeover)
        options = ["--keep-state" if keep_state else "--no-keep-state", *(["--takeover"] if takeover else [])]
        return self.starter.agents(name, [id], *options)

    def kill_agent(self, id: str, process: Process) -> None:
        """Kills a process that is this agent, or wants to be."""
        self.note(KILLED, id, process=process.name)
        process.kill()

    def start_crowd(self, crowd: str, ids: Iterable[str]) -> None:
        """Starts one process that is many agents, none of which is busy."""
        self._started[crowd] += 1
        name = f"{crowd}-{self._started[crowd]}"
        for each in ids:
            self.note(STARTED, each, process=name, takeover=False)
        self.agents[crowd] = self.starter.agents(name, ids, "--pace", f"{_CROWD_PACE}")

    def kill_crowd(self, crowd: str, ids: Iterable[str]) -> None:
        """Kills a process that is many agents."""
        process = self.agents[crowd]
        for each in ids:
            self.note(KILLED, each, process=process.name)
        process.kill()

    def start_server(self, port: int) -> None:
        """Starts the gRPC API."""
        self.others["server"] = self.starter.server("server", port)

    def start_collector(self) -> None:
        """Starts one more; each has an id that none had before."""
        name = f"c{len(self.collectors) + 1}"
        self.note("collector started", name)
        self.collectors[name] = self.starter.collector(name)

    def running_collectors(self) -> list[Process]:
        """Those that run and are to go on, the one that leads first."""
        leading = self.leading()
        running = [process for process in self.collectors.values() if process.running and not process.leaving]
        return sorted(running, key=lambda process: process.name != leading)

    def resume_collectors(self) -> None:
        """Lets those that stand still go on."""
        for process in self.collectors.values():
            if process.paused and process.running:
                process.send(signal.SIGCONT)
                self.note(What.COLLECTOR_RESUMED, process.name)

    def kill(self) -> None:
        """Ends every process but etcd's. Safe to call again."""
        for process in (*self.agents.values(), *self.others.values(), *self.collectors.values()):
            process.kill()

    # --- what etcd holds, as far as the observer has seen ---------------------------------------------------------

    def leading(self) -> str | None:
        """The collector that has the oldest key, has proved it and not given it up, whether or not it still runs."""
        prefix = self.keyspace.campaign(COLLECTOR_ELECTION)
        candidates = {key: each for key, each in self.observer.stored.items() if key.startswith(prefix)}
        world = World(self.keyspace, candidates=candidates)
        found = world.collector()
        return found[0] if found and not world.has_given_up(found[0]) else None

    def alive(self) -> set[str]:
        """The agents with a liveness key."""
        prefix = self.keyspace.alive_prefix
        return {key[len(prefix) :].decode() for key in self.observer.stored if key.startswith(prefix)}

    def stale(self) -> set[str]:
        """The agents with state that are not alive."""
        prefix = self.keyspace.state_prefix
        parsed = (self.keyspace.parse(key) for key in self.observer.stored if key.startswith(prefix))
        return {key.agent for key in parsed if isinstance(key, StateKey)} - self.alive()

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

    # --- times of a drill ------------------------------------------------------------------------------------------

    async def populate(self, agents: Iterable[str], *, collectors: int) -> None:
        """Starts collectors and agents, of which half keep their state when they leave; returns when all live."""
        for _ in range(collectors):
            self.start_collector()
        for number, name in enumerate(agents):
            self.agents[name] = self.start_agent(name, keep_state=number % 2 == 0)
            await asyncio.sleep(_POLL_S)
        await self.until(lambda: self.alive() >= self.agents.keys(), _HEALTHY_S, "not all agents live")
        await self.until(self._collects, _HEALTHY_S, "no collector leads")

    async def mend(self) -> None:
        """Starts members of etcd that are down, and resumes those that stand still."""
        for member in self.cluster.members:
            if member.running and not member.paused:
                continue
            member.resume()
            await member.start()
            self.note(What.DISTURBED, member.name, how="mend", unwell=False)

    async def settle(self) -> None:
        """Makes all well, and waits until nothing is stale any more; what is for too long, the checker tells."""
        settings = self.starter.settings
        self.resume_collectors()
        await self.mend()
        if not self.running_collectors():
            self.start_collector()
        await self.cluster.wait_healthy()
        await self.until(self._collects, _HEALTHY_S, "no collector leads")
        await asyncio.sleep(settings.ttl_s + 1)  # for the leases of those that were killed
        began_at_s = self.client.clock.now_s()
        give_up_at_s = began_at_s + settings.bound_s + settings.reconcile_s + 2 * _PROBE_S
        while self.stale() and self.client.clock.now_s() < give_up_at_s:
            await asyncio.sleep(_POLL_S)
        self.note("settled", stale=sorted(self.stale()), took_s=self.client.clock.now_s() - began_at_s)

    def _collects(self) -> bool:
        leading = self.leading()
        breaker = self.observer.stored.get(self.keyspace.breaker)
        is_open = breaker is not None and object_of(breaker.value)["open"]
        return leading in {process.name for process in self.running_collectors()} and not is_open

    async def end(self) -> None:
        """All agents leave and are collected, all collectors leave; then notes what leases etcd still holds."""
        settings = self.starter.settings
        await self._all_leave([*self.agents.values(), *self.others.values()])
        await asyncio.sleep(settings.ttl_s)  # for the leases of those that were killed
        await self.until(lambda: not self.stale(), settings.bound_s + _HEALTHY_S, "not everything is collected")
        await self.until(lambda: not self.requests(), REQUEST_TTL_S + _HEALTHY_S, "a request to reap is still there")
        await self._all_leave(list(self.collectors.values()))
        await asyncio.sleep(settings.ttl_s + 1)
        answer = await self.client.leases()
        await self.observer.reach(answer.header.revision)
        keys = {}
        for each in answer.leases:
            found = await self.client.lease_time_to_live(each.ID, keys=True)
            if found.TTL >= 0:
                keys[f"{each.ID:x}"] = [key.decode("latin-1") for key in found.keys]
        self.note(FINAL, leases=keys)

    async def _all_leave(self, processes: list[Process]) -> None:
        for process in processes:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in processes:
            if not await process.ended(_LEAVE_S):
                raise DrillFailed(f"{process.name} has not ended {_LEAVE_S:g} s after SIGTERM")

    async def probe(self) -> None:
        """Reads etcd again and again, linearizably, and notes whether it answers; until cancelled."""
        config = EtcdConfig(self.starter.endpoints, call_timeout_s=1.5, attempt_timeout_s=0.5)
        async with EtcdClient(config) as client:
            while True:
                began_at_s = client.clock.now_s()
                try:
                    await client.get(b"probe")
                except EtcdError:
                    ok = False
                else:
                    ok = True
                ended_at_s = client.clock.now_s()
                self.facts.write(Fact(began_at_s, What.PROBED, more={"ok": ok, "ended_at_s": ended_at_s}))
                await asyncio.sleep(_PROBE_S)


@asynccontextmanager
async def running(folder: Path, settings: Settings, collect_options: Sequence[str]) -> AsyncIterator[System]:
    """A cluster of three members with an observer, and no agent yet; everything ends with the block.

    Raises:
        HistoryLost: the observer cannot go on.
    """
    write_settings(folder, settings)
    facts, revisions = Journal(folder / FACTS), Journal(folder / REVISIONS)
    async with await EtcdCluster.start(data_dir=folder / "etcd") as cluster:
        config = EtcdConfig(cluster.endpoints, call_timeout_s=2.0)
        async with EtcdClient(config) as client, EtcdClient(config) as watching:
            observer = Observer(watching, revisions)
            starter = Starter(folder, cluster.endpoints, settings, tuple(collect_options))
            system = System(cluster, client, observer, starter, facts, Keyspace(settings.namespace))
            system.note(What.DISTURBED, how="start", unwell=False)
            failure: BaseException | None = None
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(observer.run()), group.create_task(system.probe())]
                    yield system
                    for task in tasks:
                        task.cancel()
            except* (DrillFailed, HistoryLost) as failed:
                failure = failed.exceptions[0]
            finally:
                system.kill()
            if failure is not None:
                raise failure
