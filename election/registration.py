"""What an agent writes into etcd to begin and to end one of its lives, each in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from election.agent_records import AgentRecord
from election.config import AgentConfig
from election.errors import AgentExists, EtcdError
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import Lease, grant, let_go
from election.keys import REGISTRATION, Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from election.token import LARGEST_REVISION

logger = logging.getLogger("election")


@dataclass(frozen=True, slots=True)
class Registration:
    """One life of an agent. The incarnation is the create revision of its liveness key."""

    incarnation: int
    lease: int


def checked(record: AgentRecord) -> AgentRecord:
    """The record, if there is room in it for all that is added when the agent leaves; raises RecordTooLarge."""
    replace(record, left_at=record.registered_at, incarnation=LARGEST_REVISION).encode()
    return record


def beginning(keyspace: Keyspace, record: AgentRecord, lease: int) -> list[rpc.RequestOp]:
    """What a life begins with: the liveness key, on its lease, and the registration.

    The registration outlives the lease: it tells the collector which incarnation left its state behind.
    """
    value = record.encode()
    return [
        txn.put(keyspace.alive(record.id), value, lease=lease),
        txn.put(keyspace.state(record.id, REGISTRATION), value),
    ]


def exists(agent: str) -> AgentExists:
    """The error for an id that has a living holder."""
    return AgentExists(
        f"agent {agent!r} is alive elsewhere: use another id, or wait until its lease has ended, or take over"
    )


async def register(
    client: EtcdClient,
    keyspace: Keyspace,
    record: AgentRecord,
    config: AgentConfig,
    *,
    before: int,
    put_back: Mapping[str, bytes],
) -> tuple[int, Lease]:
    """Begins a life; returns the incarnation and its lease, which somebody has to keep alive.

    The values of `put_back` are stored unless the registration in its state is that of the incarnation `before`: it is
    gone, or written anew, when what the agent had was reaped, in part at least. What is there by then stays as it is.
    When this is cancelled or fails, the lease is revoked.

    Raises:
        AgentExists: the id has a living holder.
        EtcdError: etcd could not be used.
    """
    alive, stored = keyspace.alive(record.id), keyspace.state(record.id, REGISTRATION)
    lease = await grant(client, ttl_s=config.ttl_s, margin_s=config.margin_s, renew_s=config.ttl_s / 3)
    begin = beginning(keyspace, record, lease.id)
    if put_back:
        keys = {keyspace.state(record.id, key): data for key, data in put_back.items()}
        kept = [txn.nested([txn.absent(key)], [txn.put(key, data)]) for key, data in keys.items()]
        begin.append(txn.nested([txn.modified_at(stored, before)], [], kept))
    try:
        # A second execution finds the first one's key, with our own lease.
        answer = await client.txn([txn.absent(alive)], begin, [txn.get(alive)], repeat=Repeat.SAFE)
        if answer.succeeded:
            return answer.header.revision, lease
        found = answer.responses[0].response_range.kvs
        if found and found[0].lease == lease.id:
            return found[0].create_revision, lease
        raise exists(record.id)
    except BaseException:
        await let_go(client, lease.id, whose=f"agent {record.id}")
        raise


async def evict(client: EtcdClient, keyspace: Keyspace, id: str) -> None:
    """Ends the life of whoever holds the id at present, and of nobody who comes later.

    Raises:
        EtcdError: etcd could not be used; the holder may be gone all the same.
    """
    alive = keyspace.alive(id)
    holder, _ = await client.get(alive)
    if holder is None:
        return
    seen = txn.created_at(alive, holder.create_revision)
    await client.txn([seen], [txn.delete(alive)], repeat=Repeat.SAFE)  # a second execution finds another key, or none
    if holder.lease:
        await let_go(client, holder.lease, whose=f"the evicted agent {id}")


async def leave(
    client: EtcdClient, keyspace: Keyspace, record: AgentRecord, registration: Registration, *, keep_state: bool
) -> None:
    """Ends a life of its own accord, if it has not ended; its state stays for the collector, or goes at once.

    A failure is logged, and harmless: the lease is revoked all the same, or ends by itself.
    """
    alive = keyspace.alive(record.id)
    end = [txn.delete(alive)]
    if keep_state:
        left = replace(record, left_at=client.clock.wall(), incarnation=registration.incarnation)
        end.append(txn.put(keyspace.state(record.id, REGISTRATION), left.encode()))
    else:
        end += [txn.delete_prefix(keyspace.states(record.id)), txn.delete(keyspace.draining(record.id))]
    try:
        own = txn.created_at(alive, registration.incarnation)
        await client.txn([own], end, repeat=Repeat.SAFE)  # a second execution finds that the key is gone
    except EtcdError as error:
        logger.warning("agent %s could not say that it leaves: %s", record.id, error)
    finally:
        await let_go(client, registration.lease, whose=f"agent {record.id}")
