"""The work of the demo: small tasks that the leader hands out to agents, each by a fenced transaction.

The ledger says which agent each task was given to; the agent finds the task in its own state, and deletes it there
when it is done. Both are written in one transaction that etcd refuses to a deposed leader, and for an agent that is
not alive any more. A task that was found in the state of a reaped agent is given to another one: it is done at least
once. The ledger remembers up to which reap that has been done, so a new leader begins with those that it missed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from election.agent_records import Agent, AgentState
from election.errors import EtcdError
from election.etcd import txn
from election.fencing.txn import fenced_txn
from election.pb.etcd import rpc_pb2 as rpc
from election.reader import AgentEvent, AgentEventKind
from election.store import Store
from election.term import Term
from election.views import View

PREFIX = "task-"


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the ledger: the agent is empty until the task is assigned, and again when `formerly` was reaped."""

    name: str
    agent: str
    formerly: str
    revision: int


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the leader did with a task."""

    event: str
    task: str
    agent: str
    formerly: str = ""


class Ledger:
    """The tasks of one namespace, as one leader sees and changes them during its term.

    All methods raise NotLeader or Deposed when the term is over, and EtcdError when etcd could not be used; what was
    watched is to be watched anew then, after `begin`.
    """

    def __init__(self, store: Store, view: View, term: Term, *, open_tasks: int) -> None:
        self._client = store.client
        self._keyspace = store.keyspace
        self._view = view
        self._term = term
        self._open_tasks = open_tasks
        self._agents: dict[str, Agent] = {}
        self._is_synced = False
        self._lock = asyncio.Lock()
        root = f"/election-demo/{store.keyspace.namespace}/"
        self._prefix = f"{root}tasks/".encode()
        self._counter = f"{root}next".encode()
        self._checkpoint = f"{root}checkpoint".encode()

    async def begin(self) -> int:
        """The revision after which the agents are to be watched; 0 at the very first."""
        self._agents, self._is_synced = {}, False
        found, _ = await self._client.get(self._checkpoint)
        return int(found.value) if found else 0

    async def see(self, event: AgentEvent) -> None:
        """Takes in what became of an agent: tasks that were collected from it are there to be assigned again."""
        agent, tombstone, revision = event.agent, event.tombstone, event.source.revision
        async with self._lock:
            if event.kind is AgentEventKind.RESET:  # who is there is told anew, after what was reaped meanwhile
                self._agents, self._is_synced = {}, False
            elif agent is None:  # what was reaped before is known, and who is there
                self._is_synced = True
                await self._release([task for task in await self._tasks() if self._is_lost(task)], revision)
            elif tombstone is None:
                self._agents[agent.id] = agent
            else:
                held = {entry.key for entry in tombstone.collected}
                nobody_knows = tombstone.reaped_at is None
                tasks = [task for task in await self._tasks() if task.agent == agent.id]
                await self._release([task for task in tasks if task.name in held or nobody_knows], revision)
                if agent.state is AgentState.REAPED:
                    self._agents.pop(agent.id, None)

    async def turn(self) -> list[Step]:
        """One round: closes what is done, assigns what nobody holds, and opens a new task where there are too few."""
        async with self._lock:
            return await self._turn() if self._is_synced else []

    async def _turn(self) -> list[Step]:
        tasks = await self._tasks()
        answer = await self._view.agents()
        stored = {agent.id: agent.state_keys for agent in answer.value}
        load = Counter({agent.id: 0 for agent in self._agents.values() if agent.state is AgentState.ALIVE})
        load.update(task.agent for task in tasks if task.agent in load)
        steps: list[Step] = []
        for task in tasks:
            if not task.agent:
                steps += await self._assign(task, load)
            elif self._is_done(task, stored.get(task.agent, (task.name,)), answer.source.revision):
                steps += await self._close(task)
        if len(tasks) < self._open_tasks:  # one in a round, so that agents which join later get their share
            await self._open()
        return steps

    def _is_lost(self, task: Task) -> bool:
        """Whether its agent is gone, and not even a tombstone of it is left."""
        return task.agent != "" and task.agent not in self._agents

    def _is_done(self, task: Task, stored: Sequence[str], revision: int) -> bool:
        """Whether its agent has deleted it; one that was reaped has, if it was not among what was collected."""
        if task.agent not in self._agents:
            return True
        return task.revision <= revision and task.name not in stored

    async def _tasks(self) -> list[Task]:
        listed = await self._client.list(self._prefix)
        rows = ((kv, json.loads(kv.value)) for kv in listed.kvs)
        return [
            Task(kv.key[len(self._prefix) :].decode(), row["agent"], row["formerly"], kv.mod_revision)
            for kv, row in rows
        ]

    async def _release(self, tasks: Sequence[Task], revision: int) -> None:
        """Notes that nobody holds the tasks, and in the same transaction that this has been done up to a revision."""
        changes = [self._put(task.name, agent="", formerly=task.agent) for task in tasks]
        released = await fenced_txn(
            self._client,
            self._term,
            [txn.modified_at(self._key(task.name), task.revision) for task in tasks],
            [*changes, txn.put(self._checkpoint, str(revision).encode())],
        )
        if not released.succeeded:
            raise EtcdError("somebody else has changed the tasks")

    async def _open(self) -> None:
        found, _ = await self._client.get(self._counter)
        number = int(found.value) if found else 1
        await fenced_txn(
            self._client,
            self._term,
            [txn.modified_at(self._counter, found.mod_revision if found else 0)],
            [txn.put(self._counter, str(number + 1).encode()), self._put(f"{PREFIX}{number}", agent="")],
        )

    async def _close(self, task: Task) -> list[Step]:
        key = self._key(task.name)
        closed = await fenced_txn(
            self._client, self._term, [txn.modified_at(key, task.revision)], [txn.delete(key)]
        )  # fmt: skip
        return [Step("done", task.name, task.agent)] if closed.succeeded else []

    async def _assign(self, task: Task, load: Counter[str]) -> list[Step]:
        """Gives a task to the agent that has the fewest, if that is still alive."""
        if not load:
            return []
        chosen = self._agents[min(load, key=lambda agent: (load[agent], agent))]
        assigned = await fenced_txn(
            self._client,
            self._term,
            [
                txn.modified_at(self._key(task.name), task.revision),
                txn.created_at(self._keyspace.alive(chosen.id), chosen.incarnation),
            ],
            [
                self._put(task.name, agent=chosen.id),
                txn.put(self._keyspace.state(chosen.id, task.name), json.dumps({"by": str(self._term.token)}).encode()),
            ],
        )
        if not assigned.succeeded:
            return []
        load[chosen.id] += 1
        return [Step("reassigned" if task.formerly else "assigned", task.name, chosen.id, task.formerly)]

    def _key(self, task: str) -> bytes:
        return self._prefix + task.encode()

    def _put(self, task: str, *, agent: str, formerly: str = "") -> rpc.RequestOp:
        return txn.put(self._key(task), json.dumps({"agent": agent, "formerly": formerly}).encode())
