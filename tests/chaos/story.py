"""Histories that are told by hand: what a checker must accept, and what it must not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

from election.agent_records import AgentRecord, StateEntry, Tombstone
from election.breaker import Breaker, BreakerReason
from election.drill.history import Change, Fact, History, Revision, Said, Settings, Stored
from election.drill.vocabulary import Done
from election.drill.workload.agent import PROCESS
from election.keys import REGISTRATION, Keyspace
from election.records import CandidateRecord
from election.token import Token

SETTINGS = Settings("drill", seed=0, ttl_s=3, grace_s=2, reconcile_s=5)
KEYS = Keyspace(SETTINGS.namespace)
STEP_S = 0.1
"""What each revision takes."""

_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Story:
    """Makes revisions, facts and lines as etcd, the drill and agents would; time goes on only when it says so.

    It begins with etcd serving and a collector `c1` that leads.
    """

    def __init__(self) -> None:
        self.now_s = 100.0
        self.revisions: list[Revision] = []
        self.facts: list[Fact] = []
        self.said: list[Said] = []
        self.stored: dict[bytes, Stored] = {}
        self.incarnations: dict[str, int] = {}
        self._kept: dict[str, bytes] = {}
        self.fact(Done.DISTURBED, unwell=False)
        self.probe()
        self.collector("c1")

    def history(self) -> History:
        """All of it, with a last sign of life from etcd."""
        self.probe()
        return History(SETTINGS, tuple(self.revisions), tuple(self.facts), tuple(self.said))

    # --- what happens ------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The last revision's number."""
        return self.revisions[-1].number if self.revisions else 1

    def wait(self, for_s: float) -> Self:
        """Time goes by, in which etcd is read."""
        until_s = self.now_s + for_s
        while self.now_s < until_s - STEP_S:
            self.now_s += STEP_S
            self.probe()
        self.now_s = until_s
        return self

    def probe(self, *, ok: bool = True) -> None:
        """Somebody reads etcd."""
        self.now_s += 0.002
        self.fact(Done.PROBED, ok=ok, ended_at_s=self.now_s + 0.001)
        self.now_s += 0.002

    def fact(self, what: str, who: str = "", /, **more: Any) -> Self:
        """The drill notes something."""
        self.facts.append(Fact(self.now_s, what, who, more))
        return self

    def say(self, what: str, agent: str, incarnation: int | None = None, *, key: str = "", at_s: float = 0) -> Self:
        """An agent's process writes a line."""
        number = self.incarnations.get(agent, 0) if incarnation is None else incarnation
        self.said.append(Said(at_s or self.now_s, what, agent, f"{agent}-1", number, key))
        return self

    def do(self, *changes: tuple[bytes, bytes | None]) -> Self:
        """One revision: each key gets a value, or None is to delete it."""
        self.now_s += STEP_S
        number = self.revision + 1
        made = []
        for key, value in changes:
            before = self.stored.get(key)
            after = None if value is None else Stored(value, before.created if before else number, number)
            made.append(Change(key, before, after))
            if after is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = after
        self.revisions.append(Revision(number, self.now_s, tuple(made)))
        return self

    # --- agents, collectors, reaps -----------------------------------------------------------------------------

    def collector(self, id: str) -> Self:
        """A collector wins and proves it, after all that came before have gone."""
        old = [(key, None) for key in self.stored if key.startswith(KEYS.campaigns)]
        if old:
            self.do(*old)
        self.fact(Done.STARTED, id, role="collector", slot=id)
        key = KEYS.candidate("_collector", 1000 + self.revision)
        self.do((key, CandidateRecord(id).encode()))
        return self.do((key, replace(CandidateRecord(id), elected_at=_AT).encode()))

    def register(self, agent: str, *, put_back: str = "") -> Self:
        """An agent registers; what it keeps under a key is put back."""
        record = AgentRecord(agent, labels={PROCESS: f"{agent}-1"}).encode()
        kept = [(KEYS.state(agent, put_back), self._kept[agent])] if put_back else []
        self.do((KEYS.alive(agent), record), (KEYS.state(agent, REGISTRATION), record), *kept)
        self.incarnations[agent] = self.revision
        return self.say("registered", agent).say("acted", agent)

    def value(self, agent: str, **other: Any) -> bytes:
        """What the agent's process would write now."""
        by = {"by": f"{agent}-1", "incarnation": self.incarnations.get(agent, 0), "at_s": self.now_s}
        return json.dumps({**by, **other}).encode()

    def write(self, agent: str, key: str = "status", **other: Any) -> Self:
        """The agent writes a value, and is told so."""
        at_s, value = self.now_s, self.value(agent, **other)
        return self.do((KEYS.state(agent, key), value)).say("wrote", agent, key=key, at_s=at_s)

    def keeps(self, agent: str) -> Self:
        """The agent writes a value that it keeps."""
        self._kept[agent] = self.value(agent)
        return self.say("keeps", agent, key="memory").write(agent, "memory")

    def vanish(self, agent: str) -> Self:
        """Its lease ends."""
        return self.do((KEYS.alive(agent), None))

    def lives(self, *agents: str) -> Self:
        """Agents that have registered and stored something."""
        for agent in agents:
            self.register(agent).write(agent)
        return self

    def dies(self, agent: str) -> Self:
        """It is killed, and its lease ends when its TTL is over."""
        return self.fact(Done.KILLED, f"{agent}-1").wait(SETTINGS.ttl_s).beat().vanish(agent)

    def beat(self) -> Self:
        """Some other agent writes something, so that the time is known."""
        if "beat" not in self.incarnations:
            self.register("beat")
        return self.write("beat")

    def tombstone(self, agent: str, **other: Any) -> Tombstone:
        """What a reap of all that the agent has would leave."""
        prefix = KEYS.states(agent)
        entries = {key[len(prefix) :].decode(): each for key, each in self.stored.items() if key.startswith(prefix)}
        registration = entries.pop(REGISTRATION, None)
        made = Tombstone(
            agent,
            self.incarnations.get(agent, 0) if registration else 0,
            _AT,
            *self.leader(),
            tuple(StateEntry(name, each.value, each.modified) for name, each in entries.items()),
            agent_record=AgentRecord.decode(agent, registration.value) if registration else None,
        )
        return replace(made, **other)

    def leader(self) -> tuple[str, Token]:
        """The collector that leads, and its token."""
        candidates = {key: each for key, each in self.stored.items() if key.startswith(KEYS.campaigns)}
        oldest = min(candidates.values(), key=lambda each: each.created)
        record = CandidateRecord.decode(oldest.value)
        assert record is not None
        return record.id, Token(0, oldest.created)

    def reap(
        self, agent: str, tombstones: Sequence[Tombstone] | None = None, *, besides: Sequence[tuple[bytes, bytes]] = ()
    ) -> Self:
        """Deletes the whole state, and puts the tombstones; the right one where none is given."""
        made = [self.tombstone(agent)] if tombstones is None else tombstones
        state = [(key, None) for key in self.stored if key.startswith(KEYS.states(agent))]
        put = [(KEYS.tombstone(agent, each.incarnation, each.part), each.encode()) for each in made]
        return self.do(*state, *put, *besides)

    def leaves_without_state(self, agent: str) -> Self:
        """A clean leave."""
        state = [(key, None) for key in self.stored if key.startswith(KEYS.states(agent))]
        return self.say("leaves", agent).do((KEYS.alive(agent), None), *state)

    def breaker(self, *, open: bool) -> Self:
        """Somebody opens or closes the breaker."""
        return self.do((KEYS.breaker, Breaker(open, BreakerReason.OPERATOR).encode()))

    def ends(self, **leases: Sequence[str]) -> Self:
        """The drill is over, and these leases are left, with their keys."""
        return self.fact(Done.LEASES, leases={lease: list(keys) for lease, keys in leases.items()})
