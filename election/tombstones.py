"""Reads tombstones from etcd, as many at once as fit into a small answer.

A tombstone is put once, and goes when its retention is over. So it need not be read at the revision at which it was
listed, which etcd may have compacted: what is found is what was listed, or nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator

from election.agent_records import Tombstone
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.listing import list_all
from election.keys import Keyspace, TombstoneKey
from election.model import Kept, Model
from election.pb.etcd import rpc_pb2 as rpc

LARGEST = 3 * 512 * 1024
"""The most bytes that etcd takes in a request, and so the most of a tombstone whose size is not known."""

_BATCH_BYTES = 1024 * 1024
_BATCH_KEYS = 100
"""etcd takes 128 operations in a transaction."""


async def list_tombstones(
    client: EtcdClient, keyspace: Keyspace, agent: str | None, model: Model
) -> tuple[rpc.ResponseHeader, list[Kept]]:
    """The tombstones of one agent or of all, the oldest reap first, by a linearizable read.

    The model knows how large they are, but for those that it has not been shown yet.
    """
    prefix = keyspace.reaped_prefix if agent is None else keyspace.tombstones(agent)
    listed = await list_all(client, prefix, keys_only=True)
    parsed = ((keyspace.parse(kv.key), kv.mod_revision) for kv in listed.kvs)
    found = [
        Kept(key, revision, LARGEST if (size := model.size_of(key, revision)) is None else size)
        for key, revision in parsed
        if isinstance(key, TombstoneKey)
    ]
    return listed.header, sorted(found, key=lambda kept: (kept.revision, kept.key))


async def read_tombstones(
    client: EtcdClient, keyspace: Keyspace, wanted: Iterable[Kept]
) -> AsyncGenerator[list[tuple[Kept, Tombstone]]]:
    """Reads tombstones in the order in which they are wanted, some at a time; those that are gone are left out.

    One that was put again is left out as well: it is another one, of a later revision.
    """
    for batch in _batches(wanted):
        keys = [keyspace.tombstone(each.key.agent, each.key.incarnation, each.key.part) for each in batch]
        answer = await client.txn([], [txn.get(key) for key in keys], repeat=Repeat.SAFE)  # it only reads
        yield [
            (each, Tombstone.of(each.key, kv.value))
            for each, response in zip(batch, answer.responses, strict=True)
            for kv in response.response_range.kvs
            if kv.mod_revision == each.revision
        ]


def _batches(wanted: Iterable[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    size = 0
    for each in wanted:
        if batch and (len(batch) == _BATCH_KEYS or size + each.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.size
    if batch:
        yield batch
