"""What a drill does to a system: each action of a plan by its name."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from election.agent_control import ask_to_reap, drain
from election.config import EtcdConfig
from election.dev.etcd import Member
from election.drill.checker.health import What
from election.drill.checker.writes import EVICTS, STRANGER
from election.drill.plan import Action
from election.drill.processes import Process
from election.drill.system import System
from election.errors import ElectionError, EtcdError
from election.etcd import methods, txn
from election.etcd.client import EtcdClient
from election.pb.etcd import rpc_pb2 as rpc


class Faults:
    """Does what is planned to one system, and notes it before."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._count = 0
        self._mending: asyncio.Task[None] | None = None
        self._acts: dict[str, Callable[[Action], Awaitable[None] | None]] = {
            "start": self._start,
            "kill": self._kill,
            "kill paused": self._kill,
            "kill and return": self._kill_and_return,
            "pause": lambda action: self._signal(action.who, signal.SIGSTOP),
            "resume": lambda action: self._signal(action.who, signal.SIGCONT),
            "leave": lambda action: self._signal(action.who, signal.SIGTERM),
            "second": self._second,
            "end second": self._end_second,
            "evict": self._evict,
            "drain": self._drain,
            "ask to reap": self._ask_to_reap,
            "stranger": self._stranger,
            "ambush": self._ambush,
            "collector start": lambda _: system.start_collector(),
            "collector kill": lambda _: self._collector(What.COLLECTOR_KILLED, signal.SIGKILL),
            "collector leave": lambda _: self._collector(What.COLLECTOR_LEAVES, signal.SIGCONT, signal.SIGTERM),
            "collector pause": lambda _: self._collector(What.COLLECTOR_PAUSED, signal.SIGSTOP),
            "collector resume": lambda _: system.resume_collectors(),
            "compact": self._compact,
            "move etcd leader": self._move_leader,
            "member kill": self._member_kill,
            "member pause": self._member_pause,
            "member restart": lambda _: self._restarted(),
            "member resume": lambda _: system.mend(),
            "quorum loss": self._quorum_loss,
            "quiet": lambda _: system.settle(),
        }

    async def do(self, action: Action) -> None:
        """Does one action."""
        self._count += 1
        self._system.note("action", action.who, action=action.what, round=action.round)
        doing = self._acts[action.what](action)
        if doing is not None:
            await doing

    # --- agents ----------------------------------------------------------------------------------------------

    def _start(self, action: Action) -> None:
        agents, others = self._system.agents, self._system.others
        if (before := agents.get(action.who)) is not None and before.running:
            others[before.name] = before  # it is still leaving
        agents[action.who] = self._system.start_agent(action.who, **action.more)

    def _kill(self, action: Action) -> None:
        self._system.kill_agent(action.who, self._system.agents[action.who])

    def _kill_and_return(self, action: Action) -> None:
        self._kill(action)
        self._start(action)

    def _signal(self, who: str, number: signal.Signals) -> None:
        process = self._system.agents[who]
        self._system.note(f"agent gets {number.name}", who, process=process.name)
        process.send(number)

    def _second(self, action: Action) -> None:
        """Another process wants to be the same agent."""
        process = self._system.start_agent(action.who, keep_state=True, **action.more)
        self._system.others[process.name] = process

    def _end_second(self, action: Action) -> None:
        others = self._system.others
        for name in [name for name in others if name.startswith(f"{action.who}-")]:
            self._system.kill_agent(action.who, others.pop(name))

    async def _evict(self, action: Action) -> None:
        """Deletes a liveness key by hand."""
        liveness = self._system.keyspace.alive(action.who)
        held = self._system.observer.stored.get(liveness)
        if held is not None:
            self._system.note(EVICTS, action.who, incarnation=held.created)
            with suppress(EtcdError):
                await self._system.client.txn([txn.created_at(liveness, held.created)], [txn.delete(liveness)])

    async def _drain(self, action: Action) -> None:
        with suppress(ElectionError):
            await drain(self._system.client, self._system.keyspace, action.who, by="drill")

    async def _ask_to_reap(self, action: Action) -> None:
        with suppress(ElectionError):
            await ask_to_reap(self._system.client, self._system.keyspace, action.who, by="drill")

    async def _stranger(self, action: Action) -> None:
        """Puts state by hand, as no agent does; some of it where no agent can have any."""
        key = self._system.keyspace.state(action.who, f"task-{self._count % 3}")
        key += b"/foreign" if self._count % 7 == 0 else b""
        value = json.dumps({"by": STRANGER, "at_s": self._system.client.clock.now_s()})
        with suppress(EtcdError):
            await self._system.client.put(key, value.encode())

    async def _ambush(self, action: Action) -> None:
        """An agent comes back while the collector stands still, past the grace.

        So the collector wakes up with a reap that is due, and has not heard of the return; some have lost their term
        meanwhile. With `again` the agent has just vanished once more, and has a new grace.
        """
        grace_s = self._system.starter.settings.grace_s
        await self._vanish(action)
        await asyncio.sleep(grace_s / 2)  # the collector hears of it
        self._collector(What.COLLECTOR_PAUSED, signal.SIGSTOP)
        self._signal(action.who, signal.SIGCONT)
        await asyncio.sleep(grace_s + action.more["longer_s"])
        if action.more["again"]:
            await self._vanish(action)
        self._system.resume_collectors()
        await asyncio.sleep(grace_s / 4)
        self._signal(action.who, signal.SIGCONT)

    async def _vanish(self, action: Action) -> None:
        """An agent stands still, and its liveness key is gone at once."""
        self._signal(action.who, signal.SIGSTOP)
        await self._evict(action)

    # --- collectors ------------------------------------------------------------------------------------------

    def _collector(self, what: str, *numbers: signal.Signals) -> None:
        """Does it to the one that works, or to any where none does."""
        for process in self._system.running_collectors()[:1]:
            self._system.note(what, process.name)
            for number in numbers:
                _send(process, number)

    # --- etcd ------------------------------------------------------------------------------------------------

    async def _compact(self, _: Action) -> None:
        """Up to what the observer has seen."""
        with suppress(EtcdError):
            await self._system.client.compact(max(self._system.observer.revision - 1, 1))

    async def _move_leader(self, _: Action) -> None:
        """Lets another member lead in etcd."""
        leader = await self._system.cluster.leader()
        async with EtcdClient(EtcdConfig((leader.endpoint,))) as client:
            with suppress(EtcdError):
                listed = await client.call(methods.MEMBER_LIST, rpc.MemberListRequest())
                others = sorted(each.ID for each in listed.members if each.name != leader.name)
                self._disturb("move leader", leader, unwell=False)
                await client.call(methods.MOVE_LEADER, rpc.MoveLeaderRequest(targetID=others[self._count % 2]))
        self._disturb("moved leader", leader, unwell=False)

    async def _members(self, first: str) -> list[Member]:
        """All members, the leader or one that follows first."""
        leader = await self._system.cluster.leader()
        return sorted(self._system.cluster.members, key=lambda each: (each is leader) != (first == "leader"))

    async def _member_kill(self, action: Action) -> None:
        member = (await self._members(action.who))[0]
        self._disturb("kill", member, unwell=False)
        member.kill()

    async def _member_pause(self, action: Action) -> None:
        member = (await self._members(action.who))[0]
        self._disturb("pause", member, unwell=True)
        member.pause()

    async def _quorum_loss(self, action: Action) -> None:
        for member in (await self._members(action.who))[:2]:
            self._disturb("kill", member, unwell=True)
            member.kill()
        self._mending = asyncio.create_task(self._mend_after(action.more["for_s"]))

    async def _mend_after(self, for_s: float) -> None:
        """By the clock, since without a quorum whatever else is planned takes longer."""
        await asyncio.sleep(for_s)
        await self._system.mend()

    async def _restarted(self) -> None:
        mending, self._mending = self._mending, None
        await (mending or self._system.mend())

    def _disturb(self, how: str, member: Member, *, unwell: bool) -> None:
        self._system.note(What.DISTURBED, member.name, how=how, unwell=unwell)


def _send(process: Process, number: signal.Signals) -> None:
    if number is signal.SIGKILL:
        process.kill()
    else:
        process.send(number)
