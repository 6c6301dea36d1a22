"""What etcd's own tests of its elections check, checked of ours.

The behaviours are those of etcd's integration tests: `v3_election_test.go`, `v3election_grpc_test.go`, and
`clientv3/concurrency` with its `election_test.go`, `election_resign_test.go` and tests of sessions. The tests are
written anew, and each names what it follows; where ours behaves differently on purpose, it says why.
"""

from __future__ import annotations

import asyncio
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from election import (
    Candidate,
    CandidateConfig,
    ElectionError,
    EtcdError,
    Loss,
    LossReason,
    Store,
    Token,
    View,
    connect,
    fenced_put,
)
from election.dev.etcd import EtcdCluster
from election.leadership import Following
from election.pb.etcd import election_pb2 as el
from election.reader import LeaderEvent, LeaderEventKind
from election.records import Leader
from tests.integration.ran import (
    CLOCK,
    ELECTION,
    QUICK,
    STEADY,
    Ran,
    leading,
    leads,
    lease,
    queued_anew,
    standing,
    token,
    until,
    until_true,
)
from tests.integration.test_candidate import leading_process as process_that_leads
from tests.integration.test_candidate import stranger as campaign_of_a_stranger

pytestmark = pytest.mark.etcd


@pytest.fixture
async def stores(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[list[Store]]:
    """Three connections, each to another member."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(endpoint, namespace=namespace))
            for endpoint in etcd_cluster.endpoints
        ]


@pytest.fixture
def store(stores: list[Store]) -> Store:
    """One of them."""
    return stores[0]


@pytest.fixture
async def lone_etcd(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    """One member for one test, which may pause it."""
    async with await EtcdCluster.start(data_dir=tmp_path, members=1) as cluster:
        yield cluster


def one_each(*stores: Store) -> list[Candidate]:
    """A candidate on each of these connections: a, b, c."""
    return [store.candidate(ELECTION, id=name, config=QUICK) for store, name in zip(stores, "abc", strict=False)]


async def who_leads(store: Store) -> Leader:
    """The first leader that a new observer sees."""
    async with asyncio.timeout(20), aclosing(store.candidate(ELECTION, id="observer").observe()) as events:
        async for event in events:
            if event.leader is not None:
                return event.leader
    raise AssertionError("the observer was told nothing")


async def until_vacated(store: Store, leaders: int, begun: asyncio.Event) -> list[LeaderEvent]:
    """What one observer is told until this many leaders were elected and nobody leads any more."""
    told: list[LeaderEvent] = []
    async with aclosing(store.candidate(ELECTION, id="observer").observe()) as events:
        async for event in events:
            told.append(event)
            begun.set()
            elected = sum(each.kind is LeaderEventKind.ELECTED for each in told)
            if elected >= leaders and event.kind is LeaderEventKind.VACATED:
                break
    return told


def key_of(store: Store, leader: Candidate) -> el.LeaderKey:
    """What etcd's own calls want to know of a leader; whoever can read the queue can know it."""
    state = leading(leader)
    name = store.keyspace.campaign_name(ELECTION)
    key = store.keyspace.candidate(ELECTION, state.lease)
    return el.LeaderKey(name=name, key=key, rev=state.token.revision, lease=state.lease)


# --- one after the other, seen by all ----------------------------------------------------------------------------


async def test_each_leads_in_its_turn_and_every_observer_sees_it(stores: list[Store]) -> None:
    """TestElectionWait, ExampleElection_Campaign: a leader resigns once all observers have seen it.

    Observers that begin anew in each turn see the leader of that turn, those that go on see all of them, in order.
    """
    ran = Ran()
    leaders = [stores[number % 3].candidate(ELECTION, id=f"leader-{number}", config=QUICK) for number in range(4)]
    begun = [asyncio.Event() for _ in stores]
    async with asyncio.TaskGroup() as group:
        lasting = [
            group.create_task(until_vacated(store, len(leaders), event))
            for store, event in zip(stores, begun, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        async with standing(ran, *leaders):
            for expected in leaders:
                assert await leads(ran, *leaders) is expected
                held = leading(expected).token
                seen = await asyncio.gather(*map(who_leads, stores))
                assert [(each.id, each.token, each.proven) for each in seen] == [(expected.id, held, True)] * 3
                expected.leave()
    assert ran.ids == [leader.id for leader in leaders]
    ran.check()
    tokens = [span.term.token for span in ran.spans]
    for observer in lasting:
        told = observer.result()
        assert told[0].kind is LeaderEventKind.VACATED
        elected = [event.leader for event in told if event.kind is LeaderEventKind.ELECTED]
        assert [leader.token for leader in elected if leader] == tokens


async def test_one_observer_sees_what_all_leaders_proclaim_and_never_goes_back(store: Store) -> None:
    """TestV3ElectionObserve, TestResumeElection: also those of another program, and nothing that is not of theirs.

    Every value is told: ours follows a watch, where etcd's Observe may leave some out.
    """
    begun, ours = asyncio.Event(), store.candidate(ELECTION, id="ours", config=QUICK)
    observing = asyncio.create_task(until_vacated(store, 2, begun))
    await begun.wait()
    ran, name = Ran(), store.keyspace.campaign_name(ELECTION)
    async with campaign_of_a_stranger(store, b"0") as campaign:
        first = (await campaign).leader
        async with standing(ran, ours):
            for number in range(1, 5):
                await store.client.put(name + b"-unrelated", b"%d" % number)
                await store.client.proclaim(first, b"%d" % number)
            await store.client.resign(first)
            await leads(ran, ours)
    told = await asyncio.wait_for(observing, 20)
    seen = [event.leader for event in told if event.leader is not None]
    ids = list(dict.fromkeys(leader.id for leader in seen))
    assert ids == ["0", "1", "2", "3", "4", "ours"]
    tokens = [leader.token for leader in seen]
    assert tokens == sorted(tokens)
    assert set(tokens) == {Token(0, first.rev), ran.spans[0].term.token}
    assert all(leader.key.startswith(f"{name.decode()}/") for leader in seen)


async def test_an_observer_that_stops_leaves_no_watch_behind(lone_etcd: EtcdCluster, namespace: str) -> None:
    """TestV3ElectionRequestBehavior, ObserveStopsOnContextCancel: as etcd itself counts its watches."""

    def watches() -> int:
        with urllib.request.urlopen(f"http://{lone_etcd.endpoints[0]}/metrics", timeout=10) as answer:
            lines: list[str] = answer.read().decode().splitlines()
        [count] = [line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")]
        return int(count)

    async def are(number: int) -> bool:
        return await asyncio.to_thread(watches) == number

    async with connect(lone_etcd.endpoints, namespace=namespace) as store:
        observing = [asyncio.create_task(who_leads(store)) for _ in range(3)]
        await until_true(lambda: are(3))
        observing[0].cancel()
        await until_true(lambda: are(2))
        ran, candidate = Ran(), store.candidate(ELECTION, id="a", config=QUICK)
        async with standing(ran, candidate):
            assert {(await task).id for task in observing[1:]} == {"a"}
            await until_true(lambda: are(1))  # that of the candidate
        await until_true(lambda: are(0))


async def test_an_observer_that_begins_after_a_compaction_sees_the_leader(
    single_etcd: EtcdCluster, namespace: str
) -> None:
    """TestElectionObserveCompacted: the history in which the leader was elected is gone; what follows is told, too."""
    async with (
        connect(single_etcd.endpoints, namespace=namespace) as store,
        connect(single_etcd.endpoints, namespace=namespace) as other,
    ):
        ran, (a, b) = Ran(), (store.candidate(ELECTION, id=name, config=QUICK) for name in "ab")
        async with standing(ran, a):
            await leads(ran, a)
            put = await store.client.put(store.keyspace.root + b"unrelated", b"1")
            await store.client.compact(put.header.revision)
            assert (await who_leads(other)).token == leading(a).token
            async with aclosing(other.candidate(ELECTION, id="observer").observe()) as events, standing(ran, b):
                assert (await anext(events)).leader == await who_leads(other)
                a.leave()
                await leads(ran, b)
                told = [await anext(events)]
                while told[-1].leader is None:
                    told.append(await anext(events))
                assert told[-1].leader
                assert told[-1].leader.token == leading(b).token
        ran.check()


# --- sessions: they end, and are never taken up again ------------------------------------------------------------


async def revoked(leader: Candidate, task: asyncio.Task[Loss | None], store: Store) -> set[LossReason]:
    """Another client ends the leader's lease; returns which losses that may be."""
    await store.client.lease_revoke(lease(leader))
    loss = await task
    assert loss is not None
    return {LossReason.KEY_DELETED, LossReason.EXPIRED}


async def cancelled(leader: Candidate, task: asyncio.Task[Loss | None], store: Store) -> set[LossReason]:
    """The program ends the leader's call."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return {LossReason.CLOSED}


@pytest.mark.parametrize("end", [revoked, cancelled])
async def test_the_next_one_leads_when_the_leaders_session_ends(
    stores: list[Store],
    end: Callable[[Candidate, asyncio.Task[Loss | None], Store], Awaitable[set[LossReason]]],
) -> None:
    """TestElectionFailover, TestSessionCtx: the work is cancelled, and a third client sees the next leader."""
    ran = Ran()
    first, second = one_each(*stores[:2])
    leading_first = asyncio.create_task(first.lead(ran.work, once=True))
    await leads(ran, first)
    assert (await who_leads(stores[2])).id == "a"
    async with standing(ran, second):
        reasons = await asyncio.wait_for(end(first, leading_first, stores[2]), 20)
        assert await leads(ran, second) is second
        assert (await who_leads(stores[2])).token == leading(second).token
        assert first.loss is not None
        assert first.loss.reason in reasons
        assert first.state == Following()
        assert ran.spans[0].ended_s is not None
    assert ran.ids == ["a", "b"]
    ran.check_tokens()


async def test_campaigning_again_is_a_lease_and_a_key_of_its_own(store: Store) -> None:
    """TestElectionSessionRecampaign, TestSessionOptions, ResignAllowsNewCampaign: not so with ours, on purpose.

    With etcd's client, a second campaign on the same session takes over the key of the first. But a Campaign with a
    lease that has been used can win without a key, and of two candidates with one lease both would lead. So the second
    one waits behind the first, a candidate that stands already is refused, and one that stands again has a new lease.
    """
    ran, (a, b) = Ran(), (store.candidate(ELECTION, id=name, config=QUICK) for name in "ab")
    async with standing(ran, a, b):
        await leads(ran, a, b)
        held = leading(a)
        assert lease(b) != held.lease
        with pytest.raises(ElectionError, match="already stands"):
            await a.lead(ran.work)
        assert leading(a).token == held.token
        assert (await store.client.list(store.keyspace.campaign(ELECTION))).count == 2
        a.hand_over()
        assert await leads(ran, a, b) is b
        await queued_anew(a, held.token.revision)
        assert lease(a) not in (held.lease, lease(b))
        assert token(a) > token(b)
    assert ran.ids[:2] == ["a", "b"]
    ran.check()


async def test_a_leader_that_is_back_at_once_waits_behind_those_who_wait(store: Store) -> None:
    """TestElectionOnSessionRestart: with etcd's client, a process that is restarted goes on with its old lease.

    Ours does not: it cannot know whether the work of the process before it has ended, so that term has to end first.
    It ends with its lease, and meanwhile two keys of one name are in the queue.
    """
    ran = Ran()
    waiter, back = (store.candidate(ELECTION, id=name, config=STEADY) for name in ("waiter", "process"))
    async with process_that_leads(store, STEADY) as (process, old_token), standing(ran, waiter):
        killed_at_s = process.signal(signal.SIGKILL)
        assert await process.end() == -signal.SIGKILL
        async with standing(ran, back):
            assert old_token < token(waiter) < token(back)
            assert await leads(ran, waiter, back) is waiter
            assert ran.spans[0].began_s > killed_at_s + STEADY.ttl_s / 2
            waiter.leave()
            assert await leads(ran, back) is back
    assert ran.ids == ["waiter", "process"]
    ran.check()


async def test_nobody_can_go_on_with_anothers_term(stores: list[Store]) -> None:
    """TestResumeElection, ProclaimRejectsResignedLeader, ProclaimRejectsMismatchedLeader: ours has no resuming.

    With etcd's client, whoever knows the key and the revision of a leader may act as it: that is two processes with one
    token. Nothing of ours takes up a term; who uses etcd's own calls to end it is noticed by the leader, which stands
    again with a new key. For a term that is over, etcd refuses them.
    """
    ran, strangers = Ran(), stores[2].client
    a, b = one_each(*stores[:2])
    async with standing(ran, a, b):
        await leads(ran, a)
        held = key_of(stores[0], a)
        wrong = el.LeaderKey(name=held.name, key=held.key, rev=held.rev + 1, lease=held.lease)
        with pytest.raises(EtcdError, match="not leader"):
            await strangers.proclaim(wrong, b"somebody else")
        assert leading(a).token.revision == held.rev

        await strangers.resign(held)
        assert await leads(ran, b) is b
        await queued_anew(a, held.rev)
        assert a.loss is not None
        assert a.loss.reason is LossReason.KEY_DELETED
        assert lease(a) != held.lease
        with pytest.raises(EtcdError, match="not leader"):
            await strangers.proclaim(held, b"somebody else")
        assert (await who_leads(stores[2])).token == leading(b).token
    ran.check_tokens()


async def test_a_stranger_that_proclaims_in_the_leaders_place_does_not_take_its_term(stores: list[Store]) -> None:
    """TestResumeElection: the key is still the leader's, and so is the token; only what readers see is the stranger's.

    The leader leads on, can write, and hands over as before.
    """
    ran = Ran()
    a, b = one_each(*stores[:2])
    async with stores[2].view() as view, standing(ran, a, b):
        await leads(ran, a)
        term = ran.spans[0].term
        await stores[2].client.proclaim(key_of(stores[0], a), b"somebody else")
        proclaimed_s = CLOCK.now_s()
        seen = await who_leads(stores[2])
        assert (seen.id, seen.token, seen.proven) == ("somebody else", term.token, False)
        assert (await view.check_token(ELECTION, term.token)).value.current
        # Its watch has shown it to the leader by then, which has renewed its lease since.
        await until(lambda: leading(a).deadline_s > proclaimed_s + QUICK.ttl_s - QUICK.margin_s + 0.5)
        assert leading(a).token == term.token
        assert (
            await fenced_put(stores[0].client, term, stores[0].keyspace.root + b"resource", b"1") > seen.token.revision
        )
        a.hand_over("b")
        assert await leads(ran, a, b) is b
        assert (await who_leads(stores[2])).id == "b"
    ran.check()


@pytest.mark.parametrize("ttl_s", [3, 90])
async def test_the_lease_has_the_ttl_that_was_asked_for(store: Store, ttl_s: int) -> None:
    """TestSessionTTLOptions: and not the 60 s that etcd gives to those who do not say; it is kept alive."""
    ran, candidate = Ran(), store.candidate(ELECTION, id="a", config=CandidateConfig(ttl_s=ttl_s))
    async with standing(ran, candidate):
        await leads(ran, candidate)
        answer = await store.client.lease_time_to_live(lease(candidate), keys=True)
        assert answer.grantedTTL == ttl_s
        assert ttl_s / 2 <= answer.TTL <= ttl_s
        assert list(answer.keys) == [ran.spans[0].term.key]


# --- names --------------------------------------------------------------------------------------------------------


async def test_keys_that_begin_like_the_elections_own_do_not_hold_it_up(store: Store) -> None:
    """TestElectionOnPrefixOfExistingKey: neither the leader of an election with a longer name, nor any other key."""
    name = store.keyspace.campaign_name(ELECTION)
    for key in (name, name + b"a", name + b".", name + b"-2/1f"):
        await store.client.put(key, b"somebody else")
    ran, candidate = Ran(), store.candidate(ELECTION, id="a", config=QUICK)
    async with store.view() as view, standing(ran, candidate):
        await leads(ran, candidate, timeout_s=5)
        await until_true(lambda: leads_as_seen(view, ELECTION, "a"))
        assert await leads_as_seen(view, f"{ELECTION}-2", "somebody else")
        assert [each.name for each in (await view.elections()).value] == [ELECTION, f"{ELECTION}-2"]


async def leads_as_seen(view: View, election: str, id: str) -> bool:
    leader = (await view.leader(election)).value
    return leader is not None and leader.id == id


# --- etcd that does not answer -----------------------------------------------------------------------------------


async def test_a_release_that_fails_is_made_up_for_by_the_end_of_the_lease(
    lone_etcd: EtcdCluster, namespace: str
) -> None:
    """TestElectionResignCanRetryAfterError: with etcd's client, the key stays until somebody resigns again.

    Ours needs nobody for that: the release goes on for the time of a call, however often it is cancelled, and nothing
    renews the lease any more. Afterwards the candidate may stand again.
    """
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(connect(lone_etcd.endpoints, namespace=namespace)) for _ in range(2)]
        ran, (a, b), [member] = Ran(), one_each(*stores), lone_etcd.members
        first = asyncio.create_task(a.lead(ran.work))
        await leads(ran, a)
        await stack.enter_async_context(standing(ran, b))
        member.pause()
        while not first.done():
            first.cancel()
            await asyncio.wait({first}, timeout=0.05)
        assert first.cancelled()
        assert ran.spans[0].ended_s is not None
        assert a.state == Following()
        member.resume()
        async with standing(ran, a):
            await leads(ran, a, b)
            await until(lambda: min(token(a), token(b)) > ran.spans[0].term.token.revision)
    ran.check()


async def test_waiting_for_an_etcd_that_hangs_can_be_bounded(lone_etcd: EtcdCluster, namespace: str) -> None:
    """TestNewSessionLeaseGrantTimeout: by the caller, long before the call itself gives up; later it works."""
    [member] = lone_etcd.members
    async with connect(lone_etcd.endpoints, namespace=namespace) as store:
        ran, [candidate] = Ran(), one_each(store)
        member.pause()
        for _ in range(3):
            began_s = CLOCK.now_s()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await candidate.lead(ran.work)
            assert CLOCK.now_s() - began_s < store.config.call_timeout_s / 2
            assert candidate.state == Following()
        assert ran.spans == []
        member.resume()
        async with standing(ran, candidate):
            await leads(ran, candidate)
        assert len(ran.spans) == 1
