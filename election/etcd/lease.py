"""A lease and its local deadline.

The deadline of a lease is `sent_at + ttl - margin`, where `sent_at` is read *before* the request was written: etcd
counts the TTL from when it served the request, which is later, so the lease cannot end before `deadline + margin`
by a clock that runs as fast as ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from election.backoff import Backoff
from election.config import check_lease_relations
from election.errors import AccessDenied, EtcdError, LeaseNotFound
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed, Stream
from election.pb.etcd import rpc_pb2 as rpc

logger = logging.getLogger("election")

_SHORTEST_ATTEMPT_S = 0.5

_KeepAlive = Stream[rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse]


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that etcd granted. `ttl_s` is the granted TTL; `deadline_s` is on the client's clock.

    `revision` is etcd's when it was granted. A grant goes through raft, so nobody has seen a later one before it.
    """

    id: int
    ttl_s: int
    margin_s: float
    renew_s: float
    deadline_s: float
    revision: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """One renewal that etcd confirmed: the new deadline, and how long the answer took."""

    deadline_s: float
    latency_s: float


async def grant(client: EtcdClient, *, ttl_s: int, margin_s: float, renew_s: float) -> Lease:
    """Grants a lease.

    etcd raises a TTL that is smaller than 1.5 times its election timeout, so the relations are checked again.

    Raises:
        ConfigError: when the granted TTL does not fit the other settings.
        EtcdError: when the grant failed; a lease that was granted all the same expires by itself.
    """
    sent_at_s = client.clock.now_s()
    answer = await client.lease_grant(ttl_s)
    check_lease_relations(answer.TTL, margin_s, renew_s)
    deadline_s = sent_at_s + answer.TTL - margin_s
    return Lease(answer.ID, answer.TTL, margin_s, renew_s, deadline_s, answer.header.revision)


async def let_go(client: EtcdClient, lease_id: int, *, whose: str, timeout_s: float | None = None) -> bool:
    """Ends a lease now rather than by its TTL, if etcd can be reached; a failure is logged, and harmless.

    Returns whether it is known to be gone. `timeout_s` is the call timeout of the client where it is None.
    """
    try:
        await client.lease_revoke(lease_id, timeout_s=timeout_s)
    except LeaseNotFound:
        pass
    except EtcdError as error:
        logger.warning("%s: the lease could not be revoked: %s", whose, error)
        return False
    return True


async def renewals(client: EtcdClient, lease: Lease, backoff: Backoff) -> AsyncGenerator[Renewal]:
    """Renews the lease on a stream of its own for as long as somebody iterates, and yields each success.

    A failure is retried on other members, without end: it is the reader's deadline that ends a lease which cannot
    be renewed. One that etcd refuses to this user is logged, once until a renewal has succeeded again. An answer
    with a raft term below the highest one seen comes from a deposed etcd leader, which renews nothing, and is
    dropped. Cancellation ends the stream; the lease stays as it is.

    Raises:
        LeaseNotFound: when etcd says that the lease is gone.
    """
    clock = client.clock
    due_at_s = clock.now_s() + lease.renew_s
    stream: _KeepAlive | None = None
    failures = 0
    refused = False
    try:
        while True:
            await clock.sleep_s(max(due_at_s - clock.now_s(), 0))
            try:
                if stream is None:
                    member, stream = await client.open(methods.LEASE_KEEP_ALIVE)
                sent_at_s = clock.now_s()
                answer = await _renew(client, stream, member, lease.id, attempt_s(client, failures))
            except EtcdError as error:  # no auth token to be had at present, or no permission
                answer = None
                if isinstance(error, AccessDenied) and not refused:
                    refused = True
                    logger.warning("lease %x cannot be renewed: %s", lease.id, error)
            if answer is None:
                if stream is not None:
                    stream.cancel()
                stream = None
                failures += 1
                due_at_s = clock.now_s() + backoff.next_s()
                continue
            if answer.TTL <= 0:
                raise LeaseNotFound(f"lease {lease.id:x} has expired or was revoked")
            backoff.reset()
            failures = 0
            refused = False
            due_at_s = sent_at_s + lease.renew_s
            yield Renewal(sent_at_s + answer.TTL - lease.margin_s, clock.now_s() - sent_at_s)
    finally:
        if stream is not None:
            stream.cancel()


def attempt_s(client: EtcdClient, failures: int) -> float:
    """How long to wait for one answer: short at first, longer after each failure.

    A follower that has lost its leader looks for a new one only once in an election timeout, while a call that comes
    later is forwarded at once (etcd: server/etcdserver/v3_server.go, waitLeader).
    """
    return min(_SHORTEST_ATTEMPT_S * (1 << min(failures, 10)), client.config.attempt_timeout_s)


async def _renew(
    client: EtcdClient, stream: _KeepAlive, member: int, lease_id: int, limit_s: float
) -> rpc.LeaseKeepAliveResponse | None:
    """One renewal; None when this stream will not do it; raises what another stream would be told as well."""
    try:
        async with asyncio.timeout(limit_s):
            await stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            answer = await stream.read()
    except TimeoutError:
        client.fell_silent(member)
        return None
    except RpcFailed as failure:
        if (error := client.stream_error(failure, member)) is not None:
            raise error from None
        return None
    if answer is None or answer.header.raft_term < client.raft_term:
        client.avoid(member)
        return None
    client.note(answer)
    return answer
