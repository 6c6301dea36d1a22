"""What the shared keepalive and the agents on it rely on of etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from election.etcd import methods, txn
from election.kept import MOST_KEPT
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import Subject, answered, contract


async def pipelined(etcd: Subject, leases: Sequence[int]) -> list[tuple[int, int]]:
    """Sends all renewals on one stream before it reads an answer; the leases and TTLs of the answers."""
    stream = etcd.transport.stream(0, methods.LEASE_KEEP_ALIVE, metadata=())
    try:
        for lease in leases:
            await stream.write(rpc.LeaseKeepAliveRequest(ID=lease))
        answers = [await answered(stream) for _ in leases]
    finally:
        stream.cancel()
    assert all(answer.header.raft_term > 0 for answer in answers)
    return [(answer.ID, answer.TTL) for answer in answers]


@contract
async def test_renewals_on_one_stream_are_answered_in_order(etcd: Subject) -> None:
    leases = [await etcd.grant(60 + number) for number in range(20)]
    await etcd.client.lease_revoke(leases[3])
    asked = [*leases, 4711, leases[0]]
    expected = [(lease, 60 + number) for number, lease in enumerate(leases)]
    expected[3] = (leases[3], 0)
    assert await pipelined(etcd, asked) == [*expected, (4711, 0), (leases[0], 60)]


@contract
async def test_a_lease_that_has_just_expired_holds_up_its_stream_and_no_other(etcd: Subject) -> None:
    ending, living = await etcd.grant(2), await etcd.grant(60)
    await etcd.clock.sleep_s(2.001)
    blocked = asyncio.create_task(pipelined(etcd, [ending, living]))
    assert await pipelined(etcd, [living]) == [(living, 60)]
    assert await blocked == [(ending, 0), (living, 60)]


@contract
async def test_a_hundred_keys_are_looked_at_in_one_transaction_without_their_values(etcd: Subject) -> None:
    lease = await etcd.grant()
    revisions = [await etcd.put(f"k{number}", b"value", lease=lease) for number in range(3)]
    names = [f"k{number}" for number in range(100)]
    seen = await etcd.client.txn([], [txn.head(etcd.key(name)) for name in names])
    assert seen.header.revision == revisions[-1]
    found = [response.response_range.kvs for response in seen.responses]
    assert [kvs[0].create_revision for kvs in found[:3]] == revisions
    assert {(kvs[0].lease, kvs[0].value) for kvs in found[:3]} == {(lease, b"")}
    assert not any(found[3:])


@contract
async def test_what_an_agent_keeps_fits_beside_its_registration(etcd: Subject) -> None:
    alive, stored = etcd.key("alive"), etcd.key("stored")
    kept = [txn.put(etcd.key(f"kept{number}"), b"x") for number in range(MOST_KEPT)]
    begin = [txn.put(alive, b""), txn.put(stored, b""), txn.nested([txn.absent(stored)], kept)]
    first = await etcd.client.txn([txn.absent(alive)], begin, [txn.get(alive)])
    assert (first.succeeded, first.responses[2].response_txn.succeeded) == (True, True)
    assert len(await etcd.names()) == 2 + MOST_KEPT
    await etcd.client.delete(alive)
    await etcd.client.delete(etcd.key("kept0"))
    second = await etcd.client.txn([txn.absent(alive)], begin, [txn.get(alive)])
    assert (second.succeeded, second.responses[2].response_txn.succeeded) == (True, False)
    assert len(await etcd.names()) == 1 + MOST_KEPT
