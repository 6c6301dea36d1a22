"""The work of the demo: small tasks that the leader hands out to agents, each by a fenced transaction.

The ledger says which agent each task was given to; the agent finds the task in its own state, and deletes it there
when it is done. Both are written in one transaction that etcd refuses to a deposed leader, and for an agent that is
not alive any more. A task of an agent that was reaped is given to another one: it is done at least once.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from election.etcd import txn
from election.fencing.txn import fenced_txn
from election.records import Agent, AgentState
from election.store import Store
from election.term import Term
from election.views import View

PREFIX = "task-"


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the ledger: the agent is empty until the task is assigned."""

    name: str
    agent: str
    revision: int


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the leader did with a task."""

    event: str
    task: str
    agent: str
    formerly: str = ""


class Ledger:
    """The tasks of one namespace, as one leader sees and changes them during its term."""

    def __init__(self, store: Store, view: View, term: Term, *, open_tasks: int) -> None:
        self._store = store
        self._view = view
        self._term = term
        self._open_tasks = open_tasks
        self._prefix = f"/election-demo/{store.keyspace.namespace}/tasks/".encode()
        self._counter = f"/election-demo/{store.keyspace.namespace}/next".encode()

    async def turn(self) -> list[Step]:
        """One round: closes what is done, gives away what nobody holds, and opens new tasks.

        Raises:
            NotLeader, Deposed: the term is over.
            EtcdError: etcd could not be used; the next round sees what came of it.
        """
        tasks = await self._tasks()
        answer = await self._view.agents()
        agents = {agent.id: agent for agent in answer.value}
        load = Counter({agent.id: 0 for agent in answer.value if agent.state is AgentState.ALIVE})
        load.update(task.agent for task in tasks if task.agent in load)
        steps: list[Step] = []
        for task in tasks:
            if task.revision > answer.source.revision:
                continue  # the view has not come that far: look again in the next round
            holder = agents.get(task.agent)
            if holder is None:
                steps += await self._assign(task, agents, load)
            elif holder.state is AgentState.ALIVE and task.name not in holder.state_keys and await self._close(task):
                steps.append(Step("done", task.name, task.agent))
        if len(tasks) < self._open_tasks:  # one in a round, so that agents which join later get their share
            await self._open()
        return steps

    async def _tasks(self) -> list[Task]:
        listed = await self._store.client.list(self._prefix)
        return [
            Task(kv.key[len(self._prefix) :].decode(), json.loads(kv.value)["agent"], kv.mod_revision)
            for kv in listed.kvs
        ]

    async def _open(self) -> None:
        found, _ = await self._store.client.get(self._counter)
        number = int(found.value) if found else 1
        await fenced_txn(
            self._store.client,
            self._term,
            [txn.modified_at(self._counter, found.mod_revision if found else 0)],
            [
                txn.put(self._counter, str(number + 1).encode()),
                txn.put(self._prefix + f"{PREFIX}{number}".encode(), b'{"agent":""}'),
            ],
        )

    async def _close(self, task: Task) -> bool:
        key = self._prefix + task.name.encode()
        compare = [txn.modified_at(key, task.revision)]
        return (await fenced_txn(self._store.client, self._term, compare, [txn.delete(key)])).succeeded

    async def _assign(self, task: Task, agents: dict[str, Agent], load: Counter[str]) -> list[Step]:
        if not load:
            return []
        chosen = agents[min(load, key=lambda agent: (load[agent], agent))]
        key = self._prefix + task.name.encode()
        keyspace = self._store.keyspace
        assigned = await fenced_txn(
            self._store.client,
            self._term,
            [
                txn.modified_at(key, task.revision),
                txn.created_at(keyspace.alive(chosen.id), chosen.incarnation),
            ],
            [
                txn.put(key, json.dumps({"agent": chosen.id}).encode()),
                txn.put(keyspace.state(chosen.id, task.name), json.dumps({"by": str(self._term.token)}).encode()),
            ],
        )
        if not assigned.succeeded:
            return []
        load[chosen.id] += 1
        return [Step("reassigned" if task.agent else "assigned", task.name, chosen.id, task.agent)]
