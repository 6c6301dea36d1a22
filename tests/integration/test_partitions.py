"""Networks that are cut, one way or both, and bytes that arrive late: between clients and members, between members."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from election import CandidateConfig, LossReason, NotLeader, Store, ViewStale, connect
from election.dev.etcd import EtcdCluster, Member
from election.drill.link import Link
from election.drill.peers import Peers, partitionable_cluster
from election.drill.relay import Relay
from election.leadership import Campaigning, Leaving, Renewed
from election.machine import Transition
from election.records import Candidate as Queued
from election.views import View
from tests.integration.ran import (
    CLOCK,
    ELECTION,
    STEADY,
    Ran,
    leading,
    leads,
    lease,
    led_to_its_deadline,
    queued_anew,
    reason,
    standing,
    token,
    until,
    until_true,
)
from tests.integration.rivals import followers, rivals, use

pytestmark = pytest.mark.etcd

QUICK = CandidateConfig(ttl_s=3, renew_s=0.5, retry_max_s=1.0)
STUBBORN = CandidateConfig(ttl_s=5, renew_s=0.5, retry_max_s=1.0)
# Outlasts elections in etcd that fail, as they may without a pre-vote: 3.4 has none at its defaults.
PATIENT = CandidateConfig(ttl_s=20, renew_s=0.5, near_leader=False)
CUTS = (Link.cut, Link.hold_requests, Link.hold_answers)
UNCONFIRMED = 512
"""How many messages etcd's leader sends ahead to a member that confirms none (raft's `MaxInflightMsgs`)."""


# --- members that are cut off from the others -------------------------------------------------------------------


@pytest.fixture
async def parted(tmp_path: Path) -> AsyncIterator[tuple[EtcdCluster, Peers]]:
    """Three members for one test, which may cut them off from each other."""
    if sys.platform != "linux":
        pytest.skip("only Linux shows which member has dialled another")
    async with partitionable_cluster(tmp_path) as made:
        yield made


async def member_in(cluster: EtcdCluster, role: str) -> Member:
    return await cluster.leader() if role == "leader" else (await followers(cluster))[0]


@pytest.mark.parametrize(("role", "ttl_s"), [("follower", 5), ("leader", 8)])
async def test_a_term_outlives_the_isolation_of_any_member(
    parted: tuple[EtcdCluster, Peers], namespace: str, role: str, ttl_s: int
) -> None:
    """Whoever talks to the member that is cut off from the others goes on at another one, and keeps its token."""
    cluster, peers = parted
    member = await member_in(cluster, role)
    async with rivals(cluster, namespace, config=CandidateConfig(ttl_s=ttl_s, renew_s=0.5, near_leader=False)) as here:
        async with here.through():
            peers.isolate(member)
            await asyncio.sleep(10.5)  # more than both TTLs, and more than twice the shorter one
            assert all(client.member != member.index for client in here.clients)
        async with here.through():
            peers.mend()
            await cluster.wait_healthy()


async def another_leads(cluster: EtcdCluster, member: Member) -> bool:
    return await cluster.leader() is not member


@pytest.mark.parametrize("fault", [Peers.deafen, Peers.mute])
async def test_a_term_outlives_an_etcd_leader_that_is_cut_off_one_way(
    parted: tuple[EtcdCluster, Peers], namespace: str, fault: Callable[[Peers, Member], None]
) -> None:
    """One that hears nothing keeps the others from electing until it notices, and may ask for their votes after it."""
    cluster, peers = parted
    async with rivals(cluster, namespace, config=PATIENT) as here:
        member = await cluster.leader()
        async with here.through():
            fault(peers, member)
            await until_true(lambda: another_leads(cluster, member))
        async with here.through():
            peers.mend()
            await cluster.wait_healthy()


async def isolate(peers: Peers, member: Member, _: Store) -> None:
    peers.isolate(member)


async def leave_behind(peers: Peers, member: Member, store: Store) -> None:
    """The member hears the others, has a leader, and learns nothing new: as when its disk hangs."""
    peers.mute(member)
    for number in range(UNCONFIRMED + 100):
        await store.client.put(b"/unrelated", b"%d" % number)


@pytest.mark.parametrize(("role", "fault"), [("follower", isolate), ("leader", isolate), ("follower", leave_behind)])
async def test_the_next_takes_over_though_its_member_knows_nothing(
    parted: tuple[EtcdCluster, Peers],
    namespace: str,
    role: str,
    fault: Callable[[Peers, Member, Store], Awaitable[None]],
) -> None:
    """It leads by the place that it had, and a view that watches there shows it, and says how old its answers are."""
    cluster, peers = parted
    member = await member_in(cluster, role)
    async with (
        connect([other.endpoint for other in cluster.members if other is not member], namespace=namespace) as far,
        connect(cluster.endpoints, namespace=namespace) as near,
        connect(cluster.endpoints, namespace=namespace) as looking,
    ):
        use(near.client, member)
        use(looking.client, member)
        ran, first = Ran(), far.candidate(ELECTION, id="first", config=PATIENT)
        second = near.candidate(ELECTION, id="second", config=PATIENT)
        async with standing(ran, first, second), looking.view() as view:
            await leads(ran, first)
            await until_true(lambda: shows(view, "first"))
            waited = token(second)
            await fault(peers, member, far)
            first.leave()
            await until_true(lambda: is_oldest(far, "second"))
            await never_older_than_it_says(view, "second", changed_at_s=CLOCK.now_s())
            assert await leads(ran, first, second) is second
            assert token(second) == waited
        ran.check()


async def is_oldest(store: Store, id: str) -> bool:
    """Whether etcd itself has this candidate in front."""
    kvs = (await store.client.list(store.keyspace.campaign(ELECTION))).kvs
    return Queued.of(ELECTION, kvs[0]).id == id


async def shows(view: View, id: str) -> bool:
    leader = (await view.leader(ELECTION)).value
    return leader is not None and leader.id == id


async def never_older_than_it_says(view: View, id: str, *, changed_at_s: float) -> None:
    """Waits until the view shows this leader, in front since `changed_at_s`; it may refuse to answer until then."""
    async with asyncio.timeout(20):
        while True:
            asked_at_s = CLOCK.now_s()
            try:
                answer = await view.leader(ELECTION)
            except ViewStale:
                pass
            else:
                if answer.value is not None and answer.value.id == id:
                    return
                assert asked_at_s - answer.source.age_s < changed_at_s
            await asyncio.sleep(0.01)


# --- clients that are cut off from members ----------------------------------------------------------------------


@asynccontextmanager
async def relays(cluster: EtcdCluster) -> AsyncIterator[list[Relay]]:
    """A relay in front of each member, for one client."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Relay(member.endpoint)) for member in cluster.members]


def addresses(through: Sequence[Relay]) -> list[str]:
    return [relay.address for relay in through]


@asynccontextmanager
async def near_and_far(cluster: EtcdCluster, namespace: str) -> AsyncIterator[tuple[list[Relay], Store, Store]]:
    """A store behind relays, the relays, and a store that nothing happens to."""
    async with (
        relays(cluster) as between,
        connect(addresses(between), namespace=namespace) as near,
        connect(cluster.endpoints, namespace=namespace) as far,
    ):
        yield between, near, far


async def test_a_term_outlives_the_way_to_one_member(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """Three leaders, each cut off in another way from the member that it talks to; its watch goes on elsewhere."""
    async with AsyncExitStack() as stack:
        between = [await stack.enter_async_context(relays(etcd_cluster)) for _ in CUTS]
        here = await stack.enter_async_context(
            rivals(etcd_cluster, namespace, ways=[addresses(each) for each in between])
        )
        async with here.through():
            for index, cut in enumerate(CUTS):
                cut(between[index][index].link)
            await asyncio.sleep(2 * STEADY.ttl_s + 0.5)
            assert all(client.member != index for index, client in enumerate(here.clients))


async def test_a_term_outlives_members_that_refuse(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """Connections are reset and refused, at one member after the other."""
    async with AsyncExitStack() as stack:
        between = [await stack.enter_async_context(relays(etcd_cluster)) for _ in CUTS]
        here = await stack.enter_async_context(
            rivals(etcd_cluster, namespace, ways=[addresses(each) for each in between])
        )
        for index in range(len(etcd_cluster.members)):
            async with here.through():
                for each in between:
                    each[index].refuse()
                await asyncio.sleep(1)
            for each in between:
                each[index].mend()


async def next_loss(transitions: AsyncGenerator[Transition]) -> Leaving:
    """How the term, or the attempt, ended that went on when the transitions were asked for."""
    async with aclosing(transitions):
        async for transition in transitions:
            if isinstance(transition.state, Leaving):
                return transition.state
    raise AssertionError("the transitions ended")


async def test_a_leader_that_reaches_no_member_stops_before_its_lease_can_end(
    etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """Whichever way it is cut off; then another one leads, and the old one queues behind it once it can."""

    async def cut_off(cut: Callable[[Link], None]) -> None:
        election = cut.__name__
        async with near_and_far(etcd_cluster, namespace) as (between, near, far):
            ran, old = Ran(), near.candidate(election, id="old", config=STUBBORN)
            new = far.candidate(election, id="new", config=STUBBORN)
            async with standing(ran, old, new):
                await leads(ran, old)
                [span], transitions, granted = ran.spans, old.transitions(), leading(old)
                await until(lambda: leading(old).deadline_s > granted.deadline_s)
                for relay in between:
                    cut(relay.link)
                last = await led_to_its_deadline(old)
                with pytest.raises(NotLeader) as lost:
                    span.term.check()
                assert lost.value.reason is LossReason.EXPIRED
                await until(lambda: span.ended_s is not None)
                assert span.ended_s is not None
                assert span.ended_s < last.deadline_s + STUBBORN.margin_s

                assert await leads(ran, old, new) is new
                assert ran.spans[1].began_s > span.ended_s
                loss = await next_loss(transitions)
                assert (loss.token, loss.reason) == (span.term.token, LossReason.EXPIRED)
                assert -STUBBORN.margin_s < loss.margin_s <= 0

                for relay in between:
                    relay.mend()
                await queued_anew(old, span.term.token.revision)
                assert await leads(ran, old, new) is new
                new.leave()
                assert await leads(ran, old, new) is old
            assert ran.ids == ["old", "new", "old"]
            ran.check()

    async with asyncio.TaskGroup() as group:
        for cut in CUTS:
            group.create_task(cut_off(cut))


async def test_a_leader_that_cannot_hear_that_it_was_robbed_is_waited_for(
    etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """Somebody takes its key, or its lease, while it reaches no member: it acts on, and nobody else before it stops."""

    async def rob(what: str) -> None:
        async with near_and_far(etcd_cluster, namespace) as (between, near, far):
            ran, old = Ran(), near.candidate(what, id="old", config=STUBBORN)
            new = far.candidate(what, id="new", config=STUBBORN)
            async with standing(ran, old, new):
                await leads(ran, old)
                await asyncio.sleep(1.5)  # it is seen alive
                held = leading(old)
                for relay in between:
                    relay.link.cut()
                if what == "key":
                    await far.client.delete(far.keyspace.candidate(what, held.lease))
                else:
                    await far.client.lease_revoke(held.lease)
                await led_to_its_deadline(old)
                assert ran.ids == ["old"]
                assert await leads(ran, new) is new
                for relay in between:
                    relay.mend()
                await queued_anew(old, held.token.revision)
            assert ran.ids == ["old", "new"]
            ran.check()

    async with asyncio.TaskGroup() as group:
        for what in ("key", "lease"):
            group.create_task(rob(what))


async def test_a_view_that_reaches_no_member_stops_to_answer(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """Whichever way it is cut off, it says how old its answers are, and nothing when that is too old."""

    async def cut_off(cut: Callable[[Link], None]) -> None:
        async with near_and_far(etcd_cluster, f"{namespace}-{cut.__name__}") as (between, near, far):
            ran, candidates = Ran(), [far.candidate(ELECTION, id=name, config=STEADY) for name in ("first", "second")]
            async with standing(ran, *candidates), View(near.client, near.keyspace, max_age_s=2.0) as view:
                await leads(ran, candidates[0])
                await until_true(lambda: shows(view, "first"))
                for relay in between:
                    cut(relay.link)
                await until_stale(view)
                candidates[0].leave()
                await leads(ran, *candidates)
                changed_at_s = CLOCK.now_s()
                with pytest.raises(ViewStale):
                    await view.leader(ELECTION)
                for relay in between:
                    relay.mend()
                await never_older_than_it_says(view, "second", changed_at_s=changed_at_s)

    async with asyncio.TaskGroup() as group:
        for cut in CUTS:
            group.create_task(cut_off(cut))


async def until_stale(view: View) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                view.source()
            except ViewStale:
                return
            await asyncio.sleep(0.01)


# --- bytes that arrive late -------------------------------------------------------------------------------------


async def test_a_deadline_counts_from_when_the_renewal_was_sent(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """Over a slow network an answer is old when it arrives, and so is what it confirms."""
    round_trip_s = 0.2
    async with near_and_far(etcd_cluster, namespace) as (between, near, _):
        ran, candidate = Ran(), near.candidate(ELECTION, id="slow", config=STEADY)
        async with standing(ran, candidate):
            await leads(ran, candidate)
            for relay in between:
                relay.link.slow(round_trip_s / 2)
            await asyncio.sleep(STEADY.renew_interval_s)  # until answers from before have come
            renewed = 0
            async with aclosing(candidate.transitions()) as transitions, asyncio.timeout(20):
                async for transition in transitions:
                    if isinstance(transition.event, Renewed):
                        sent_before_s = CLOCK.now_s() - round_trip_s
                        assert transition.event.deadline_s <= sent_before_s + STEADY.ttl_s - STEADY.margin_s
                        renewed += 1
                    if renewed == 4:
                        break
        assert ran.ids == ["slow"]


async def test_renewals_that_are_answered_late_do_not_move_the_deadline(
    etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """etcd has renewed the lease, and says so so late that the leader has stopped to wait for it."""
    async with near_and_far(etcd_cluster, namespace) as (between, near, far):
        ran, candidate = Ran(), near.candidate(ELECTION, id="late", config=STUBBORN)
        async with standing(ran, candidate):
            await leads(ran, candidate)
            for relay in between:
                relay.link.hold_answers()
            held = leading(candidate)

            async def renewed_unnoticed() -> bool:
                left_s = (await far.client.lease_time_to_live(held.lease)).TTL
                return CLOCK.now_s() + left_s > held.deadline_s + STUBBORN.margin_s + 0.5

            await until_true(renewed_unnoticed)
            for relay in between:
                relay.link.hold_requests()  # what arrives now answers something that was sent before
            sent_before_s = CLOCK.now_s()
            await asyncio.sleep(1)
            for relay in between:
                relay.link.answers.release()
            last = await led_to_its_deadline(candidate)
            assert last.deadline_s <= sent_before_s + STUBBORN.ttl_s - STUBBORN.margin_s
            assert reason(candidate) is LossReason.EXPIRED
            for relay in between:
                relay.mend()
            await queued_anew(candidate, held.token.revision)


async def test_a_proof_that_arrives_late_makes_nobody_a_leader(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """A candidate hears that it is next, and its proof is held up until its lease has ended and another one leads."""
    async with near_and_far(etcd_cluster, namespace) as (between, near, far):
        ran, first = Ran(), far.candidate(ELECTION, id="first", config=QUICK)
        late, third = (
            near.candidate(ELECTION, id="late", config=QUICK),
            far.candidate(ELECTION, id="third", config=QUICK),
        )
        async with standing(ran, first, late, third):
            await leads(ran, first)
            waited, key = token(late), near.keyspace.candidate(ELECTION, lease(late))
            for relay in between:
                relay.link.hold_requests()
            await far.client.delete(ran.spans[0].term.key)
            await until(lambda: isinstance(late.state, Campaigning) and late.state.may_prove)
            await until(lambda: token(late) != waited)
            assert await leads(ran, first, third) is third
            led = token(third)
            for relay in between:
                relay.mend()
            await queued_anew(late, waited)
            assert await leads(ran, first, late, third) is third
            assert token(third) == led
            assert (await far.client.get(key))[0] is None
            third.leave()
            await leads(ran, first, late)
        assert ran.ids[:2] == ["first", "third"]
        ran.check_tokens()


async def test_a_proof_that_is_answered_late_makes_nobody_a_leader(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """etcd has accepted the proof, and says so when the candidate has given up and another one leads."""
    async with near_and_far(etcd_cluster, namespace) as (between, near, far):
        ran, late = Ran(), near.candidate(ELECTION, id="late", config=QUICK)
        second = far.candidate(ELECTION, id="second", config=QUICK)
        transitions = late.transitions()

        async def cut_when_it_proves() -> int:
            async with aclosing(transitions):
                async for transition in transitions:
                    if isinstance(transition.state, Campaigning) and transition.state.may_prove:
                        for relay in between:
                            relay.link.hold_answers()
                        return transition.state.lease
            raise AssertionError("it never was the oldest")

        cutting = asyncio.create_task(cut_when_it_proves())
        async with standing(ran, late):
            key, attempt = far.keyspace.candidate(ELECTION, await cutting), late.transitions()

            async def proven() -> bool:
                found, _ = await far.client.get(key)
                return found is not None and Queued.of(ELECTION, found).elected_at is not None

            await until_true(proven)
            async with standing(ran, second):
                loss = await next_loss(attempt)
                assert (loss.token, loss.reason) == (None, LossReason.EXPIRED)
                assert await leads(ran, late, second) is second
                for relay in between:
                    relay.mend()
                await until(lambda: token(late) > token(second))
                assert await leads(ran, late, second) is second
            assert await leads(ran, late, second) is late
        assert ran.ids == ["second", "late"]
        ran.check()
