"""Puts back what a collector has collected of an agent: its tombstones hold every value.

What is written is compared with what was there a moment ago, so nothing that somebody else writes meanwhile is lost.
A state that is too large for one transaction takes several. A restore that is interrupted can be repeated: what is
there already is left as it is. The registration comes last: before it the keys belong to no incarnation, and a
collector that finds them then makes a tombstone of their own, and leaves those that they come from alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from election.agent_records import Tombstone
from election.errors import AgentUnknown, EtcdError, StateExists
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.keys import REGISTRATION, Keyspace, TombstoneKey
from election.pb.etcd.kv_pb2 import KeyValue

_TXN_KEYS = 120
"""etcd takes 128 comparisons and 128 operations in a transaction; some are not for keys that are written."""

_TXN_BYTES = 1024 * 1024
"""etcd takes requests of 1.5 MiB. Each key is in one twice."""

_SHOWN = 8
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back: `written` are the names of the keys, `unchanged` of those that had these values already.

    Of an agent that is not `alive`, everything is collected again after the grace unless it comes back.
    """

    agent: str
    incarnation: int
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    alive: bool
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class _Collected:
    """What the tombstones of one incarnation hold, all parts together, in the order in which it is put back."""

    incarnation: int
    values: Mapping[str, bytes]
    registration: bytes | None


@dataclass(frozen=True, slots=True)
class _Write:
    """One key to write, if it is as it was seen; `seen` is its mod revision, 0 where it was absent."""

    name: str
    value: bytes
    seen: int


async def restore(
    client: EtcdClient, keyspace: Keyspace, agent: str, *, incarnation: int | None = None, overwrite: bool = False
) -> Restored:
    """Puts back what was collected of the newest incarnation that has a tombstone, or of the one that is named.

    While the agent is not alive its registration is put back as well, so that it is a suspect whose grace begins now.
    While it is alive, only its present incarnation is given anything. Tombstones stay.

    Raises:
        AgentUnknown: there is no such tombstone.
        StateExists: keys are there with other values, and `overwrite` does not say that they may go.
        EtcdError: etcd could not be used, or the agent's state changes all the time. Some of the keys may have been
            written: repeat it.
    """
    written: list[str] = []
    prefix = keyspace.states(agent)
    for _ in range(_ATTEMPTS):
        reads = [txn.get(keyspace.alive(agent)), txn.get_prefix(prefix), txn.get_prefix(keyspace.tombstones(agent))]
        answer = await client.txn([], reads, repeat=Repeat.SAFE)
        alive, stored, buried = (response.response_range.kvs for response in answer.responses)
        collected = _collected(keyspace, agent, list(buried), incarnation)
        wanted = dict(collected.values)
        if collected.registration is not None and not alive:
            wanted[REGISTRATION] = collected.registration
        there = {kv.key.removeprefix(prefix).decode("utf-8", "backslashreplace"): kv for kv in stored}
        writes = _writes(agent, wanted, there, overwrite=overwrite, written=written)
        guards = [
            txn.created_at(keyspace.alive(agent), alive[0].create_revision if alive else 0),
            txn.nothing_newer(keyspace.tombstones(agent), answer.header.revision),  # what was written is not collected
        ]
        for group in _groups(writes):
            keys = [(prefix + write.name.encode(), write) for write in group]
            answer = await client.txn(
                [*guards, *(txn.modified_at(key, write.seen) for key, write in keys)],
                [txn.put(key, write.value) for key, write in keys],
                repeat=Repeat.SAFE,  # a second execution is refused, since the first one has changed the keys
            )
            if not answer.succeeded:
                break  # something has changed, or a first execution went unnoticed: look again
            written += (write.name for write in group)
        else:
            unchanged = tuple(name for name in wanted if name not in written)
            names, revision = tuple(dict.fromkeys(written)), answer.header.revision
            return Restored(agent, collected.incarnation, names, unchanged, bool(alive), revision)
    raise EtcdError(f"agent {agent!r} changes all the time: what was collected is not all put back: try again")


def _collected(keyspace: Keyspace, agent: str, buried: list[KeyValue], incarnation: int | None) -> _Collected:
    # Where two tombstones of one incarnation have the same key, it was restored and collected again: the newer counts.
    buried.sort(key=lambda kv: kv.mod_revision)
    tombstones = [
        Tombstone.of(key, kv.value) for kv in buried if isinstance(key := keyspace.parse(kv.key), TombstoneKey)
    ]
    known = sorted({tombstone.incarnation for tombstone in tombstones})
    if not known:
        raise AgentUnknown(f"agent {agent!r} has no tombstone in namespace {keyspace.namespace!r}: nothing to restore")
    chosen = known[-1] if incarnation is None else incarnation
    if chosen not in known:
        shown = ", ".join(map(str, known[-_SHOWN:]))
        raise AgentUnknown(f"agent {agent!r} has no tombstone of incarnation {chosen}: there are those of {shown}")
    parts = [tombstone for tombstone in tombstones if tombstone.incarnation == chosen]
    values = {entry.key: entry.value for part in parts for entry in part.collected if entry.key != REGISTRATION}
    record = next((part.agent_record for part in reversed(parts) if part.agent_record), None)
    registration = record.encode_as(chosen) if record else None
    return _Collected(chosen, values, registration)


def _writes(
    agent: str, wanted: Mapping[str, bytes], there: Mapping[str, KeyValue], *, overwrite: bool, written: Container[str]
) -> list[_Write]:
    """What is still to be written. What differs from what was written before is newer, and stays."""
    different = [
        name for name, value in wanted.items() if name in there and there[name].value != value and name not in written
    ]
    if different and not overwrite:
        refused = tuple(different)
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise StateExists(
            f"agent {agent!r} has other values for {', '.join(refused[:_SHOWN])}{more}: nothing is put back "
            "before overwrite allows to replace them",
            keys=refused,
        )
    return [
        _Write(name, value, there[name].mod_revision if name in there else 0)
        for name, value in wanted.items()
        if name not in there or name in different
    ]


def _groups(writes: list[_Write]) -> Iterator[list[_Write]]:
    """The writes in the same order, in groups that fit into a transaction each."""
    group: list[_Write] = []
    size = 0
    for write in writes:
        if group and (len(group) == _TXN_KEYS or size + len(write.value) > _TXN_BYTES):
            yield group
            group, size = [], 0
        group.append(write)
        size += len(write.value)
    if group:
        yield group
