"""Reads what dead agents have left, and collects it: many agents in one transaction, each for itself.

The transaction compares the collector's own leader key and the breaker, and within it each agent has a transaction of
its own, which compares that the liveness key is absent and that the state is the one that was read. So an agent that
is back, or whose state has changed, is left out, and the others are reaped all the same. etcd lets a transaction have
128 operations, and what is nested in it as many as that leaves over (etcd: server/etcdserver/api/v3rpc/key.go,
`checkTxnRequest`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum

from election.collector.retention import Retention
from election.collector.suspects import Suspect
from election.errors import EtcdError, LeaseNotFound
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.fencing.txn import fenced_txn
from election.keys import REGISTRATION, Keyspace, StateKey, TombstoneKey, range_end
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import KeyValue
from election.records import AgentRecord, Breaker, StateEntry, Tombstone
from election.term import Term
from election.token import Token

_OPERATIONS = 126
"""etcd's 128, less the two nestings of a fenced transaction."""

_KEYS = 100
"""The most keys of one agent that go in one transaction."""

_TOMBSTONE_BYTES = 1200 * 1024
"""etcd takes requests of 1.5 MiB, the comparisons included."""

_BATCH_BYTES = 1000 * 1024

_ENTRY_BYTES = 100
"""What an entry costs in a tombstone besides its name and value."""

_OPERATION_BYTES = 300
"""The most that a comparison or a deletion takes, with names of 128 characters."""


class Fate(Enum):
    """What became of a suspect."""

    REAPED = "its state is collected"
    PARTED = "a part of its state is collected"
    NOTHING = "it has no state"
    RETURNED = "it is alive"
    CHANGED = "its state is not what was read"
    TOO_MUCH = "its state does not fit in with those of others"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one suspect, with the tombstone of what was collected."""

    suspect: Suspect
    fate: Fate
    tombstone: Tombstone | None = None


class BreakerMoved(Exception):
    """The breaker was written since it was read; nothing was reaped. Carries what it is now."""

    def __init__(self, breaker: Breaker, revision: int) -> None:
        super().__init__(breaker, revision)
        self.breaker = breaker
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Remains:
    """What a suspect has left, as one answer of etcd showed it at `revision`."""

    suspect: Suspect
    revision: int
    kvs: Sequence[KeyValue]
    registration: KeyValue | None
    parts: frozenset[TombstoneKey] = frozenset()
    more: bool = False

    @property
    def size(self) -> int:
        """The bytes of its values."""
        return sum(len(kv.value) for kv in self.kvs)


@dataclass(frozen=True, slots=True)
class Burial:
    """One suspect's part of a transaction."""

    suspect: Suspect
    tombstone: Tombstone
    compare: Sequence[rpc.Compare]
    changes: Sequence[rpc.RequestOp]
    value: bytes
    whole: bool

    @property
    def operations(self) -> int:
        """How many of etcd's 128 it needs in its own transaction."""
        return max(len(self.compare), len(self.changes) + 1)

    @property
    def size(self) -> int:
        """Roughly, and rather more than less, its bytes on the wire."""
        return len(self.value) + self.operations * 2 * _OPERATION_BYTES


class Reaper:
    """Collects in the name of one collector."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, id: str, retention_s: int) -> None:
        self._client = client
        self._keyspace = keyspace
        self.id = id
        self._retention_s = retention_s
        self._retention = Retention(client, retention_s)

    async def close(self) -> None:
        """Gives back what was not needed."""
        await self._retention.release()

    # --- reading ---------------------------------------------------------------------------------------------

    async def read(self, suspects: Sequence[Suspect]) -> list[Remains]:
        """What they have left, at one revision."""
        answer = await self._client.txn([], [self._range(suspect.agent) for suspect in suspects], repeat=Repeat.SAFE)
        return [
            self._remains(suspect, answer.header.revision, response.response_range)
            for suspect, response in zip(suspects, answer.responses, strict=True)
        ]

    async def read_alone(self, suspect: Suspect) -> Remains:
        """What one has left, with the tombstones that are kept of it."""
        answer = await self._client.txn(
            [],
            [
                self._range(suspect.agent),
                txn.get(self._keyspace.state(suspect.agent, REGISTRATION)),
                txn.names(self._keyspace.tombstones(suspect.agent)),
            ],
            repeat=Repeat.SAFE,
        )
        state, registration, tombstones = (response.response_range for response in answer.responses)
        parsed = (self._keyspace.parse(kv.key) for kv in tombstones.kvs)
        return replace(
            self._remains(suspect, answer.header.revision, state),
            registration=registration.kvs[0] if registration.kvs else None,
            parts=frozenset(key for key in parsed if isinstance(key, TombstoneKey)),
        )

    async def whole(self, burial: Burial) -> Tombstone:
        """What all parts of a burial would hold together."""
        if burial.whole:
            return burial.tombstone
        prefix = self._keyspace.states(burial.suspect.agent)
        kvs = (await self._client.list(prefix)).kvs
        ours = [
            kv for kv in kvs if isinstance(key := self._keyspace.parse(kv.key), StateKey) and key.key != REGISTRATION
        ]
        return replace(burial.tombstone, collected=tuple(StateEntry.of(prefix, kv) for kv in ours))

    def _range(self, agent: str) -> rpc.RequestOp:
        prefix = self._keyspace.states(agent)
        return rpc.RequestOp(request_range=rpc.RangeRequest(key=prefix, range_end=range_end(prefix), limit=_KEYS))

    def _remains(self, suspect: Suspect, revision: int, answer: rpc.RangeResponse) -> Remains:
        registered = self._keyspace.state(suspect.agent, REGISTRATION)
        registration = next((kv for kv in answer.kvs if kv.key == registered), None)
        return Remains(suspect, revision, answer.kvs, registration, more=answer.more)

    # --- planning --------------------------------------------------------------------------------------------

    def bury(self, remains: Remains, token: Token) -> Burial | Outcome:
        """What to do for one suspect; an outcome where there is nothing to do, or where it has to be read alone.

        Raises:
            EtcdError: a value is too large for any transaction.
        """
        suspect = remains.suspect
        prefix = self._keyspace.states(suspect.agent)
        ours = [kv for kv in remains.kvs if isinstance(self._keyspace.parse(kv.key), StateKey)]
        if not ours and remains.registration is None and not remains.more:
            return Outcome(suspect, Fate.NOTHING)
        if remains.more and not suspect.alone:
            return Outcome(suspect, Fate.TOO_MUCH)
        record, incarnation = _registered(suspect.agent, remains.registration)
        values = [kv for kv in ours if remains.registration is None or kv.key != remains.registration.key]
        chosen = list(_fitting(values))
        whole = len(chosen) == len(values) and not remains.more
        if not whole and not suspect.alone:
            return Outcome(suspect, Fate.TOO_MUCH)
        if not whole and not chosen:
            raise EtcdError(
                f"a value in the state of {suspect.agent!r} is too large to be kept in a tombstone: it stays"
            )
        now = self._client.clock.wall()
        tombstone = Tombstone(
            agent=suspect.agent,
            incarnation=incarnation,
            reaped_at=now,
            collector=self.id,
            token=token,
            collected=tuple(StateEntry.of(prefix, kv) for kv in chosen),
            part=_next_part(remains.parts, incarnation),
            keep_until=now + timedelta(seconds=self._retention_s),
            agent_record=record,
        )
        return self._burial(remains, tombstone, chosen, whole=whole, all_ours=len(ours) == len(remains.kvs))

    def _burial(
        self, remains: Remains, tombstone: Tombstone, chosen: Sequence[KeyValue], *, whole: bool, all_ours: bool
    ) -> Burial:
        suspect, registration = remains.suspect, remains.registration
        prefix = self._keyspace.states(suspect.agent)
        compare = [
            txn.absent(self._keyspace.alive(suspect.agent)),
            txn.nothing_newer(prefix, remains.revision),
            *(txn.modified_at(kv.key, kv.mod_revision) for kv in chosen),
        ]
        if registration is not None:
            compare.append(txn.modified_at(registration.key, registration.mod_revision))
        if registration is None or registration.mod_revision != tombstone.incarnation:
            # Only of an incarnation that was just written it is certain that it has no tombstone yet.
            compare.append(txn.absent(self._keyspace.tombstone(suspect.agent, tombstone.incarnation, tombstone.part)))
        changes = [txn.delete_prefix(prefix)] if whole and all_ours else [txn.delete(kv.key) for kv in chosen]
        if whole:
            if registration is not None and not all_ours:
                changes.append(txn.delete(registration.key))
            changes.append(txn.delete(self._keyspace.draining(suspect.agent)))
        elif registration is not None and tombstone.agent_record is not None:
            # The agent learns by this that it is not what it was, should it come back before the next part is taken.
            record = replace(tombstone.agent_record, incarnation=tombstone.incarnation)
            changes.append(txn.put(registration.key, record.encode()))
        if whole and suspect.ordered:
            changes.append(txn.delete(self._keyspace.reap_request(suspect.agent)))
        return Burial(suspect, tombstone, compare, changes, tombstone.encode(), whole)

    # --- writing ---------------------------------------------------------------------------------------------

    async def reap(self, term: Term, burials: Sequence[Burial], breaker: Breaker | None) -> list[Outcome]:
        """Collects those of one transaction while the breaker is the one given; None where an operator has ordered it.

        Raises:
            NotLeader, Deposed: this collector does not lead any more; nothing was done.
            BreakerMoved: the breaker is another one; nothing was done.
            EtcdError: `indefinite` when it may have been done all the same.
        """
        lease = await self._retention.lease(len(burials))
        try:
            answer = await fenced_txn(
                self._client,
                term,
                [] if breaker is None else [txn.modified_at(self._keyspace.breaker, breaker.revision)],
                [self._nested(burial, lease) for burial in burials],
                [txn.get(self._keyspace.breaker)],
            )
        except LeaseNotFound:
            self._retention.forget()
            raise
        except EtcdError as error:
            if error.indefinite:
                self._retention.used()
            raise
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs
            raise BreakerMoved(Breaker.of(found[0] if found else None), answer.header.revision)
        outcomes = [
            _outcome(burial, response.response_txn) for burial, response in zip(burials, answer.responses, strict=True)
        ]
        if any(outcome.tombstone for outcome in outcomes):
            self._retention.used()
        return outcomes

    def _nested(self, burial: Burial, lease: int) -> rpc.RequestOp:
        tombstone = burial.tombstone
        key = self._keyspace.tombstone(tombstone.agent, tombstone.incarnation, tombstone.part)
        return rpc.RequestOp(
            request_txn=rpc.TxnRequest(
                compare=burial.compare,
                success=[*burial.changes, txn.put(key, burial.value, lease=lease)],
                failure=[txn.get(self._keyspace.alive(tombstone.agent))],
            )
        )


def packed(burials: Iterable[Burial]) -> Iterator[list[Burial]]:
    """The burials in groups that each fit into one transaction; those of suspects who are alone by themselves."""
    group: list[Burial] = []
    deepest = size = 0
    for burial in burials:
        deeper, larger = max(deepest, burial.operations), size + burial.size
        full = len(group) + 1 + deeper > _OPERATIONS or larger > _BATCH_BYTES
        if group and (full or burial.suspect.alone or group[-1].suspect.alone):
            yield group
            group, deeper, larger = [], burial.operations, burial.size
        group.append(burial)
        deepest, size = deeper, larger
    if group:
        yield group


def _registered(agent: str, registration: KeyValue | None) -> tuple[AgentRecord | None, int]:
    """What an agent said of itself, and its incarnation; 0 for one that never registered."""
    if registration is None:
        return None, 0
    record = AgentRecord.decode(agent, registration.value)
    return record, record.incarnation or registration.mod_revision


def _fitting(kvs: Iterable[KeyValue]) -> Iterator[KeyValue]:
    """As many as one tombstone holds, in order; one that fits into none is left out."""
    size = 0
    for kv in kvs:
        larger = size + len(kv.key) + len(kv.value) * 4 // 3 + _ENTRY_BYTES
        if larger <= _TOMBSTONE_BYTES:
            size = larger
            yield kv


def _next_part(kept: frozenset[TombstoneKey], incarnation: int) -> int:
    return max((key.part + 1 for key in kept if key.incarnation == incarnation), default=0)


def _outcome(burial: Burial, answer: rpc.TxnResponse) -> Outcome:
    if answer.succeeded:
        return Outcome(burial.suspect, Fate.REAPED if burial.whole else Fate.PARTED, burial.tombstone)
    alive = answer.responses[0].response_range.kvs
    return Outcome(burial.suspect, Fate.RETURNED if alive else Fate.CHANGED)
