"""The namespace as a watch has shown it so far: who stands, which agents there are, and what is left of the reaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from election.agent_records import Agent, AgentRecord, AgentState, Tombstone
from election.keys import REGISTRATION, AliveKey, CandidateKey, DrainingKey, Parsed, StateKey, TombstoneKey
from election.pb.etcd.kv_pb2 import KeyValue
from election.records import Candidate, Leader, leader_of

AgentKey = AliveKey | StateKey | DrainingKey | TombstoneKey
"""The keys that say something of one agent."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A tombstone in etcd: the revision at which it was put, its bytes, and what the agent had said of itself."""

    key: TombstoneKey
    revision: int
    size: int
    record: AgentRecord | None = None


@dataclass(frozen=True, slots=True)
class _Alive:
    incarnation: int
    lease: int
    record: AgentRecord


@dataclass(slots=True)
class _Known:
    """Everything of one agent. `shown` is what it amounts to, as long as nothing changes."""

    alive: _Alive | None = None
    stored: dict[str, int] = field(default_factory=dict)
    registered: AgentRecord | None = None
    draining: bool = False
    kept: dict[TombstoneKey, Kept] = field(default_factory=dict)
    shown: Agent | None = None

    @property
    def state(self) -> AgentState | None:
        if self.alive:
            return AgentState.DRAINING if self.draining else AgentState.ALIVE
        if self.stored:
            return AgentState.SUSPECT
        return AgentState.REAPED if self.kept else None

    def show(self, id: str) -> Agent | None:
        state = self.state
        if self.shown is None and state is not None:
            incarnation, lease, record = self._registration(id)
            names = tuple(sorted(self.stored.keys() - {REGISTRATION}))
            self.shown = Agent(
                id, state, incarnation, lease, record.address, record.labels, record.registered_at, names
            )
        return self.shown

    def _registration(self, id: str) -> tuple[int, int, AgentRecord]:
        if self.alive:
            return self.alive.incarnation, self.alive.lease, self.alive.record
        if self.stored:
            record = self.registered or AgentRecord(id)
            return record.incarnation_at(self.stored.get(REGISTRATION, 0)), 0, record
        newest = max(self.kept.values(), key=lambda kept: kept.revision)
        return newest.key.incarnation, 0, newest.record or AgentRecord(id)


@dataclass(slots=True)
class Model:
    """What one watch has shown. A change costs the same however many agents there are.

    It holds no values: neither those of an agent's state nor those in a tombstone.
    """

    elections: dict[str, dict[bytes, Candidate]] = field(default_factory=dict)
    agents_by_state: Counter[AgentState] = field(default_factory=Counter)
    _leaders: dict[str, Leader | None] = field(default_factory=dict)  # as long as nothing changes in their elections
    _known: dict[str, _Known] = field(default_factory=dict)
    _kept: dict[TombstoneKey, Kept] = field(default_factory=dict)  # the one that was put last is the last one

    def put(self, key: Parsed | None, kv: KeyValue) -> Tombstone | None:
        """Takes in a key that was written; returns the tombstone if it is one. Keys come in order of revision."""
        if isinstance(key, CandidateKey):
            self.elections.setdefault(key.election, {})[kv.key] = Candidate.of(key.election, kv)
            self._leaders.pop(key.election, None)
        if not isinstance(key, AgentKey):
            return None
        known = self._known.setdefault(key.agent, _Known())
        before = known.state
        tombstone = None
        match key:
            case AliveKey(agent):
                known.alive = _Alive(kv.create_revision, kv.lease, AgentRecord.decode(agent, kv.value))
            case StateKey(agent, name):
                known.stored[name] = kv.mod_revision
                if name == REGISTRATION:
                    known.registered = AgentRecord.decode(agent, kv.value)
            case DrainingKey():
                known.draining = True
            case TombstoneKey():
                tombstone = Tombstone.of(key, kv.value)
                kept = Kept(key, kv.mod_revision, len(kv.value), tombstone.agent_record)
                known.kept[key] = kept
                self._kept.pop(key, None)
                self._kept[key] = kept
        self._changed(key.agent, known, before)
        return tombstone

    def delete(self, key: Parsed | None, kv: KeyValue) -> None:
        """Takes in that a key is gone."""
        if isinstance(key, CandidateKey) and (queue := self.elections.get(key.election)):
            queue.pop(kv.key, None)
            self._leaders.pop(key.election, None)
            if not queue:
                del self.elections[key.election]
        if not isinstance(key, AgentKey) or (known := self._known.get(key.agent)) is None:
            return
        before = known.state
        match key:
            case AliveKey():
                known.alive = None
            case StateKey(_, name):
                known.stored.pop(name, None)
                if name == REGISTRATION:
                    known.registered = None
            case DrainingKey():
                known.draining = False
            case TombstoneKey():
                known.kept.pop(key, None)
                self._kept.pop(key, None)
        self._changed(key.agent, known, before)

    def _changed(self, id: str, known: _Known, before: AgentState | None) -> None:
        known.shown = None
        after = known.state
        if before is not None:
            self.agents_by_state[before] -= 1
        if after is not None:
            self.agents_by_state[after] += 1
        elif not known.draining:
            del self._known[id]

    def leader(self, election: str) -> Leader | None:
        """Who leads an election."""
        if election not in self.elections:  # a name that anybody may have asked for
            return None
        if election not in self._leaders:
            self._leaders[election] = leader_of(self.elections[election].values())
        return self._leaders[election]

    def agent(self, id: str) -> Agent | None:
        """An agent in any of its states; None for one of which there is nothing."""
        known = self._known.get(id)
        return None if known is None else known.show(id)

    def agents(self) -> Iterator[Agent]:
        """All agents, also those that were reaped, by id."""
        for name in sorted(self._known):
            if (agent := self._known[name].show(name)) is not None:
                yield agent

    def present(self) -> tuple[Agent, ...]:
        """The agents that are not reaped, by id."""
        return tuple(agent for agent in self.agents() if agent.state is not AgentState.REAPED)

    def size_of(self, key: TombstoneKey, revision: int) -> int | None:
        """How many bytes the tombstone has that was put at this revision; None for one that was not shown yet."""
        kept = self._kept.get(key)
        return kept.size if kept and kept.revision == revision else None

    def kept_after(self, revision: int) -> tuple[Kept, ...]:
        """The tombstones that were put after a revision, in order; costs as much as there are of these."""
        found = []
        for kept in reversed(self._kept.values()):
            if kept.revision <= revision:
                break
            found.append(kept)
        return tuple(reversed(found))
