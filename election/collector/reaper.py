"""Collects what dead agents have left: many agents in one transaction, each for itself.

The transaction compares the collector's own leader key and the breaker, and within it each agent has a transaction of
its own, which compares that the liveness key is absent and that the state is the one that was read. So an agent that
is back, or whose state has changed, is left out, and the others are reaped all the same. etcd lets a transaction have
128 operations, and what is nested in it as many as that leaves over (etcd: server/etcdserver/api/v3rpc/key.go,
`checkTxnRequest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from election.breaker import Breaker
from election.collector.burial import Burial, Planner
from election.collector.retention import Retention
from election.errors import ElectionError, EtcdError, LeaseNotFound
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.fencing.txn import fenced_txn
from election.pb.etcd import rpc_pb2 as rpc
from election.term import Term


class Fate(Enum):
    """What became of a suspect."""

    REAPED = "its state is collected"
    PARTED = "a part of its state is collected"
    RETURNED = "it is alive"
    CHANGED = "its state is not what was read"

    @property
    def was_put(self) -> bool:
        """Whether there is a tombstone of it."""
        return self in (Fate.REAPED, Fate.PARTED)


@dataclass(frozen=True, slots=True)
class BreakerMoved(Exception):
    """The breaker is not what it was, and nothing was reaped; what it is at a revision."""

    breaker: Breaker
    revision: int


async def reap(
    client: EtcdClient,
    term: Term,
    planner: Planner,
    burials: Sequence[Burial],
    *,
    retention: Retention,
    breaker: Breaker | None,
) -> list[tuple[Burial, Fate]]:
    """Collects those of one transaction while the breaker is the one given; None where an operator has ordered it.

    Raises:
        NotLeader, Deposed: this collector does not lead any more; nothing was done.
        BreakerMoved: the breaker is another one; nothing was done.
        EtcdError: `indefinite` when it may have been done all the same.
    """
    lease = await retention.lease(len(burials))
    key = planner.keyspace.breaker
    lease.uses += 1  # also when this is cancelled: etcd may do it all the same
    try:
        answer = await fenced_txn(
            client,
            term,
            [] if breaker is None else [txn.modified_at(key, breaker.revision)],
            [_nested(planner, burial, lease.id) for burial in burials],
            [txn.get(key)],
        )
    except ElectionError as error:
        if not (isinstance(error, EtcdError) and error.indefinite):
            lease.uses -= 1
        if isinstance(error, LeaseNotFound):
            retention.forget(lease)
        raise
    if not answer.succeeded:
        lease.uses -= 1
        found = answer.responses[0].response_range.kvs
        raise BreakerMoved(Breaker.of(found[0] if found else None), answer.header.revision)
    fates = [_fate(burial, each.response_txn) for burial, each in zip(burials, answer.responses, strict=True)]
    if not any(fate.was_put for fate in fates):
        lease.uses -= 1
    return list(zip(burials, fates, strict=True))


def _nested(planner: Planner, burial: Burial, lease: int) -> rpc.RequestOp:
    bury = txn.put(planner.key(burial.tombstone), burial.value, lease=lease)
    return rpc.RequestOp(
        request_txn=rpc.TxnRequest(
            compare=burial.compare,
            success=[*burial.changes, bury],
            failure=[txn.head(planner.keyspace.alive(burial.suspect.agent))],
        )
    )


def _fate(burial: Burial, answer: rpc.TxnResponse) -> Fate:
    if answer.succeeded:
        return Fate.REAPED if burial.whole else Fate.PARTED
    return Fate.RETURNED if answer.responses[0].response_range.kvs else Fate.CHANGED
