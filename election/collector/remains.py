"""Reads what dead agents have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from election.agent_records import AgentRecord
from election.collector.suspects import Suspect
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.keys import REGISTRATION, Keyspace, TombstoneKey, is_name, range_end
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import KeyValue

MOST_KEYS = 100
"""The most keys of one agent that are read, and reaped, at a time: etcd takes 128 comparisons in a transaction."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What a suspect has left, as one answer of etcd showed it at `revision`.

    `values` are the keys of its state, `record` is what its registration says, `more` says that there are others behind
    them, and `foreign` that there are keys between them that are not of a state. `parts` are the tombstones that are
    kept of it, which are known only of suspects that were read alone.
    """

    suspect: Suspect
    prefix: bytes
    revision: int
    values: Sequence[KeyValue]
    registration: KeyValue | None
    record: AgentRecord | None
    foreign: bool
    more: bool
    parts: frozenset[TombstoneKey] = frozenset()

    @property
    def incarnation(self) -> int:
        """Whose state it is; 0 of an agent that never registered."""
        if self.registration is None or self.record is None:
            return 0
        return self.record.incarnation_at(self.registration.mod_revision)

    @property
    def is_of_another(self) -> bool:
        """Whether it is of another incarnation than the one that was suspected: it came back, and is gone again."""
        known = self.suspect.alone or not self.more
        return known and bool(self.values or self.registration) and self.incarnation != self.suspect.incarnation

    @property
    def size(self) -> int:
        """The bytes of its values."""
        return sum(len(kv.value) for kv in self.values)


async def read(client: EtcdClient, keyspace: Keyspace, suspects: Sequence[Suspect]) -> list[Remains]:
    """What they have left, at one revision."""
    prefixes = [keyspace.states(suspect.agent) for suspect in suspects]
    answer = await client.txn([], [_first(prefix) for prefix in prefixes], repeat=Repeat.SAFE)
    return [
        _remains(suspect, prefix, answer.header.revision, response.response_range)
        for suspect, prefix, response in zip(suspects, prefixes, answer.responses, strict=True)
    ]


async def read_alone(client: EtcdClient, keyspace: Keyspace, suspect: Suspect) -> Remains:
    """What one has left, and the tombstones that are kept of it."""
    prefix = keyspace.states(suspect.agent)
    answer = await client.txn(
        [],
        [_first(prefix), txn.get(prefix + _REGISTRATION), txn.names(keyspace.tombstones(suspect.agent))],
        repeat=Repeat.SAFE,
    )
    state, registration, tombstones = (response.response_range for response in answer.responses)
    parsed = (keyspace.parse(kv.key) for kv in tombstones.kvs)
    found = _remains(suspect, prefix, answer.header.revision, state, next(iter(registration.kvs), None))
    return replace(found, parts=frozenset(key for key in parsed if isinstance(key, TombstoneKey)))


async def read_all(client: EtcdClient, remains: Remains) -> Remains:
    """The same with everything that is behind it."""
    return _remains(remains.suspect, remains.prefix, remains.revision, await client.list(remains.prefix))


_REGISTRATION = REGISTRATION.encode()


def _first(prefix: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=prefix, range_end=range_end(prefix), limit=MOST_KEYS))


def _remains(
    suspect: Suspect,
    prefix: bytes,
    revision: int,
    answer: rpc.RangeResponse,
    registration: KeyValue | None = None,
) -> Remains:
    """What an answer shows; the registration is given where it may be behind what was read."""
    foreign = False
    values = []
    for kv in answer.kvs:
        name = kv.key[len(prefix) :]
        if name == _REGISTRATION:
            registration = kv
        elif is_name(name):
            values.append(kv)
        else:
            foreign = True
    record = AgentRecord.decode(suspect.agent, registration.value) if registration is not None else None
    return Remains(suspect, prefix, revision, values, registration, record, foreign, answer.more)
