"""Makes a resource refuse a leader that has been deposed.

For etcd itself the check is part of the write: a transaction that compares the create revision of the leader's key
with the token. A deposed leader's write fails there, however late it arrives.
"""

from __future__ import annotations

from collections.abc import Sequence

from election.errors import Deposed
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.pb.etcd import rpc_pb2 as rpc
from election.term import Term


def guard(term: Term) -> rpc.Compare:
    """The comparison that holds while the term's key is there, for any transaction of your own."""
    return txn.created_at(term.key, term.token)


async def fenced_txn(
    client: EtcdClient,
    term: Term,
    compare: Sequence[rpc.Compare],
    success: Sequence[rpc.RequestOp],
    *,
    repeat: Repeat = Repeat.NEVER,
) -> bool:
    """Runs the operations if the term's key is there and `compare` holds; False when only `compare` did not hold.

    The local deadline is checked before anything is sent, and etcd decides.

    Raises:
        NotLeader: the term is over, by the local clock; nothing was sent.
        Deposed: etcd refused, since the term's key is gone; nothing was written.
        EtcdError: `indefinite` when it may have been written all the same.
    """
    term.check()
    answer = await client.txn([guard(term), *compare], success, [txn.get(term.key)], repeat=repeat)
    if answer.succeeded:
        return True
    found = answer.responses[0].response_range.kvs
    if not found or found[0].create_revision != term.token:
        raise Deposed(f"{term.id} does not lead {term.election!r} any more: etcd refused token {term.token}")
    return False
