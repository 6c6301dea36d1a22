"""What the project relies on of etcd's Election API, and the traps that it avoids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from election.errors import EtcdError, LeaseNotFound
from election.etcd import methods
from election.pb.etcd import election_pb2 as el
from tests.contract.subject import Subject, contract

Call = asyncio.Task[el.CampaignResponse]

SOON_S = 5.0
NOT_LEADER = ("UNKNOWN", "election: not leader")
NO_LEADER = ("UNKNOWN", "election: no leader")
NO_LEASE = ("UNKNOWN", "etcdserver: requested lease not found")
NO_KEY = ("UNKNOWN", '"leader" field must be provided')


def name(etcd: Subject) -> bytes:
    return etcd.key("e")


def own_key(etcd: Subject, lease: int) -> bytes:
    return name(etcd) + f"/{lease:x}".encode()


async def queued(etcd: Subject, lease: int) -> None:
    """Waits until a campaign's key is there."""
    async with asyncio.timeout(SOON_S):
        while (await etcd.client.get(own_key(etcd, lease)))[0] is None:
            await etcd.clock.sleep_s(0.01)


@asynccontextmanager
async def campaigning(etcd: Subject, lease: int, value: bytes = b"") -> AsyncIterator[Call]:
    """A campaign that waits."""
    call = asyncio.create_task(etcd.client.campaign(name(etcd), lease, value))
    try:
        await queued(etcd, lease)
        yield call
    finally:
        call.cancel()
        await asyncio.wait({call})


async def settled(call: Call) -> el.CampaignResponse:
    async with asyncio.timeout(SOON_S):
        return await call


async def is_waiting(etcd: Subject, call: Call) -> bool:
    await etcd.clock.sleep_s(0.1)
    return not call.done()


@contract
async def test_a_campaign_wins_with_the_oldest_key(etcd: Subject) -> None:
    before = await etcd.put("other")
    lease = await etcd.grant()
    won = await etcd.client.campaign(name(etcd), lease, b"me")
    expected = el.LeaderKey(name=name(etcd), key=own_key(etcd, lease), rev=before + 1, lease=lease)
    assert won.leader == expected
    assert won.header.revision == before + 1
    leader = await etcd.client.leader(name(etcd))
    assert (leader.kv.key, leader.kv.value, leader.kv.lease) == (own_key(etcd, lease), b"me", lease)
    assert leader.kv.create_revision == before + 1


@contract
async def test_candidates_lead_in_the_order_in_which_they_queued(etcd: Subject) -> None:
    first, second, third = [await etcd.grant() for _ in range(3)]
    won = await etcd.client.campaign(name(etcd), first, b"1")
    async with campaigning(etcd, second) as next_one, campaigning(etcd, third) as last:
        await etcd.client.resign(won.leader)
        assert (await settled(next_one)).leader.lease == second
        assert await is_waiting(etcd, last)
        await etcd.client.lease_revoke(second)
        then = await settled(last)
    assert then.leader.lease == third
    assert then.header.revision == then.leader.rev  # the revision of its queueing, not of its winning


@contract
async def test_who_leaves_the_queue_does_not_let_others_jump_it(etcd: Subject) -> None:
    first, second, third = [await etcd.grant() for _ in range(3)]
    await etcd.client.campaign(name(etcd), first, b"1")
    async with campaigning(etcd, second), campaigning(etcd, third) as last:
        await etcd.client.lease_revoke(second)
        assert await is_waiting(etcd, last)
        await etcd.client.lease_revoke(first)
        assert (await settled(last)).leader.lease == third


@contract
async def test_a_campaign_wins_although_its_own_key_is_gone(etcd: Subject) -> None:
    first, second = await etcd.grant(), await etcd.grant()
    await etcd.client.campaign(name(etcd), first, b"1")
    async with campaigning(etcd, second) as call:
        await etcd.client.lease_revoke(second)
        assert await is_waiting(etcd, call)
        await etcd.client.lease_revoke(first)
        won = await settled(call)
    assert won.leader.key == own_key(etcd, second)
    assert await etcd.names() == []
    proclaim = el.ProclaimRequest(leader=won.leader, value=b"really?")
    assert await etcd.refusal(methods.PROCLAIM, proclaim) == NOT_LEADER


@contract
async def test_a_cancelled_campaign_leaves_the_queue(etcd: Subject) -> None:
    first, second = await etcd.grant(), await etcd.grant()
    await etcd.client.campaign(name(etcd), first, b"1")
    async with campaigning(etcd, second):
        pass
    async with asyncio.timeout(SOON_S):
        while (await etcd.client.get(own_key(etcd, second)))[0] is not None:
            await etcd.clock.sleep_s(0.01)
    assert (await etcd.client.leader(name(etcd))).kv.lease == first


@contract
async def test_a_second_campaign_with_the_lease_of_a_cancelled_one_wins_with_no_key(etcd: Subject) -> None:
    first, second = await etcd.grant(), await etcd.grant()
    await etcd.client.campaign(name(etcd), first, b"1")
    async with campaigning(etcd, second, b"v") as cancelled, campaigning(etcd, second, b"v") as call:
        assert await is_waiting(etcd, call)
        cancelled.cancel()
        async with asyncio.timeout(SOON_S):
            while (await etcd.client.get(own_key(etcd, second)))[0] is not None:
                await etcd.clock.sleep_s(0.01)
        await etcd.client.lease_revoke(first)
        assert (await settled(call)).leader.lease == second
    assert await etcd.names() == []


@contract
async def test_a_campaign_again_with_the_same_lease_keeps_its_place_and_changes_the_value(etcd: Subject) -> None:
    lease = await etcd.grant()
    won = await etcd.client.campaign(name(etcd), lease, b"1")
    again = await etcd.client.campaign(name(etcd), lease, b"2")
    assert again.leader == won.leader
    leader = await etcd.client.leader(name(etcd))
    assert (leader.kv.value, leader.kv.version) == (b"2", 2)


@contract
async def test_a_campaign_with_a_lease_that_is_not_there_is_refused(etcd: Subject) -> None:
    request = el.CampaignRequest(name=name(etcd), lease=4711)
    assert await etcd.refusal(methods.CAMPAIGN, request) == NO_LEASE
    with pytest.raises(LeaseNotFound):
        await etcd.client.campaign(name(etcd), 4711, b"")


@contract
async def test_a_campaign_without_a_lease_gets_one_that_nobody_renews(etcd: Subject) -> None:
    won = await etcd.raw(methods.CAMPAIGN, el.CampaignRequest(name=name(etcd)))
    assert won.leader.lease != 0
    told = await etcd.client.lease_time_to_live(won.leader.lease)
    assert told.grantedTTL == 60
    await etcd.client.lease_revoke(won.leader.lease)


@contract
async def test_a_proclamation_is_a_write_that_only_the_holder_can_make(etcd: Subject) -> None:
    lease = await etcd.grant()
    won = await etcd.client.campaign(name(etcd), lease, b"1")
    proclaimed = await etcd.client.proclaim(won.leader, b"2")
    leader = await etcd.client.leader(name(etcd))
    assert (leader.kv.value, leader.kv.mod_revision) == (b"2", proclaimed.header.revision)
    assert leader.kv.create_revision == won.leader.rev
    older = el.LeaderKey()
    older.CopyFrom(won.leader)
    older.rev -= 1
    with pytest.raises(EtcdError, match="election: not leader"):
        await etcd.client.proclaim(older, b"3")
    await etcd.client.lease_revoke(lease)
    assert await etcd.refusal(methods.PROCLAIM, el.ProclaimRequest(leader=won.leader)) == NOT_LEADER
    assert await etcd.refusal(methods.PROCLAIM, el.ProclaimRequest(value=b"")) == NO_KEY


@contract
async def test_a_resignation_deletes_the_key_and_says_ok_to_anybody(etcd: Subject) -> None:
    lease = await etcd.grant()
    won = await etcd.client.campaign(name(etcd), lease, b"1")
    stranger = el.LeaderKey()
    stranger.CopyFrom(won.leader)
    stranger.rev += 1
    refused = await etcd.client.resign(stranger)
    assert refused.header.revision == won.leader.rev  # nothing was written
    assert (await etcd.client.leader(name(etcd))).kv.create_revision == won.leader.rev
    resigned = await etcd.client.resign(won.leader)
    assert resigned.header.revision == won.leader.rev + 1
    assert await etcd.names() == []
    assert (await etcd.client.resign(won.leader)).header.revision == won.leader.rev + 1
    assert await etcd.refusal(methods.RESIGN, el.ResignRequest()) == NO_KEY


@contract
async def test_an_election_without_candidates_has_no_leader(etcd: Subject) -> None:
    assert await etcd.refusal(methods.LEADER, el.LeaderRequest(name=name(etcd))) == NO_LEADER


@contract
async def test_an_election_counts_every_key_below_its_name(etcd: Subject) -> None:
    other, lease = await etcd.grant(), await etcd.grant()
    below = await etcd.client.campaign(name(etcd) + b"/below", other, b"")
    async with campaigning(etcd, lease) as call:
        assert await is_waiting(etcd, call)
        assert (await etcd.client.leader(name(etcd))).kv.key == below.leader.key
        await etcd.client.resign(below.leader)
        await settled(call)


@contract
async def test_a_strangers_key_leads_when_it_is_the_oldest(etcd: Subject) -> None:
    stranger = await etcd.put("e/somebody", b"not ours")
    lease = await etcd.grant()
    async with campaigning(etcd, lease) as call:
        leader = await etcd.client.leader(name(etcd))
        assert (leader.kv.create_revision, leader.kv.value) == (stranger, b"not ours")
        await etcd.client.delete(etcd.key("e/somebody"))
        await settled(call)
