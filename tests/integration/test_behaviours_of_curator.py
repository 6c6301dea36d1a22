"""What Apache Curator's tests of LeaderLatch and LeaderSelector check, checked of our blocking API.

The behaviours are those of `TestLeaderLatch`, `TestLeaderLatchCluster`, `TestLeaderLatchIsolatedZookeeper`,
`TestLeaderSelector`, `TestLeaderSelectorCluster`, `TestLeaderSelectorEdges` and `TestLeaderSelectorParticipants`. The
tests are written anew, and each names what it follows; where ours behaves differently on purpose, it says why.

A latch that has the leadership is a `with candidate.lead()` block, a selector's `takeLeadership` with `autoRequeue` is
the work of `candidate.run`, and without it that of `run(once=True)`; `reset` and `requeue` are standing again.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import election
from election import (
    CandidateConfig,
    ConfigError,
    ElectionError,
    EtcdUnavailable,
    Loss,
    LossReason,
    NotLeader,
    Token,
    blocking,
)
from election.dev.etcd import EtcdCluster, Member
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.leadership import Campaigning, Closed, Following, Leading, Leaving
from election.pb.etcd import rpc_pb2 as rpc
from election.reader import LeaderEventKind
from tests.integration.ran import CLOCK, ELECTION, QUICK, STEADY, Ran, leads
from tests.integration.ran import standing as standing_in_loop
from tests.integration.ran import until as until_in_loop
from tests.integration.rivals import use
from tests.integration.test_blocking import until

pytestmark = pytest.mark.etcd

Work = Callable[[blocking.Term], None]
# Who has resigned is back in the queue soon.
PROMPT = CandidateConfig(ttl_s=3, retry_s=0.05, retry_max_s=1.0)


# --- what ran, and who stands ------------------------------------------------------------------------------------


@dataclass
class History:
    """What the work in one election has noted, in order: all threads append to one list."""

    notes: list[tuple[str, blocking.Term]] = field(default_factory=list)

    def work(self, term: blocking.Term) -> None:
        """Lasts as long as the term."""
        with self.noted(term):
            term.wait_lost()

    @contextmanager
    def noted(self, term: blocking.Term) -> Iterator[None]:
        self.notes.append(("leads", term))
        try:
            yield
        finally:
            self.notes.append(("ended", term))

    @property
    def terms(self) -> list[blocking.Term]:
        return [term for note, term in self.notes if note == "leads"]

    @property
    def ids(self) -> list[str]:
        return [term.id for term in self.terms]

    def check(self) -> None:
        """Each term has ended before the next one began, and tokens strictly grow."""
        self.check_tokens()
        for (first, term), (second, same) in zip(self.notes[::2], self.notes[1::2], strict=True):
            assert (first, second, same) == ("leads", "ended", term)

    def check_tokens(self) -> None:
        """All that holds when a leader is robbed whom the next one has not seen alive before."""
        tokens = [term.token for term in self.terms]
        assert tokens == sorted(set(tokens))


def stands(candidate: blocking.Candidate) -> bool:
    """Whether its key is in the queue, as far as it knows."""
    state = candidate.state
    return isinstance(state, Leading) or (isinstance(state, Campaigning) and state.created > 0)


@contextmanager
def thread_of(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs something beside the test; it has ended after the block."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def running(work: Work, *candidates: blocking.Candidate) -> Iterator[None]:
    """Runs the work of candidates, each in a thread, in the order in which they queue; all have ended at the end."""
    with ExitStack() as stack:
        for candidate in candidates:
            stack.enter_context(thread_of(partial(candidate.run, work)))
            until(partial(stands, candidate))
        yield


@contextmanager
def standing(history: History, *candidates: blocking.Candidate) -> Iterator[None]:
    """Lets candidates stand, in this order; all leave at the end."""
    with ExitStack() as stack:
        try:
            stack.enter_context(running(history.work, *candidates))
            yield
        finally:
            for candidate in candidates:
                candidate.leave()
    assert all(candidate.state == Closed() for candidate in candidates)


def leads_in(history: History, *candidates: blocking.Candidate) -> blocking.Candidate:
    """The one of them that leads, when exactly one does and its work has begun."""

    def leaders() -> list[blocking.Candidate]:
        return [candidate for candidate in candidates if candidate.is_leader]

    until(lambda: [each.id for each in leaders()] == [term.id for term in history.terms[-1:] if term.is_leader] != [])
    [leader] = leaders()
    return leader


def leave(candidate: blocking.Candidate) -> None:
    """Lets a candidate leave: the call returns at once, and the candidate hears of it soon."""
    candidate.leave()
    until(lambda: not candidate.is_leader)


@pytest.fixture
def rng() -> random.Random:
    """Says its seed; ELECTION_TEST_SEED gives the same again, if not the same order of threads."""
    seed = int(os.environ.get("ELECTION_TEST_SEED") or random.SystemRandom().getrandbits(32))
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


@pytest.fixture
def store(etcd_cluster: EtcdCluster, namespace: str) -> Iterator[blocking.Store]:
    with blocking.connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    """One member for one test, which may kill or pause it."""
    cluster = asyncio.run(EtcdCluster.start(data_dir=tmp_path, members=1))
    try:
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def etcd_store(etcd: EtcdCluster, namespace: str) -> Iterator[blocking.Store]:
    with blocking.connect(etcd.endpoints, namespace=namespace) as made:
        yield made


def make(store: blocking.Store, number: int, config: CandidateConfig = QUICK) -> list[blocking.Candidate]:
    return [store.candidate(ELECTION, id=f"c{index}", config=config) for index in range(number)]


def start(*clusters: EtcdCluster) -> None:
    """Starts the members that do not run, and waits until all serve."""

    async def begin() -> None:
        for cluster in clusters:
            for member in cluster.members:
                await member.start()
            await cluster.wait_healthy()

    asyncio.run(begin())


def pause(member: Member) -> None:
    """Returns when all threads of the member stand still, which on a busy machine may be a while after the signal."""
    member.pause()
    assert member.pid is not None
    os.waitid(os.P_PID, member.pid, os.WSTOPPED | os.WNOWAIT)


def keys(store: blocking.Store) -> list[bytes]:
    """The keys of the queue."""

    async def ask() -> list[bytes]:
        async with EtcdClient(store.config) as client:
            return [kv.key for kv in (await client.list(store.keyspace.campaign(ELECTION))).kvs]

    return asyncio.run(ask())


def leases(store: blocking.Store) -> set[int]:
    async def ask() -> set[int]:
        async with EtcdClient(store.config) as client:
            return {lease.ID for lease in (await client.leases()).leases}

    return asyncio.run(ask())


def put(store: blocking.Store, key: bytes) -> None:
    """Makes a key, as a stranger might."""

    async def ask() -> None:
        async with EtcdClient(store.config) as client:
            await client.put(key, b"somebody else")

    asyncio.run(ask())


def delete(store: blocking.Store, *deleted: bytes) -> None:
    """Deletes keys in one transaction, as a stranger might."""

    async def ask() -> None:
        async with EtcdClient(store.config) as client:
            await client.txn([], [txn.delete(key) for key in deleted])

    asyncio.run(ask())


def revoke(store: blocking.Store, *candidates: blocking.Candidate) -> None:
    """Ends the leases of candidates, as if they had expired."""
    held = [state.lease for state in (each.state for each in candidates) if isinstance(state, Campaigning | Leading)]
    assert len(held) == len(candidates)

    async def ask() -> None:
        async with EtcdClient(store.config) as client:
            for lease in held:
                await client.lease_revoke(lease)

    asyncio.run(ask())


# --- taking turns ------------------------------------------------------------------------------------------------


def test_ten_threads_lead_one_at_a_time_and_all_get_their_turns(store: blocking.Store, rng: random.Random) -> None:
    """LeaderLatch testWaiting, testBasicAlt: three turns each, whoever comes first."""
    history = History()
    pauses_s = {candidate: [rng.uniform(0, 0.01) for _ in range(3)] for candidate in make(store, 10)}

    def turns(candidate: blocking.Candidate) -> None:
        for pause_s in pauses_s[candidate]:
            with candidate.lead(timeout_s=60) as term, history.noted(term):
                assert [each for each in pauses_s if each.is_leader] == [candidate]
                assert term.wait_lost(pause_s) is None

    with ExitStack() as stack:
        for candidate in pauses_s:
            stack.enter_context(thread_of(partial(turns, candidate)))
    assert sorted(history.ids) == sorted(3 * [candidate.id for candidate in pauses_s])
    history.check()
    assert keys(store) == []


def test_the_leadership_goes_round_while_nobody_is_asked_to_stand_again(store: blocking.Store) -> None:
    """LeaderSelector testRotatingLeadership, testAutoRequeue, LeaderLatch testCallbackSanity: in the same order.

    Each is told of each of its terms once, and of the end of each once, before the next one begins.
    """
    history, candidates = History(), make(store, 5, PROMPT)

    def turn(term: blocking.Term) -> None:
        [own] = [candidate for candidate in candidates if candidate.id == term.id]
        with history.noted(term):
            until(lambda: all(stands(each) or each.state == Closed() for each in candidates))
            if history.ids.count(own.id) == 3:
                own.leave()

    with running(turn, *candidates):
        pass  # they leave by themselves
    assert history.ids == 3 * [candidate.id for candidate in candidates]
    assert [candidate.state for candidate in candidates] == 5 * [Closed()]
    assert [term.loss.reason for term in history.terms if term.loss] == 15 * [LossReason.RESIGNED]
    history.check()


def test_who_leaves_the_line_changes_nothing_for_those_before_it(store: blocking.Store) -> None:
    """LeaderLatch testCorrectWatching, testBasic, LeaderSelector testClosing: those behind it move up, in order.

    Leaving twice is leaving.
    """
    history, candidates = History(), make(store, 6)
    with standing(history, *candidates):
        first = leads_in(history, *candidates)
        held = history.terms[0].token
        gone = candidates.pop(2)
        for _ in range(2):
            gone.leave()
        until(lambda: gone.state == Closed() and len(keys(store)) == 5)
        assert gone.loss is None
        assert first.is_leader
        assert history.terms[-1].token == held
        for expected in candidates:
            assert leads_in(history, *candidates) is expected
            for _ in range(2):
                leave(expected)
        until(lambda: keys(store) == [])
    assert history.ids == ["c0", "c1", "c3", "c4", "c5"]
    history.check()


# --- interrupting, failing, leaving ------------------------------------------------------------------------------


def test_who_leads_is_told_that_it_leaves_and_who_waits_has_nothing_to_be_told(store: blocking.Store) -> None:
    """LeaderLatch testCallbackNotifyLeader, testCallbackDontNotify: told once, and what is closed stays closed."""
    told: list[Loss | None] = []
    leader, waiter = make(store, 2)

    def work(term: blocking.Term) -> None:
        told.append(term.wait_lost(20))
        told.append(term.wait_lost(20))

    def returned(candidate: blocking.Candidate) -> None:
        told.append(candidate.run(work))

    with ExitStack() as stack:
        for candidate in (leader, waiter):
            stack.enter_context(thread_of(partial(returned, candidate)))
            until(partial(stands, candidate))
        until(lambda: leader.is_leader)
        waiter.leave()
        until(lambda: told == [None])  # what its run returned
        leader.leave()
    assert waiter.loss is None
    assert leader.loss is not None
    assert leader.loss.reason is LossReason.RESIGNED
    assert told == [None, leader.loss, leader.loss, leader.loss]
    for closed in (leader, waiter):
        with pytest.raises(NotLeader, match="before it led"), closed.lead():
            pass
    assert keys(store) == []


async def test_work_that_is_interrupted_is_followed_by_another_term(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """LeaderSelector testInterruption, testInterruptLeadership, testInterruptLeadershipWithRequeue.

    Threads of ours cannot be interrupted, so this is the other API: whoever cancels the work itself ends one term.
    With `once` that was all, and without it the candidate stands again.
    """
    works: list[asyncio.Task[Any]] = []
    tokens: list[Token] = []

    async def work(term: election.Term) -> None:
        task = asyncio.current_task()
        assert task is not None
        works.append(task)
        tokens.append(term.token)
        await asyncio.Event().wait()

    async with election.connect(etcd_cluster.endpoints, namespace=namespace) as connected:
        candidate = connected.candidate(ELECTION, config=PROMPT)
        standing = asyncio.create_task(candidate.lead(work))
        for number in (1, 2, 3):
            await until_in_loop(lambda number=number: len(works) == number)  # type: ignore[misc]
            works[-1].cancel()
        await until_in_loop(lambda: len(works) == 4)
        assert candidate.loss is not None
        assert candidate.loss.reason is LossReason.RESIGNED
        assert tokens == sorted(set(tokens))
        candidate.leave()
        await standing

        once = asyncio.create_task(connected.candidate(ELECTION, config=PROMPT).lead(work, once=True))
        await until_in_loop(lambda: len(works) == 5)
        works[-1].cancel()
        loss = await asyncio.wait_for(once, 20)
        assert loss is not None
        assert (loss.reason, loss.token) == (LossReason.RESIGNED, tokens[-1])
        assert (await connected.client.list(connected.keyspace.campaigns)).count == 0


def test_a_thread_that_leads_alone_cannot_be_made_to_hand_over(store: blocking.Store) -> None:
    """LeaderSelector testInterruptLeadership: what comes closest to an interruption is refused, and the term goes on.

    With somebody who waits it is a request that the work has to notice.
    """
    history, (leader, waiter) = History(), make(store, 2)
    with standing(history, leader):
        leads_in(history, leader)
        held = history.terms[0]
        with pytest.raises(ElectionError, match="does not wait"):
            leader.hand_over()
        held.check()
        with standing(history, waiter):
            until(lambda: handed_over(held))
            assert leads_in(history, leader, waiter) is waiter
            until(lambda: stands(leader))
    assert history.ids[:2] == ["c0", "c1"]
    history.check()


def handed_over(term: blocking.Term) -> bool:
    """Whether the leader knows already that somebody waits, and was told to give way."""
    try:
        term.hand_over()
    except NotLeader:
        raise
    except ElectionError:
        return False
    return True


def test_an_error_in_the_work_passes_the_leadership_on(store: blocking.Store) -> None:
    """LeaderSelector, an error in takeLeadership: the next one leads, and who failed queues anew or is told."""
    history, (failing, raising, steady) = History(), make(store, 3, PROMPT)
    boom = ValueError("boom")
    go = threading.Event()

    def fail(term: blocking.Term) -> None:
        with history.noted(term):
            assert go.wait(20)
            raise boom

    def raised() -> None:
        with pytest.raises(ValueError, match="boom"):
            raising.run(fail, reraise=True)

    with ExitStack() as stack:
        stack.callback(failing.leave)
        for candidate, run in ((failing, lambda: failing.run(fail)), (raising, raised)):
            stack.enter_context(thread_of(run))
            until(partial(stands, candidate))
        with standing(history, steady):
            go.set()
            assert leads_in(history, steady) is steady
            until(lambda: stands(failing))
            assert raising.state == Following()
            assert len(keys(store)) == 2
            for candidate in (failing, raising):
                assert candidate.loss is not None
                assert (candidate.loss.reason, candidate.loss.error) == (LossReason.WORK_FAILED, boom)
            failing.leave()
    assert history.ids == ["c0", "c1", "c2"]
    history.check()


def test_leaving_before_or_right_after_winning_leaves_nothing_behind(store: blocking.Store, rng: random.Random) -> None:
    """LeaderLatch testCreateDeleteRace, testResetRace: neither a key nor, once it has ended, a lease; nor two keys."""
    before = leases(store)
    [candidate] = make(store, 1, PROMPT)
    for _ in range(25):
        try:
            with candidate.lead(timeout_s=rng.uniform(0, 0.06)):
                assert len(keys(store)) == 1
        except TimeoutError:
            assert candidate.state == Following()
    assert keys(store) == []
    until(lambda: leases(store) <= before)  # that of a grant whose answer nobody waited for ends by itself
    with candidate.lead(timeout_s=20):
        with pytest.raises(ElectionError, match="already stands"):
            candidate.run(lambda term: None)
        assert len(keys(store)) == 1


def test_who_arrives_while_the_leader_leaves_is_not_left_waiting(store: blocking.Store, rng: random.Random) -> None:
    """LeaderLatch testLeadershipElectionWhenNodeDisappearsAfterChildrenAreRetrieved, at moments drawn by lot.

    Nobody waits for the end of a lease, which is as long as the test's patience.
    """
    for _ in range(10):
        history, (leader, first, second) = History(), make(store, 3, CandidateConfig(ttl_s=30))
        with standing(history, leader):
            leads_in(history, leader)
            with ExitStack() as stack:
                for candidate in (first, second):
                    stack.enter_context(thread_of(partial(candidate.run, history.work)))
                    stack.callback(candidate.leave)
                history.terms[0].wait_lost(rng.uniform(0, 0.06))
                leave(leader)
                heir = leads_in(history, leader, first, second)
                assert heir is not leader
                leave(heir)
                [last] = {first, second} - {heir}
                assert leads_in(history, leader, first, second) is last
        assert set(history.ids) == {"c0", "c1", "c2"}
        history.check()


# --- keys and sessions that end ----------------------------------------------------------------------------------


def test_a_waiter_whose_key_goes_together_with_the_leaders_has_one_key(store: blocking.Store) -> None:
    """LeaderLatch testWatchedNodeDeletedOnReconnect: it queues anew and leads, by one key."""
    history, (leader, waiter) = History(), make(store, 2)
    with standing(history, leader, waiter):
        leads_in(history, leader)
        [_, key] = keys(store)
        with thread_of(lambda: delete(store, key)):
            leave(leader)
        assert leads_in(history, leader, waiter) is waiter
        until(lambda: len(keys(store)) == 1)
    assert set(history.ids) == {"c0", "c1"}
    history.check_tokens()


def test_of_five_whose_keys_are_deleted_at_once_one_leads(store: blocking.Store) -> None:
    """LeaderLatch testCheckLeaderShipTiming: again and again; all have queued anew, with one key each."""
    history, candidates = History(), make(store, 5, PROMPT)
    with standing(history, *candidates):
        for _ in range(3):
            held = leads_in(history, *candidates), history.terms[-1]
            before = keys(store)
            delete(store, *before)
            loss = held[1].wait_lost(20)
            assert loss is not None
            assert loss.reason is LossReason.KEY_DELETED
            until(lambda: len(keys(store)) == 5)
            assert set(keys(store)).isdisjoint(before)
            until(lambda: all(map(stands, candidates)))
            leads_in(history, *candidates)
            assert history.terms[-1].token > held[1].token
    history.check_tokens()


def test_after_all_sessions_have_expired_one_leads_and_the_other_follows_it(store: blocking.Store) -> None:
    """LeaderSelector testKillSessionThenCloseShouldElectNewLeader: the work is told, and both have queued anew."""
    history, candidates = History(), make(store, 2, PROMPT)
    with standing(history, *candidates):
        leads_in(history, *candidates)
        [term] = history.terms
        revoke(store, *candidates)
        assert term.wait_lost(20) is not None
        leader = leads_in(history, *candidates)
        assert history.terms[-1].token > term.token
        until(lambda: all(map(stands, candidates)))
        leave(leader)
        [other] = set(candidates) - {leader}
        assert leads_in(history, *candidates) is other
    history.check_tokens()


# --- etcd that is away -------------------------------------------------------------------------------------------


def test_a_short_outage_costs_nothing_and_a_long_one_costs_the_term(
    etcd: EtcdCluster, etcd_store: blocking.Store
) -> None:
    """LeaderLatch testSessionErrorPolicy, testErrorPolicies, LeaderSelector testErrorPolicies, testServerDying.

    Curator has two policies: to stop at the first sign of trouble, or when the session is lost. Ours is in between:
    a leader stops at its deadline, which is before the session can be lost, and until then an outage is none.
    """
    [member], history = etcd.members, History()
    [candidate] = make(etcd_store, 1, STEADY)
    fresh_s = STEADY.ttl_s - STEADY.margin_s - 2 * STEADY.renew_interval_s
    with standing(history, candidate):
        leads_in(history, candidate)
        [term] = history.terms
        member.pause()
        until(lambda: term.remaining_s() < fresh_s)
        member.resume()
        until(lambda: term.remaining_s() > fresh_s)
        assert term.loss is None

        member.pause()
        loss = term.wait_lost(20)
        assert loss is not None
        assert loss.reason is LossReason.EXPIRED
        assert not candidate.is_leader
        with pytest.raises(NotLeader, match="expired"):
            term.check()
        member.resume()
        until(lambda: len(history.terms) == 2)
        leads_in(history, candidate)
    history.check()


def test_ten_have_no_leader_while_there_is_no_etcd(etcd: EtcdCluster, etcd_store: blocking.Store) -> None:
    """LeaderLatch testLostConnection, LeaderSelector testKillServerThenCloseShouldElectNewLeader: one when it is back.

    TestLeaderSelectorCluster testLostRestart: all queue anew, and when that one leaves, another leads.
    """
    [member], history, candidates = etcd.members, History(), make(etcd_store, 10)
    with standing(history, *candidates):
        leads_in(history, *candidates)
        [term] = history.terms
        member.kill()
        loss = term.wait_lost(20)
        assert loss is not None
        assert loss.reason is LossReason.EXPIRED
        until(lambda: not any(isinstance(candidate.state, Leading | Campaigning) for candidate in candidates))
        assert not any(candidate.is_leader for candidate in candidates)
        start(etcd)
        leader = leads_in(history, *candidates)
        until(lambda: all(map(stands, candidates)) and len(keys(etcd_store)) == 10)
        assert [candidate for candidate in candidates if candidate.is_leader] == [leader]
        leave(leader)
        assert leads_in(history, *candidates) is not leader
    history.check()


def test_leaders_of_five_elections_come_back_after_every_outage(etcd: EtcdCluster, etcd_store: blocking.Store) -> None:
    """LeaderLatch testWithCircuitBreaker: on one connection; each is told of its loss and of its next term, once."""
    [member] = etcd.members
    histories = {etcd_store.candidate(f"e{number}", id=f"c{number}", config=QUICK): History() for number in range(5)}
    with ExitStack() as stack:
        for candidate, history in histories.items():
            stack.enter_context(standing(history, candidate))
        for outages in range(3):
            for candidate, history in histories.items():
                leads_in(history, candidate)
                assert len(history.terms) == outages + 1
            if outages < 2:
                member.kill()
                until(lambda: not any(term.is_leader for history in histories.values() for term in history.terms))
                start(etcd)
    for history in histories.values():
        history.check()
        assert [term.loss.reason for term in history.terms if term.loss] == [
            LossReason.EXPIRED,
            LossReason.EXPIRED,
            LossReason.RESIGNED,
        ]


def test_an_etcd_that_comes_late(etcd: EtcdCluster, etcd_store: blocking.Store) -> None:
    """LeaderLatch testNoServerAtStart, testProperCloseWithoutConnectionEstablished.

    Who does not want to wait for it can go at once; who tries again is elected, once. That there is no etcd is an
    error at first, and not waited out as by Curator: it may be a wrong address.
    """
    [member], history, (candidate,) = etcd.members, History(), make(etcd_store, 1)
    member.kill()
    began_s = CLOCK.now_s()
    with pytest.raises(TimeoutError), candidate.lead(timeout_s=0.2):
        pass
    assert CLOCK.now_s() - began_s < etcd_store.config.call_timeout_s / 2
    assert candidate.state == Following()

    def try_again() -> None:
        while candidate.state != Closed():
            try:
                candidate.run(history.work)
            except EtcdUnavailable:
                continue

    with thread_of(try_again):
        start(etcd)
        leads_in(history, candidate)
        candidate.leave()
    assert history.ids == ["c0"]


def test_leaving_while_etcd_is_away_leaves_no_key_when_it_is_back(
    etcd: EtcdCluster, etcd_store: blocking.Store
) -> None:
    """LeaderSelector testLeaderNodeDeleteOnInterrupt: the term is over at once, and the key as soon as etcd is back."""
    [member], history, (candidate, other) = etcd.members, History(), make(etcd_store, 2)
    with standing(history, candidate):
        leads_in(history, candidate)
        member.kill()
        candidate.leave()
        loss = history.terms[0].wait_lost(20)
        assert loss is not None
        assert loss.reason is LossReason.RESIGNED
        until(lambda: isinstance(candidate.state, Leaving | Closed))
        start(etcd)
    until(lambda: keys(etcd_store) == [])
    with other.lead(timeout_s=20) as term:
        assert term.token > history.terms[0].token


@pytest.mark.parametrize("waited", [False, True])
def test_who_has_won_and_cannot_prove_it_in_time_does_not_lead(
    etcd: EtcdCluster, etcd_store: blocking.Store, monkeypatch: pytest.MonkeyPatch, waited: bool
) -> None:
    """LeaderSelector testRaceAtStateChanged: etcd hangs between the win and the work, which is never begun.

    Whether it is etcd's answer that told of the win, or the watch, after the key before the own one was deleted.
    """
    [member], history, (candidate,) = etcd.members, History(), make(etcd_store, 1)
    original, first, won = EtcdClient.txn, threading.Event(), threading.Event()

    async def write(client: EtcdClient, compare: Sequence[rpc.Compare], *rest: Any, **named: Any) -> rpc.TxnResponse:
        if compare and not won.is_set():  # the proof
            await until_in_loop(first.is_set)
            pause(member)
            won.set()
        return await original(client, compare, *rest, **named)

    monkeypatch.setattr(EtcdClient, "txn", write)
    before = etcd_store.keyspace.candidate(ELECTION, 1)
    if waited:
        put(etcd_store, before)
    with thread_of(lambda: candidate.run(history.work)):
        if waited:
            until(lambda: stands(candidate))
            delete(etcd_store, before)
        first.set()
        assert won.wait(20)
        state = candidate.state
        assert isinstance(state, Campaigning)
        assert state.may_prove
        until(lambda: not isinstance(candidate.state, Campaigning))
        assert history.notes == []
        member.resume()
        leads_in(history, candidate)
        assert history.terms[0].token.revision > state.created
        candidate.leave()
    assert history.ids == ["c0"]


# --- clusters ----------------------------------------------------------------------------------------------------


def test_a_leader_whose_only_server_dies_is_followed_by_one_at_another(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """TestLeaderLatchCluster testInCluster, TestLeaderSelectorCluster testRestart: and all stand when it is back."""
    history, raft_leader = History(), asyncio.run(fresh_cluster.leader())
    hurt, *others = sorted(fresh_cluster.members, key=lambda member: member is raft_leader)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(blocking.connect(member.endpoint, namespace=namespace)) for member in (hurt, *others)
        ]
        candidates = [store.candidate(ELECTION, id=f"c{index}", config=QUICK) for index, store in enumerate(stores)]
        with standing(history, *candidates):
            first, *rest = candidates
            assert leads_in(history, *candidates) is first
            hurt.kill()
            loss = history.terms[0].wait_lost(20)
            assert loss is not None
            assert loss.reason is LossReason.EXPIRED
            assert leads_in(history, *candidates) in rest
            start(fresh_cluster)
            until(lambda: all(map(stands, candidates)) and len(keys(stores[1])) == 3)
            leads_in(history, *candidates)
    history.check()


def test_history_is_sound_when_etcds_leader_is_cut_off(fresh_cluster: EtcdCluster, namespace: str) -> None:
    """TestLeaderLatchIsolatedZookeeper: nobody is told that it leads before the one before was told that it does not.

    And what each says of itself is what it was told.
    """
    history = History()
    raft_leader = asyncio.run(fresh_cluster.leader())
    followers = [member for member in fresh_cluster.members if member is not raft_leader]
    with ExitStack() as stack:
        stores = [
            stack.enter_context(blocking.connect(member.endpoint, namespace=namespace))
            for member in (raft_leader, followers[0])
        ]
        candidates = [store.candidate(ELECTION, id=f"c{index}", config=QUICK) for index, store in enumerate(stores)]
        with standing(history, *candidates):
            leads_in(history, *candidates)
            for member in followers:
                member.pause()
            assert history.terms[0].wait_lost(20) is not None
            assert not any(candidate.is_leader for candidate in candidates)
            for member in followers:
                member.resume()
            until(lambda: len(history.terms) > 1)
            leader = leads_in(history, *candidates)
            assert [candidate.id for candidate in candidates if candidate.is_leader] == [leader.id]
    history.check()


async def test_a_connection_that_breaks_right_after_the_key_was_made_leaves_no_second_key(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """TestLeaderSelectorEdges flappingTest, createProtectedNodeInBackgroundTest: those that wait keep their places."""
    async with (
        election.connect(fresh_cluster.endpoints, namespace=namespace) as near,
        election.connect(fresh_cluster.endpoints, namespace=namespace) as far,
    ):
        ran, (first, second) = Ran(), fresh_cluster.members[:2]
        use(near.client, first)
        use(far.client, second)
        leader = far.candidate(ELECTION, id="leader", config=STEADY)
        waiters = [near.candidate(ELECTION, id=f"waiter-{number}", config=STEADY) for number in (1, 2)]
        async with standing_in_loop(ran, leader, *waiters):
            await leads(ran, leader)
            states = [waiter.state for waiter in waiters]
            assert all(isinstance(state, Campaigning) and state.created for state in states)
            first.kill()  # the Campaign calls of both are pending there
            await first.start()
            await fresh_cluster.wait_healthy()
            deadline_s = CLOCK.now_s() + STEADY.ttl_s - STEADY.margin_s
            await until_in_loop(lambda: all(_deadline_s(waiter) > deadline_s for waiter in waiters))
            queued = (await near.client.list(near.keyspace.campaign(ELECTION))).kvs
            assert [kv.lease for kv in queued] == [_lease(each) for each in (leader, *waiters)]
            leader.leave()
            for waiter, state in zip(waiters, states, strict=True):
                assert await leads(ran, leader, *waiters) is waiter
                assert isinstance(waiter.state, Leading)
                assert isinstance(state, Campaigning)
                assert waiter.state.token.revision == state.created
                waiter.leave()
        assert (await near.client.list(near.keyspace.campaigns)).count == 0
    ran.check()


def _deadline_s(candidate: election.Candidate) -> float:
    assert isinstance(candidate.state, Campaigning | Leading)
    return candidate.state.deadline_s


def _lease(candidate: election.Candidate) -> int:
    assert isinstance(candidate.state, Campaigning | Leading)
    return candidate.state.lease


# --- who is there ------------------------------------------------------------------------------------------------


async def test_all_see_the_same_ten_and_the_same_leader(etcd_cluster: EtcdCluster, namespace: str) -> None:
    """TestLeaderSelectorParticipants testId, testBasic: in the order in which they will lead."""
    ids = [f"c{number}" for number in range(10)]
    async with (
        election.connect(etcd_cluster.endpoints, namespace=namespace) as store,
        election.connect(etcd_cluster.endpoints, namespace=namespace) as other,
    ):
        ran, candidates = Ran(), [store.candidate(ELECTION, id=name, config=QUICK) for name in ids]
        async with standing_in_loop(ran, *candidates), store.view() as here, other.view() as there:
            leader = await leads(ran, *candidates)
            for view in (here, there):
                seen = (await view.candidates(ELECTION)).value
                assert [candidate.id for candidate in seen] == ids
                assert [candidate.id for candidate in seen if candidate.token] == ["c0"]
                told = (await view.leader(ELECTION)).value
                assert told is not None
                assert (told.id, told.token) == (leader.id, ran.spans[0].term.token)
            assert (await here.candidates(ELECTION)).value == (await there.candidates(ELECTION)).value


async def test_an_election_that_nobody_has_ever_stood_for_has_no_leader(
    etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """LeaderLatch testUncreatedPathGetLeader: asking is no error."""
    async with election.connect(etcd_cluster.endpoints, namespace=namespace) as store, store.view() as view:
        assert (await view.leader("never")).value is None
        assert (await view.candidates("never")).value == ()
        assert (await view.elections()).value == ()
        assert not (await view.check_token("never", Token(0, 1))).value.current
        async for event in view.watch_leader("never"):
            assert event.kind is LeaderEventKind.VACATED
            break


@pytest.mark.parametrize("name", ["", "/parent", "parent/child", "a b", "-a"])
def test_a_name_that_could_not_be_a_path_is_refused(store: blocking.Store, name: str) -> None:
    """LeaderLatch testRelativePath: before anything is sent."""
    with pytest.raises(ConfigError):
        store.candidate(name)
