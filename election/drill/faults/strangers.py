"""What strangers do to candidates: they delete a key or revoke a lease that is not theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.vocabulary import Done
from election.epoch import read_epoch
from election.errors import EtcdError
from election.etcd import txn
from election.records import Candidate
from election.token import Token

_HOLD_S = (0.5, 2.0)


async def _queue(stage: Stage) -> list[Candidate]:
    """All candidates, the oldest first; raises Nobody where etcd cannot be asked."""
    try:
        listed = await stage.site.control.list(stage.keyspace.campaign(stage.election))
    except EtcdError as error:
        raise Nobody(str(error)) from None
    return [Candidate.of(stage.election, kv) for kv in listed.kvs]


async def _leader(stage: Stage) -> tuple[Candidate, Token]:
    queue = await _queue(stage)
    if not queue or queue[0].token is None:
        raise Nobody("nobody leads")
    return queue[0], queue[0].token


async def _delete(stage: Stage, robbed: Candidate, token: Token) -> None:
    """Deletes this candidate's key, and not that of a later one. It may fail where etcd is hurt as well."""
    stage.on(robbed.id)
    stage.note(Done.ROBBED, robbed.id, token=str(token), how="key")
    key = robbed.key.encode()
    with suppress(EtcdError):
        await stage.site.control.txn([txn.created_at(key, robbed.created)], [txn.delete(key)])


@asynccontextmanager
async def _rob_leader_key(stage: Stage) -> AsyncGenerator[None]:
    await _delete(stage, *await _leader(stage))
    yield


@asynccontextmanager
async def _rob_leader_lease(stage: Stage) -> AsyncGenerator[None]:
    robbed, token = await _leader(stage)
    stage.on(robbed.id)
    stage.note(Done.ROBBED, robbed.id, token=str(token), how="lease")
    with suppress(EtcdError):  # gone meanwhile, or etcd is hurt as well
        await stage.site.control.lease_revoke(robbed.lease)
    yield


@asynccontextmanager
async def _rob_candidate_key(stage: Stage) -> AsyncGenerator[None]:
    waiting = (await _queue(stage))[1:]
    if not waiting:
        raise Nobody("nobody waits")
    robbed = stage.rng.choice(waiting)
    try:
        epoch = (await read_epoch(stage.site.control, stage.keyspace)).epoch
    except EtcdError as error:
        raise Nobody(str(error)) from None
    await _delete(stage, robbed, Token(epoch, robbed.created))
    yield


STRANGERS: tuple[Fault[Stage], ...] = (
    Fault("rob-leader-key", "a stranger deletes the key of the leader", Lane.CLIENTS, _HOLD_S, _rob_leader_key),
    Fault("rob-leader-lease", "a stranger revokes the lease of the leader", Lane.CLIENTS, _HOLD_S, _rob_leader_lease),
    Fault(
        "rob-candidate-key", "a stranger deletes the key of one who waits", Lane.CLIENTS, _HOLD_S, _rob_candidate_key
    ),
)
