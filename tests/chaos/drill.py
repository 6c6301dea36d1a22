"""Carries out a plan on a real system, and notes what it does before it does it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, Member
from election.errors import EtcdError
from election.etcd import methods, txn
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from tests.chaos.checker import FINAL
from tests.chaos.deadlines import KILLED
from tests.chaos.health import What
from tests.chaos.history import FACTS, REVISIONS, Fact, Journal, Settings, write_settings
from tests.chaos.observer import Observer
from tests.chaos.plan import Action
from tests.chaos.processes import Process, Starter
from tests.chaos.replay import World
from tests.chaos.writes import EVICTS, STRANGER

_PROBE_S = 0.25
_POLL_S = 0.05
_LEAVE_S = 20.0
_HEALTHY_S = 40.0
"""How long etcd and the collectors may take until all is well again; what does is no promise, so it is generous."""


class DrillFailed(Exception):
    """The drill could not go on: what it waited for did not come about."""


@dataclass
class Drill:
    """A running system, and what can be done to it; made by `running`."""

    cluster: EtcdCluster
    client: EtcdClient
    observer: Observer
    starter: Starter
    facts: Journal
    keyspace: Keyspace
    agents: dict[str, Process] = field(default_factory=dict)
    others: dict[str, Process] = field(default_factory=dict)
    collectors: dict[str, Process] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    _started: Counter[str] = field(default_factory=Counter)

    def note(self, what: str, who: str = "", **more: Any) -> None:
        """Writes down a fact."""
        self.facts.write(Fact(self.client.clock.now_s(), what, who, more))

    async def run(self, actions: Sequence[Action], tell: Callable[[str], None]) -> None:
        """Does everything that is planned, in order."""
        for action in actions:
            await asyncio.sleep(action.wait_s)
            self.note("action", action.who, action=action.what, round=action.round)
            await self._do(action)
            if action.round:
                self.done[action.what] += 1
            if action.what == "quiet":
                tell(f"quiet after {self.done.total()} rounds, revision {self.observer.revision}")

    async def _do(self, action: Action) -> None:
        acts: dict[str, Callable[[Action], Awaitable[None] | None]] = {
            "start": self._start,
            "kill": self._kill,
            "kill paused": self._kill,
            "kill and return": self._kill_and_return,
            "pause": lambda _: self._signal(action.who, signal.SIGSTOP),
            "resume": lambda _: self._signal(action.who, signal.SIGCONT),
            "leave": lambda _: self._signal(action.who, signal.SIGTERM),
            "second": self._second,
            "end second": self._end_second,
            "evict": self._evict,
            "stranger": self._stranger,
            "compact": self._compact,
            "collector start": lambda _: self.start_collector(),
            "collector kill": self._collector_kill,
            "collector leave": self._collector_leave,
            "collector pause": self._collector_pause,
            "collector resume": lambda _: self._collectors_resume(),
            "move etcd leader": self._move_leader,
            "member kill": self._member_kill,
            "member pause": self._member_pause,
            "member restart": lambda _: self._mend(),
            "member resume": lambda _: self._mend(),
            "quorum loss": self._quorum_loss,
            "quiet": self._quiet,
        }
        doing = acts[action.what](action)
        if doing is not None:
            await doing

    # --- agents ----------------------------------------------------------------------------------------------

    def start_agent(self, id: str, *, keep_state: bool) -> Process:
        """Starts a process that is this agent."""
        self._started[id] += 1
        process = self.starter.agent(id, self._started[id], keep_state=keep_state)
        self.note("agent started", id, process=process.name)
        return process

    def _start(self, action: Action) -> None:
        if (before := self.agents.get(action.who)) is not None and before.running:
            self.others[before.name] = before  # it still leaves
        self.agents[action.who] = self.start_agent(action.who, **action.more)

    def _kill(self, action: Action) -> None:
        process = self.agents[action.who]
        self.note(KILLED, action.who, process=process.name)
        process.kill()

    def _kill_and_return(self, action: Action) -> None:
        self._kill(action)
        self._start(action)

    def _signal(self, who: str, number: signal.Signals) -> None:
        self.note(f"agent gets {number.name}", who, process=self.agents[who].name)
        self.agents[who].send(number)

    def _second(self, action: Action) -> None:
        process = self.start_agent(action.who, keep_state=True)
        self.others[process.name] = process

    def _end_second(self, action: Action) -> None:
        for name in [name for name in self.others if name.startswith(f"{action.who}-")]:
            process = self.others.pop(name)
            self.note(KILLED, action.who, process=name)
            process.kill()

    async def _evict(self, action: Action) -> None:
        """Deletes a liveness key by hand."""
        liveness = self.keyspace.alive(action.who)
        held = self.observer.stored.get(liveness)
        if held is None:
            return
        self.note(EVICTS, action.who, incarnation=held.created)
        with suppress(EtcdError):
            await self.client.txn([txn.created_at(liveness, held.created)], [txn.delete(liveness)])

    async def _stranger(self, action: Action) -> None:
        """Puts state by hand, as no agent does."""
        at_s = self.client.clock.now_s()
        value = json.dumps({"by": STRANGER, "at_s": at_s})
        key = self.keyspace.state(action.who, f"task-{self.done['stranger'] % 3}")
        try:
            await self.client.put(key, value.encode())
        except EtcdError as error:
            self.note("stranger failed", action.who, error=str(error))

    # --- collectors ------------------------------------------------------------------------------------------

    def start_collector(self) -> None:
        """Starts one more; each has an id that none had before."""
        name = f"c{len(self.collectors) + 1}"
        self.note("collector started", name)
        self.collectors[name] = self.starter.collector(name)

    def running_collectors(self) -> list[Process]:
        """Those that run, the one that leads first."""
        leading = self.world().collector()
        running = [process for process in self.collectors.values() if process.running]
        return sorted(running, key=lambda process: leading is None or process.name != leading[0])

    def world(self) -> World:
        """What the observer has seen of the collectors' election and the breaker."""
        prefix = self.keyspace.campaign("_collector")
        stored = self.observer.stored
        candidates = {key: each for key, each in stored.items() if key.startswith(prefix)}
        return World(self.keyspace, self.observer.revision, stored, candidates=candidates)

    def _collector_kill(self, _: Action) -> None:
        for process in self.running_collectors()[:1]:
            self.note(What.COLLECTOR_KILLED, process.name)
            process.kill()

    def _collector_leave(self, _: Action) -> None:
        for process in self.running_collectors()[:1]:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)

    def _collector_pause(self, _: Action) -> None:
        for process in self.running_collectors()[:1]:
            self.note(What.COLLECTOR_PAUSED, process.name)
            process.send(signal.SIGSTOP)

    def _collectors_resume(self) -> None:
        for process in self.collectors.values():
            if process.paused:
                process.send(signal.SIGCONT)
                self.note(What.COLLECTOR_RESUMED, process.name)

    # --- etcd ------------------------------------------------------------------------------------------------

    async def _compact(self, _: Action) -> None:
        try:
            await self.client.compact(max(self.observer.revision - 1, 1))
        except EtcdError as error:
            self.note("not compacted", error=str(error))

    async def _move_leader(self, _: Action) -> None:
        """Asks the leader to give way to the member after it."""
        leader = await self.cluster.leader()
        async with EtcdClient(EtcdConfig((leader.endpoint,))) as client:
            try:
                listed = await client.call(methods.MEMBER_LIST, rpc.MemberListRequest())
                ids = sorted(each.ID for each in listed.members if each.name != leader.name)
                self._disturb("move", leader, unwell=False)
                target = rpc.MoveLeaderRequest(targetID=ids[self.done.total() % len(ids)])
                await client.call(methods.MOVE_LEADER, target)
            except EtcdError as error:
                self.note("leader not moved", leader.name, error=str(error))
        self._disturb("moved", leader, unwell=False)

    async def _member(self, role: str) -> Member:
        leader = await self.cluster.leader()
        return leader if role == "leader" else next(each for each in self.cluster.members if each is not leader)

    async def _member_kill(self, action: Action) -> None:
        member = await self._member(action.who)
        self._disturb("kill", member, unwell=False)
        member.kill()

    async def _member_pause(self, action: Action) -> None:
        member = await self._member(action.who)
        self._disturb("pause", member, unwell=True)
        member.pause()

    async def _quorum_loss(self, action: Action) -> None:
        first = await self._member(action.who)
        for member in (first, next(each for each in self.cluster.members if each is not first)):
            self._disturb("kill", member, unwell=True)
            member.kill()

    async def _mend(self) -> None:
        """Starts members that are down and resumes those that stand still."""
        for member in self.cluster.members:
            if member.running and not member.paused:
                continue
            member.resume()
            await member.start()
            self._disturb("mend", member, unwell=False)

    def _disturb(self, how: str, member: Member, *, unwell: bool) -> None:
        self.note(What.DISTURBED, member.name, how=how, unwell=unwell)

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

    # --- quiet times -----------------------------------------------------------------------------------------

    async def _quiet(self, action: Action) -> None:
        """Lets all become well, and waits until nothing is stale any more, or is overdue."""
        self._collectors_resume()
        await self._mend()
        if not any(process.running for process in self.collectors.values()):
            self.start_collector()
        await self.until(self._collects, _HEALTHY_S, "no collector leads")
        await self.cluster.wait_healthy()
        began_at_s = self.client.clock.now_s()
        bound_s = self.starter.settings.bound_s
        while self.stale() and self.client.clock.now_s() < began_at_s + bound_s + _PROBE_S:
            await asyncio.sleep(_POLL_S)
        self.note("quiet", stale=sorted(self.stale()), took_s=self.client.clock.now_s() - began_at_s)

    def _collects(self) -> bool:
        leading = self.world().collector()
        return leading is not None and self.collectors[leading[0]].running

    def stale(self) -> set[str]:
        """The agents with state that are not alive."""
        alive, states = self.keyspace.alive_prefix, self.keyspace.state_prefix
        living = {key[len(alive) :] for key in self.observer.stored if key.startswith(alive)}
        stored = {key[len(states) :].split(b"/")[0] for key in self.observer.stored if key.startswith(states)}
        return {agent.decode() for agent in stored - living}

    async def until(self, holds: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Waits until something holds; raises DrillFailed."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DrillFailed(f"{otherwise} after {timeout_s:g} s") from None

    # --- the end -----------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """All agents leave and are collected, all collectors leave; then notes what leases etcd still holds."""
        bound_s = self.starter.settings.bound_s
        await self._all_leave([*self.agents.values(), *self.others.values()])
        await asyncio.sleep(self.starter.settings.ttl_s)  # for leases of those that were killed
        await self.until(lambda: not self.stale(), bound_s + _HEALTHY_S, f"{self.stale()} are not collected")
        await self._all_leave(list(self.collectors.values()))
        await asyncio.sleep(self.starter.settings.ttl_s + 1)
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

    def kill(self) -> None:
        """Ends every process of the drill. Safe to call again."""
        for process in (*self.agents.values(), *self.others.values(), *self.collectors.values()):
            process.kill()


@asynccontextmanager
async def running(folder: Path, settings: Settings, collect_options: Sequence[str]) -> AsyncIterator[Drill]:
    """A cluster of three members with an observer, and no agent yet; everything ends with the block."""
    write_settings(folder, settings)
    facts, revisions = Journal(folder / FACTS), Journal(folder / REVISIONS)
    async with await EtcdCluster.start(data_dir=folder / "etcd") as cluster:
        config = EtcdConfig(cluster.endpoints)
        async with EtcdClient(config) as client, EtcdClient(config) as watching:
            observer = Observer(watching, revisions)
            starter = Starter(folder, cluster.endpoints, settings, tuple(collect_options))
            drill = Drill(cluster, client, observer, starter, facts, Keyspace(settings.namespace))
            drill._disturb("start", cluster.members[0], unwell=False)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(observer.run()), group.create_task(drill.probe())]
                    yield drill
                    for task in tasks:
                        task.cancel()
            finally:
                drill.kill()
