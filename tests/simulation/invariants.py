"""What must hold at every moment of a run, whatever happens.

It is looked at with each revision of etcd, before anybody hears of it, and whenever a candidate's state changes, which
are the only moments at which there can be one leader more. The first violation is kept.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from election.agent_records import AgentRecord, Tombstone
from election.breaker import Breaker
from election.errors import AgentLost
from election.keys import REGISTRATION, AliveKey, CandidateKey, Keyspace, StateKey, TombstoneKey
from election.leadership import Leading
from election.pb.etcd import kv_pb2 as kv
from election.records import CandidateRecord
from election.token import Token
from tests.fake.store import Interval, Store
from tests.simulation.cluster import Cause
from tests.simulation.nodes import AgentNode, CandidateNode, Node
from tests.simulation.register import KEY, Entry

LEARNS_IN_S = 14.0
"""A leader whose key a stranger has deleted learns of it by its watch; at the latest when that has been silent for
10 s, and then it looks once in a second."""

_CLOSE_S = 0.1
"""A lease that was to end so soon after may have ended, by the clock of who asked."""

_NOTHING = Token(0, 0)


class Violated(Exception):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class _Orphan:
    """When a stranger has deleted a key; and to whom etcd had told by then that its lease lasts longer."""

    since_s: float
    known_to: frozenset[CandidateNode]


@dataclass
class Invariants:
    """Looks at everything that moves, and keeps the first violation."""

    keyspace: Keyspace
    store: Store
    nodes: list[Node]
    clock: Callable[[], float]
    violation: str | None = None
    last_token: dict[str, Token] = field(default_factory=lambda: defaultdict(lambda: _NOTHING))
    acknowledged: list[Entry] = field(default_factory=list)
    _orphaned: dict[tuple[str, int], _Orphan] = field(default_factory=dict)
    """The keys that a stranger has deleted: the election, and the create revision."""
    _reaped: set[bytes] = field(default_factory=set)
    _restored: bool = False

    # --- what is told ----------------------------------------------------------------------------------------

    def violate(self, what: str) -> None:
        """Something is wrong."""
        if self.violation is None:
            self.violation = f"at {self.clock():.2f} s: {what}"

    def transition(self, node: CandidateNode) -> None:
        """A candidate's state has changed."""
        state = node.candidate.state
        if isinstance(state, Leading) and state.token != node.token:
            node.token = state.token
            self._begin(node, state.token)
        self._one_leads(node.election)

    def committed(self, revision: int, events: tuple[kv.Event, ...], cause: Cause) -> None:
        """etcd has written something, and nobody has heard of it."""
        buried = [
            (key, event) for event in events if isinstance(key := self.keyspace.parse(event.kv.key), TombstoneKey)
        ]
        agents = {key.agent for key, _ in buried}
        for event in events:
            if event.kv.key == KEY:
                self._register(event)
                continue
            match self.keyspace.parse(event.kv.key):
                case CandidateKey(election) if event.type == kv.Event.DELETE:
                    self._candidate_goes(election, event, cause)
                case AliveKey(agent) if event.type == kv.Event.DELETE and cause is Cause.EXPIRY:
                    self._agent_ends(agent, event)
                case StateKey(agent) if event.type == kv.Event.DELETE and agent not in agents:
                    self.violate(f"{event.kv.key!r} was deleted without a tombstone")
        for key, event in buried:
            if event.type == kv.Event.PUT:
                self._buries(key, event, revision, events)

    def restored(self) -> None:
        """etcd's history was set back."""
        self._restored = True
        self._reaped = {found.key for found in self.store.select(everything(self.keyspace.reaped_prefix))}
        self.acknowledged.clear()

    def acknowledge(self, revision: int, entry: Entry) -> None:
        """A fenced write was acknowledged."""
        events = next((events for _, events in self.store.events(revision, revision)), ())
        if any(event.kv.key == KEY and event.kv.value == entry.encode() for event in events):
            self.acknowledged.append(entry)
        elif not self._restored:
            self.violate(f"{entry} was acknowledged at revision {revision}, and was not written there")

    def at_the_end(self) -> None:
        """What was acknowledged is there."""
        found = self.store.get(KEY)
        last = Entry.decode(found.value) if found else Entry(_NOTHING, 0)
        for entry in self.acknowledged:
            if entry.number > last.number:
                self.violate(f"{entry} was acknowledged, and the register ends with {last}")

    def is_settled(self, node: Node) -> bool:
        """Whether it does not lead on although a stranger has deleted its key."""
        if not isinstance(node, CandidateNode) or not node.is_leader or node.token is None:
            return True
        return (node.election, node.token.revision) not in self._orphaned

    # --- elections -------------------------------------------------------------------------------------------

    def _begin(self, node: CandidateNode, token: Token) -> None:
        last = self.last_token[node.election]
        if token <= last and (node.highest_seen >= last or not self._restored):
            self.violate(f"{node.name} leads {node.election} under {token}, after {last}")
        self.last_token[node.election] = max(last, token)
        self._proven(node, token)

    def _proven(self, node: CandidateNode, token: Token) -> None:
        """A term begins with a write through etcd's log."""
        key = node.key
        found = self.store.get(key, None) if key else None
        if found is None or found.create_revision != token.revision:
            return  # it went meanwhile, and its holder has not heard of it
        record = CandidateRecord.decode(found.value)
        if record is None or record.elected_at is None:
            self.violate(f"{node.name} leads {node.election} under {token}, which etcd's log does not prove")

    def _one_leads(self, election: str) -> None:
        leading = [
            node
            for node in self.nodes
            if isinstance(node, CandidateNode) and node.election == election and node.is_leader
        ]
        if len(leading) < 2:
            return
        for node, other in itertools.combinations(leading, 2):
            if not self._may_overlap(node, other) and not self._may_overlap(other, node):
                self.violate(f"{node.name} ({node.token}) and {other.name} ({other.token}) lead {election} at once")

    def _may_overlap(self, node: CandidateNode, other: CandidateNode) -> bool:
        """Whether a stranger has robbed `node` of its key so shortly ago that it need not know; nor need `other`."""
        assert node.token is not None
        orphan = self._orphaned.get((node.election, node.token.revision))
        if orphan is None or self.clock() >= orphan.since_s + LEARNS_IN_S:
            return False
        return other not in orphan.known_to

    def _candidate_goes(self, election: str, event: kv.Event, cause: Cause) -> None:
        before = self.store.before(event)
        assert before is not None
        created = before.create_revision
        if cause is Cause.STRANGER:
            now_s = self.clock()
            lasts_s = {node: node.way.lasts_until_s.get(before.lease, 0.0) for node in self._candidates(election)}
            known_to = frozenset(node for node, until_s in lasts_s.items() if until_s > now_s + _CLOSE_S)
            self._orphaned[election, created] = _Orphan(now_s, known_to)
            return
        for node in self._candidates(election):
            if node.token is None or node.token.revision != created or (election, created) in self._orphaned:
                continue
            if cause is Cause.EXPIRY and node.is_leader:
                self.violate(f"{node.name} leads {election} under {node.token}, and its lease has ended")
            if cause is Cause.CALL and node.works_under == node.token and not node.process.is_killed:
                self.violate(f"{node.name} releases its key while its work under {node.token} is not over")

    def _candidates(self, election: str) -> Iterable[CandidateNode]:
        return (node for node in self.nodes if isinstance(node, CandidateNode) and node.election == election)

    # --- fenced writes ---------------------------------------------------------------------------------------

    def _register(self, event: kv.Event) -> None:
        new = Entry.decode(event.kv.value)
        before = self.store.before(event)
        old = Entry.decode(before.value) if before else Entry(_NOTHING, 0)
        if new.token < old.token:
            self.violate(f"the register takes {new} after {old}")
        if new.number != old.number + 1:
            self.violate(f"the register goes from {old} to {new}: a write is lost")

    # --- agents ----------------------------------------------------------------------------------------------

    def _agent_ends(self, agent: str, event: kv.Event) -> None:
        before = self.store.before(event)
        assert before is not None
        for node in self.nodes:
            if isinstance(node, AgentNode) and node.name == agent and not node.process.is_killed and node.agent:
                try:
                    registration = node.agent.check()
                except AgentLost:
                    continue
                if registration.incarnation == before.create_revision:
                    self.violate(f"agent {agent} believes that it is registered, and its lease has ended")

    def _buries(self, key: TombstoneKey, event: kv.Event, revision: int, events: tuple[kv.Event, ...]) -> None:
        tombstone = Tombstone.of(key, event.kv.value)
        if event.kv.key in self._reaped:
            self.violate(f"{key} is reaped twice")
        self._reaped.add(event.kv.key)
        if self.store.get(self.keyspace.alive(key.agent), revision - 1) is not None:
            self.violate(f"agent {key.agent} is reaped, and is alive")
        registration = self.store.get(self.keyspace.state(key.agent, REGISTRATION), revision - 1)
        incarnation = 0
        if registration is not None:
            incarnation = AgentRecord.decode(key.agent, registration.value).incarnation_at(registration.mod_revision)
        if incarnation != key.incarnation:
            self.violate(f"agent {key.agent} is reaped as {key.incarnation}, and was {incarnation}")
        collected = {self.keyspace.state(key.agent, each.key): each.value for each in tombstone.collected}
        for gone in events:
            parsed = self.keyspace.parse(gone.kv.key)
            if isinstance(parsed, StateKey) and parsed.agent == key.agent and gone.type == kv.Event.DELETE:
                was = self.store.before(gone)
                if parsed.key != REGISTRATION and was is not None and collected.get(gone.kv.key) != was.value:
                    self.violate(f"{gone.kv.key!r} is deleted, and not in the tombstone")
        self._collector_leads(tombstone, revision)
        if Breaker.of(self.store.get(self.keyspace.breaker, revision - 1)).open:
            self.violate(f"agent {key.agent} is reaped while the breaker is open")

    def _collector_leads(self, tombstone: Tombstone, revision: int) -> None:
        queue = self.store.select(everything(self.keyspace.campaign("_collector")), revision - 1)
        oldest = min((found.create_revision for found in queue), default=0)
        if oldest != tombstone.token.revision:
            self.violate(f"{tombstone.collector} reaps under {tombstone.token}, and {oldest} leads")


def everything(prefix: bytes) -> Interval:
    """All keys with a prefix."""
    return Interval(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
