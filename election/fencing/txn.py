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
    return txn.created_at(term.key, term.token.revision)


async def fenced_txn(
    client: EtcdClient,
    term: Term,
    compare: Sequence[rpc.Compare],
    success: Sequence[rpc.RequestOp],
    failure: Sequence[rpc.RequestOp] = (),
    *,
    repeat: Repeat = Repeat.NEVER,
) -> rpc.TxnResponse:
    """Runs a transaction if, and only if, the term's key is there; its answer is that of etcd.

    So `succeeded` is False when only `compare` did not hold, and `failure` was done. The local deadline is checked
    before anything is sent, and etcd decides: the transaction is nested in one that compares the key, so a deposed
    leader does not even read.

    Raises:
        NotLeader: the term is over, by the local clock; nothing was sent.
        Deposed: etcd refused, since the term's key is gone; nothing was done.
        EtcdError: `indefinite` when it may have been done all the same.
    """
    term.check()
    own = rpc.RequestOp(request_txn=rpc.TxnRequest(compare=compare, success=success, failure=failure))
    answer = await client.txn([guard(term)], [own], repeat=repeat)
    if not answer.succeeded:
        raise Deposed(f"{term.id} does not lead {term.election!r} any more: etcd refused token {term.token}")
    done = answer.responses[0].response_txn
    done.header.CopyFrom(answer.header)
    return done


async def fenced_put(client: EtcdClient, term: Term, key: bytes, value: bytes, *, lease: int = 0) -> int:
    """Writes one key while the term lasts, and returns the revision; raises as `fenced_txn`."""
    return (await fenced_txn(client, term, [], [txn.put(key, value, lease=lease)])).header.revision


async def fenced_delete(client: EtcdClient, term: Term, key: bytes) -> bool:
    """Deletes one key while the term lasts; whether it was there. Raises as `fenced_txn`."""
    answer = await fenced_txn(client, term, [], [txn.delete(key)])
    return answer.responses[0].response_delete_range.deleted > 0
