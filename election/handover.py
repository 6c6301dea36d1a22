"""Makes somebody who waits the leader, in one transaction.

It compares the keys of both, so it is the successor's proof: the successor leads as soon as its watch shows it. Those
in between lose their keys and queue anew. The key of another program is never deleted, and never given anything: it
leads by being the oldest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from election.epoch import Epoch, encode_highest
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.keys import Keyspace, ended_value
from election.records import Candidate
from election.token import Token


async def hand_over(
    client: EtcdClient, keyspace: Keyspace, epoch: Epoch, key: bytes, token: Token, heirs: Sequence[Candidate]
) -> bool:
    """Deletes the leader's key and those of all heirs but the last, who leads then; False when the queue is another.

    Raises:
        EtcdError: `indefinite` when it may have happened all the same. Nothing is lost by then revoking the lease.
    """
    *between, heir = heirs
    record = heir.record
    assert record is not None
    value = replace(record, elected_at=client.clock.wall(), epoch=epoch.number).encode()
    answer = await client.txn(
        [
            txn.created_at(key, token.revision),
            *(txn.created_at(each.key.encode(), each.created) for each in heirs),
            epoch.unchanged,
        ],
        [
            txn.delete(key),
            *(txn.delete(each.key.encode()) for each in between),
            txn.put(heir.key.encode(), value, keep_lease=True),
            txn.put(keyspace.highest(heir.election), encode_highest(Token(epoch.number, heir.created))),
            txn.put(keyspace.ended(heir.election), ended_value(key)),
        ],
    )
    return answer.succeeded
