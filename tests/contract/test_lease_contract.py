"""What the project relies on of etcd's leases."""

from __future__ import annotations

import secrets
from contextlib import aclosing

import pytest

from election.errors import ConfigError, LeaseNotFound
from election.etcd import methods
from election.etcd.lease import grant, renewals
from election.etcd.watch import Changes, watch
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import Subject, backoff, contract

NO_LEASE = ("NOT_FOUND", "etcdserver: requested lease not found")
SWEEP_S = 0.5
LAG_S = 1.0


@contract
async def test_a_lease_may_have_an_id_of_ones_own_and_only_once(etcd: Subject) -> None:
    lease = secrets.randbelow(2**62) + 1
    request = rpc.LeaseGrantRequest(TTL=60, ID=lease)
    granted = await etcd.raw(methods.LEASE_GRANT, request)
    assert (lease, 60) == (granted.ID, granted.TTL)
    refusal = ("FAILED_PRECONDITION", "etcdserver: lease already exists")
    assert await etcd.refusal(methods.LEASE_GRANT, request) == refusal
    assert (await etcd.raw(methods.LEASE_GRANT, rpc.LeaseGrantRequest(TTL=60))).ID not in (0, lease)


@contract
async def test_a_small_ttl_is_raised_to_one_and_a_half_election_timeouts(etcd: Subject) -> None:
    assert (await etcd.client.lease_grant(1)).TTL == 2
    with pytest.raises(ConfigError):
        await grant(etcd.client, ttl_s=1, margin_s=1.5, renew_s=0.3)
    too_large = rpc.LeaseGrantRequest(TTL=9_000_000_001)
    refusal = ("OUT_OF_RANGE", "etcdserver: too large lease TTL")
    assert await etcd.refusal(methods.LEASE_GRANT, too_large) == refusal


@contract
async def test_a_grant_makes_no_revision(etcd: Subject) -> None:
    before = await etcd.put("k")
    granted = await etcd.client.lease_grant(60)
    await etcd.client.lease_revoke(granted.ID)
    assert granted.header.revision == before
    assert await etcd.put("k") == before + 1


@contract
async def test_a_revoked_lease_takes_its_keys_along_in_one_revision(etcd: Subject) -> None:
    lease = await etcd.grant()
    for name in ("c", "a", "b"):
        before = await etcd.put(name, lease=lease)
    async with aclosing(watch(etcd.client, etcd.prefix, before + 1, backoff())) as items:
        revoked = await etcd.client.lease_revoke(lease)
        changes = await anext(item async for item in items if isinstance(item, Changes))
    assert revoked.header.revision == before + 1
    assert [event.kv.key[-1:] for event in changes.events] == [b"a", b"b", b"c"]
    assert {event.kv.mod_revision for event in changes.events} == {before + 1}
    assert await etcd.names() == []
    with pytest.raises(LeaseNotFound):
        await etcd.client.lease_revoke(lease)
    assert await etcd.refusal(methods.LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=lease)) == NO_LEASE


@contract
async def test_a_key_belongs_to_the_last_lease_it_was_put_with(etcd: Subject) -> None:
    first, second = await etcd.grant(), await etcd.grant()
    await etcd.put("moved", lease=first)
    await etcd.put("moved", lease=second)
    await etcd.put("freed", lease=first)
    await etcd.put("freed")
    await etcd.put("kept", lease=first)
    await etcd.client.lease_revoke(first)
    assert await etcd.names() == ["moved", "freed"]
    await etcd.client.lease_revoke(second)
    assert await etcd.names() == ["freed"]


@contract
async def test_a_lease_tells_its_time_and_its_keys(etcd: Subject) -> None:
    lease = await etcd.grant(60)
    for name in ("b", "a"):
        await etcd.put(name, lease=lease)
    told = await etcd.client.lease_time_to_live(lease, keys=True)
    assert told.grantedTTL == 60
    assert 58 <= told.TTL <= 60
    assert sorted(told.keys) == [etcd.key("a"), etcd.key("b")]
    assert not (await etcd.client.lease_time_to_live(lease)).keys
    assert lease in {each.ID for each in (await etcd.client.leases()).leases}


@contract
async def test_an_unknown_lease_has_a_time_of_minus_one_and_is_not_renewed(etcd: Subject) -> None:
    lease = await etcd.grant()
    async with etcd.keepalive() as renew:
        assert await renew(lease) == 60
        await etcd.client.lease_revoke(lease)
        assert await renew(lease) == 0
        assert await renew(4711) == 0
    told = await etcd.client.lease_time_to_live(lease)
    assert (told.ID, told.TTL, told.grantedTTL) == (lease, -1, 0)
    assert lease not in {each.ID for each in (await etcd.client.leases()).leases}


@contract
async def test_renewals_move_the_deadline_until_the_lease_is_gone(etcd: Subject) -> None:
    sent_at_s = etcd.clock.now_s()
    lease = await grant(etcd.client, ttl_s=3, margin_s=1.0, renew_s=0.1)
    assert sent_at_s + 2 <= lease.deadline_s <= etcd.clock.now_s() + 2
    deadline_s = lease.deadline_s
    async with aclosing(renewals(etcd.client, lease, backoff())) as renewed:
        for _ in range(3):
            renewal = await anext(renewed)
            assert deadline_s < renewal.deadline_s <= etcd.clock.now_s() + 2
            deadline_s = renewal.deadline_s
        await etcd.client.lease_revoke(lease.id)
        with pytest.raises(LeaseNotFound):
            await anext(renewed)


@contract
async def test_a_lease_that_nobody_renews_ends_with_its_keys(etcd: Subject) -> None:
    ending, renewed = await etcd.grant(2), await etcd.grant(2)
    await etcd.put("renewed", lease=renewed)
    before = await etcd.put("ending", lease=ending)
    granted_at_s = etcd.clock.now_s()
    async with aclosing(watch(etcd.client, etcd.prefix, before + 1, backoff())) as items, etcd.keepalive() as renew:
        await etcd.clock.sleep_s(1.5)
        assert await renew(renewed) == 2
        changes = await anext(item async for item in items if isinstance(item, Changes))
        lasted_s = etcd.clock.now_s() - granted_at_s
        assert await renew(ending) == 0
    deleted = kv.Event(type=kv.Event.DELETE, kv=kv.KeyValue(key=etcd.key("ending"), mod_revision=before + 1))
    assert list(changes.events) == [deleted]
    assert 1.9 < lasted_s < 2 + SWEEP_S + LAG_S
    assert await etcd.names() == ["renewed"]
    with pytest.raises(LeaseNotFound):
        await etcd.put("ending", lease=ending)


@contract
async def test_a_renewal_of_a_lease_that_is_just_ending_waits_for_the_end(etcd: Subject) -> None:
    lease = await etcd.grant(2)
    await etcd.put("k", lease=lease)
    async with etcd.keepalive() as renew:
        await etcd.clock.sleep_s(2.001)
        assert await renew(lease) == 0
    assert await etcd.names() == []
