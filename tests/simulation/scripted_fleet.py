"""A fleet as it looks in etcd, without agents and collectors; and what its watchers must have been told."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace

from election.agent_records import AgentRecord, StateEntry, Tombstone
from election.client.told import ToldAgents
from election.errors import EtcdError, RolledBack, ViewStale
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.keys import REGISTRATION, Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from election.published import TooSlow
from election.reader import AgentEvent, AgentEventKind
from election.token import Token
from election.views import View

Reap = tuple[str, int, int]
"""What tells one REAPED from all others: the agent, its incarnation and the part."""


@dataclass
class Fleet:
    """Writes what agents and collectors write, and keeps what was reaped, in order."""

    client: EtcdClient
    keyspace: Keyspace
    reaped: dict[Reap, Tombstone] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)

    async def join(self, id: str, **labels: str) -> int:
        """An agent registers, and stores something; returns its incarnation."""
        record = AgentRecord(id, f"{id}:1", labels, self.client.clock.wall()).encode()
        answer = await self.client.txn(
            [], [txn.put(self.keyspace.alive(id), record), txn.put(self.keyspace.state(id, REGISTRATION), record)]
        )
        self.parts.pop(id, None)
        await self.store(id, "task", f"of {answer.header.revision}")
        return answer.header.revision

    async def store(self, id: str, key: str, value: str) -> None:
        await self.client.put(self.keyspace.state(id, key), value.encode())

    async def drain(self, id: str) -> None:
        await self.client.put(self.keyspace.draining(id), b"{}")

    async def die(self, *ids: str) -> None:
        await self.client.txn([], [txn.delete(self.keyspace.alive(name)) for name in ids])

    async def leave(self, id: str) -> None:
        """It takes everything with it."""
        await self.client.txn(
            [], [txn.delete(self.keyspace.alive(id)), txn.delete_prefix(self.keyspace.states(id))]
        )  # fmt: skip

    async def reap(self, *ids: str) -> int:
        """Agents are reaped in one transaction; returns its revision."""
        changes: list[rpc.RequestOp] = []
        tombstones = [await self._tombstone(name) for name in ids]
        for tombstone in tombstones:
            changes += [
                txn.delete_prefix(self.keyspace.states(tombstone.agent)),
                txn.delete(self.keyspace.draining(tombstone.agent)),
                self._put(tombstone),
            ]
        answer = await self.client.txn([], changes)
        self._note(*tombstones)
        return answer.header.revision

    async def reap_part(self, id: str, key: str) -> int:
        """One key of an agent is collected, and the agent stays suspect; returns the revision."""
        tombstone = await self._tombstone(id, key)
        assert tombstone.agent_record is not None
        record = replace(tombstone.agent_record, incarnation=tombstone.incarnation)
        answer = await self.client.txn(
            [],
            [
                txn.delete(self.keyspace.state(id, key)),
                txn.put(self.keyspace.state(id, REGISTRATION), record.encode()),
                self._put(tombstone),
            ],
        )
        self.parts[id] = tombstone.part + 1
        self._note(tombstone)
        return answer.header.revision

    async def forget(self, reap: Reap) -> None:
        """The retention of a tombstone is over."""
        await self.client.delete(self.keyspace.tombstone(*reap))

    async def _tombstone(self, id: str, key: str | None = None) -> Tombstone:
        prefix = self.keyspace.states(id)
        entries = [StateEntry.of(prefix, kv) for kv in (await self.client.list(prefix)).kvs]
        [registration] = [entry for entry in entries if entry.key == REGISTRATION]
        record = AgentRecord.decode(id, registration.value)
        collected = [entry for entry in entries if entry.key != REGISTRATION and key in (None, entry.key)]
        now = self.client.clock.wall()
        return Tombstone(
            agent=id,
            incarnation=record.incarnation or registration.mod_revision,
            reaped_at=now,
            collector="c",
            token=Token(0, 7),
            collected=tuple(collected),
            part=self.parts.get(id, 0),
            keep_until=now,
            agent_record=record,
        )

    def _put(self, tombstone: Tombstone) -> rpc.RequestOp:
        key = self.keyspace.tombstone(tombstone.agent, tombstone.incarnation, tombstone.part)
        return txn.put(key, tombstone.encode())

    def _note(self, *tombstones: Tombstone) -> None:
        for tombstone in tombstones:
            reap = tombstone.agent, tombstone.incarnation, tombstone.part
            assert reap not in self.reaped
            self.reaped[reap] = as_stored(tombstone)


def as_stored(tombstone: Tombstone) -> Tombstone:
    """As it is read again: times have milliseconds."""
    stored = Tombstone.decode(tombstone.agent, tombstone.incarnation, tombstone.encode(), part=tombstone.part)
    return as_told(stored)


def as_told(tombstone: Tombstone) -> Tombstone:
    """Without the second place where a part has its incarnation, which messages leave out."""
    record = tombstone.agent_record
    return replace(tombstone, agent_record=record and replace(record, incarnation=0))


@dataclass
class Watcher:
    """Who watches the agents with breaks, and goes on as `Client` does, at any view."""

    told: ToldAgents = field(default_factory=ToldAgents)
    events: list[AgentEvent] = field(default_factory=list)

    async def watch(self, view: View, most: int | None = None) -> None:
        """Watches until it is cancelled, has seen so many events, or is refused."""
        self.told.begin()
        try:
            async with aclosing(view.watch_agents(after=self.told.after)) as events:
                async for event in events:
                    self.events += self.told.news(event)
                    most = None if most is None else most - 1
                    if most == 0:
                        return
        except RolledBack:
            assert self.told.forget_revisions()
        except (EtcdError, ViewStale, TooSlow):
            return

    def kinds(self, agent: str) -> list[AgentEventKind]:
        """What was told of an agent."""
        return [event.kind for event in self.events if event.agent and event.agent.id == agent]

    def reaped(self) -> list[tuple[Reap, Tombstone]]:
        """The tombstones that were told."""
        return reaped_in(self.events)


def reaped_in(events: list[AgentEvent]) -> list[tuple[Reap, Tombstone]]:
    """The tombstones that are told of, but those that are not there."""
    found = [event.tombstone for event in events if event.tombstone and event.tombstone.reaped_at]
    return [((each.agent, each.incarnation, each.part), as_told(each)) for each in found]
