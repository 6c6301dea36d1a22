"""What etcd held at each revision of a history, as far as it is about agents and collectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from election.agent_records import Tombstone
from election.drill.history import Change, History, Revision, Stored
from election.keys import (
    COLLECTOR_ELECTION,
    AliveKey,
    CandidateKey,
    Keyspace,
    Parsed,
    StateKey,
    TombstoneKey,
)
from election.records import CandidateRecord


@dataclass
class World:
    """Everything at one revision; `step` makes it that of the next."""

    keyspace: Keyspace
    revision: int = 1
    stored: dict[bytes, Stored] = field(default_factory=dict)
    alive: dict[str, Stored] = field(default_factory=dict)
    states: dict[str, dict[str, Stored]] = field(default_factory=dict)
    candidates: dict[bytes, Stored] = field(default_factory=dict)

    def step(self, revision: Revision) -> None:
        """Does what the revision did."""
        self.revision = revision.number
        for change in revision.changes:
            _set(self.stored, change.key, change.after)
            match self.keyspace.parse(change.key):
                case AliveKey(agent):
                    _set(self.alive, agent, change.after)
                case StateKey(agent, name):
                    _set(self.states.setdefault(agent, {}), name, change.after)
                    if not self.states[agent]:
                        del self.states[agent]
                case CandidateKey(election) if election == COLLECTOR_ELECTION:
                    _set(self.candidates, change.key, change.after)

    def incarnation(self, agent: str) -> int:
        """The living incarnation; 0 for none."""
        return self.alive[agent].created if agent in self.alive else 0

    def is_stale(self, agent: str) -> bool:
        """Whether there is state of an agent that is not alive."""
        return agent in self.states and agent not in self.alive

    def collector(self) -> tuple[str, int] | None:
        """The id and the token's revision of the collector that leads and has proved it; None without one."""
        if not self.candidates:
            return None
        oldest = min(self.candidates.values(), key=lambda each: each.created)
        record = CandidateRecord.decode(oldest.value)
        return (record.id, oldest.created) if record is not None and record.elected_at else None

    def has_given_up(self, collector: str) -> bool:
        """Whether a collector stands anew behind a key of its own, which it has given up and could not delete."""
        records = (CandidateRecord.decode(each.value) for each in self.candidates.values())
        return sum(record is not None and record.id == collector for record in records) > 1

    def breaker_is_open(self) -> bool:
        """Whether the breaker's key says that nothing may be reaped."""
        found = self.stored.get(self.keyspace.breaker)
        return found is not None and bool(object_of(found.value).get("open", True))


@dataclass(frozen=True, slots=True)
class Step:
    """One revision, with what its keys are."""

    revision: Revision
    parsed: tuple[tuple[Parsed | None, Change], ...]

    @property
    def number(self) -> int:
        """The revision's number."""
        return self.revision.number

    @property
    def agents(self) -> list[str]:
        """The agents whose state or liveness changed."""
        return sorted({key.agent for key, _ in self.parsed if isinstance(key, AliveKey | StateKey)})

    @property
    def written_s(self) -> float:
        """When agents wrote what is in this revision, by themselves: a time before it. 0 when they did not.

        What comes later in etcd's order comes later in time, too.
        """
        written = (object_of(each.after.value) for key, each in self.parsed if isinstance(key, StateKey) and each.after)
        return max((at_s for value in written if isinstance(at_s := value.get("at_s"), float)), default=0.0)

    def states(self, agent: str) -> dict[str, Change]:
        """The changes of an agent's state."""
        return {key.key: each for key, each in self.parsed if isinstance(key, StateKey) and key.agent == agent}

    def liveness(self, agent: str) -> Change | None:
        """The change of an agent's liveness key."""
        return next((each for key, each in self.parsed if key == AliveKey(agent)), None)

    def tombstones(self) -> Iterator[tuple[TombstoneKey, Change, Tombstone]]:
        """The tombstones that were put; more than none make the revision a reap."""
        for key, change in self.parsed:
            if isinstance(key, TombstoneKey) and change.after is not None:
                value = change.after.value
                yield key, change, Tombstone.decode(key.agent, key.incarnation, value, part=key.part)


def replay(history: History) -> Iterator[tuple[World, Step]]:
    """Each revision with the world as it was right before it; the world goes on when the next one is asked for."""
    world = World(Keyspace(history.settings.namespace))
    for revision in history.revisions:
        yield world, _step(world, revision)
        world.step(revision)


def outcomes(history: History) -> Iterator[tuple[Step, World]]:
    """Each revision with the world as it is right after it."""
    world = World(Keyspace(history.settings.namespace))
    for revision in history.revisions:
        step = _step(world, revision)
        world.step(revision)
        yield step, world


def _step(world: World, revision: Revision) -> Step:
    """The revision, with what the world holds before it: etcd leaves that out now and then, after a restart."""
    changes = (replace(change, before=world.stored.get(change.key)) for change in revision.changes)
    return Step(revision, tuple((world.keyspace.parse(change.key), change) for change in changes))


def object_of(value: bytes) -> dict[str, Any]:
    """The JSON object that a value is; an empty one for anything else."""
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _set(of: dict[Any, Stored], key: object, after: Stored | None) -> None:
    if after is None:
        of.pop(key, None)
    else:
        of[key] = after
