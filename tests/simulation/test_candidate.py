"""The real candidate on the fake etcd, in virtual time: every safety rule, and what breaks it."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import pairwise
from typing import cast

import pytest
from google.protobuf.message import Message

from election.candidate import Candidate
from election.config import CandidateConfig
from election.errors import ElectionError, EtcdUnavailable, LossReason, NotLeader, RecordTooLarge
from election.etcd.methods import CAMPAIGN, Method, Req, Resp
from election.etcd.transport import Metadata
from election.leadership import Closed, Following, Leading
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc
from election.reader import LeaderEventKind
from election.records import CandidateRecord
from election.term import Loss, Term
from election.token import Token
from tests.fake.clock import virtual
from tests.fake.etcd import FakeEtcd
from tests.fake.transport import FakeTransport
from tests.simulation.world import ELECTION, KEYS, Node, World, hurt, leads, standing, world

SEEDS = range(200)
FAULTS = ("cut", "cut", "mend", "mend", "move", "stop", "pause", "resume", "resume", "resume", "compact")


@virtual
async def test_one_leads_and_the_next_in_line_follows_it() -> None:
    """The oldest key leads; when its holder leaves, the next one leads with a larger token."""
    here = world()
    async with standing(here, ["a", "b", "c"]) as nodes:
        for expected in nodes:
            assert await leads(*nodes) is expected
            assert sum(node.candidate.is_leader for node in nodes) == 1
            expected.candidate.leave()
            await asyncio.sleep(0.5)
    assert [span.id for span in here.spans] == ["a", "b", "c"]
    here.check_spans()


@virtual
async def test_the_token_is_the_create_revision_of_the_own_key() -> None:
    """As any other etcd client reads it; and the key has the candidate's lease."""
    here = world()
    async with standing(here, ["a"]) as [node]:
        await leads(node)
        state = node.candidate.state
        assert isinstance(state, Leading)
        found, _ = await node.client.get(KEYS.candidate(ELECTION, state.lease))
        assert found is not None
        assert (found.create_revision, found.lease) == (state.token.revision, state.lease)


@virtual
async def test_the_leader_stops_at_its_deadline_when_etcd_is_out_of_reach_and_before_the_next_one_begins() -> None:
    """The work has ended when the lease ends, which is a margin later."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
        await asyncio.sleep(10)
        a.transport.cut(0, 1, 2)
        await leads(b)
        a.transport.mend()
        here.check_spans()
        first, second = here.spans
        assert first.ended_s is not None
        assert second.began_s - first.ended_s >= 0.9  # the margin, less than etcd's own delay
    assert a.candidate.loss is not None
    assert (a.candidate.loss.token, a.candidate.loss.reason) == (first.token, LossReason.EXPIRED)


@virtual
async def test_an_outage_that_is_shorter_than_the_deadline_costs_nothing() -> None:
    """A transient error is retried until the deadline, and not sooner given up."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, _]:
        await leads(a)
        for _ in range(3):
            await asyncio.sleep(3)
            a.transport.cut(0, 1, 2)
            await asyncio.sleep(4.5)
            a.transport.mend()
        assert a.candidate.is_leader
    assert [span.id for span in here.spans[:1]] == ["a"]


@virtual
async def test_check_compares_the_clock_at_the_moment_of_the_call() -> None:
    """No timer and no task has run: the machine was suspended, and the first check after it raises."""
    here = world()
    checked = asyncio.Event()

    async def work(term: Term) -> None:
        assert term.is_leader
        assert term.remaining_s() > 8
        term.check()
        node.clock.skip(10)
        assert not node.candidate.is_leader
        assert term.remaining_s() == 0
        with pytest.raises(NotLeader, match="expired") as raised:
            term.check()
        assert raised.value.reason is LossReason.EXPIRED
        checked.set()

    async with here.node("a") as node:
        standing = asyncio.create_task(node.candidate.lead(work, once=True))
        await checked.wait()
        await standing


@virtual
async def test_the_deadline_counts_from_before_the_request_was_written() -> None:
    """However slow the answers are."""
    here = world()

    seen: set[float] = set()

    async def work(term: Term) -> None:
        for _ in range(200):
            await asyncio.sleep(0.05)
            state = node.candidate.state
            assert isinstance(state, Leading)
            ends_at_s = here.etcd.lessor.find(state.lease).expires_at_s
            assert state.deadline_s <= ends_at_s - 1.0 - 0.4 + 1e-6  # the margin, and the way of the request
            seen.add(state.deadline_s)

    async with here.node("a", latency_s=0.4) as node:
        await node.candidate.lead(work, once=True)
    assert len(seen) >= 3


class Recorded(FakeTransport):
    """Notes every call that was carried out."""

    def __init__(self, etcd: FakeEtcd, *, latency_s: float = 0.001) -> None:
        super().__init__(etcd, latency_s=latency_s)
        self.fake = etcd
        self.calls: list[tuple[str, Message]] = []

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        self.calls.append((method.path, request))
        return await super().unary(member, method, request, timeout_s=timeout_s, metadata=metadata)


class Lying(Recorded):
    """Its Campaign answers with success and has no key, as etcd's does when somebody has deleted it."""

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        if not isinstance(request, el.CampaignRequest):
            return await super().unary(member, method, request, timeout_s=timeout_s, metadata=metadata)
        header = self.fake.header(member)
        leader = el.LeaderKey(name=request.name, key=b"gone", rev=header.revision, lease=request.lease)
        return cast("Resp", el.CampaignResponse(header=header, leader=leader))


@virtual
async def test_nobody_leads_without_a_write_that_proves_it() -> None:
    """etcd's Campaign can answer with success for a key that is gone: the compare-and-set refuses."""
    here = world()
    async with here.node("a", transport=Lying(here.etcd)) as node:
        standing_a = asyncio.create_task(node.candidate.lead(here.work))
        await asyncio.sleep(30)
        assert here.spans == []
        node.candidate.leave()
        await standing_a


@virtual
async def test_a_proof_whose_answer_is_lost_is_seen_by_the_watch() -> None:
    """The work begins when the watch shows the proof, and does not wait for an answer that never comes."""
    here = world()

    async def lose(_: int, method: object, answer: object) -> None:
        if isinstance(answer, rpc.TxnResponse) and any(each.HasField("response_put") for each in answer.responses):
            await asyncio.sleep(60)

    async with here.node("a") as node:
        node.transport.after_call = lose
        standing = asyncio.create_task(node.candidate.lead(here.work))
        async with asyncio.timeout(1):
            while not here.spans:
                await asyncio.sleep(0.01)
        node.transport.after_call = None
        node.candidate.leave()
        await standing


@virtual
async def test_every_attempt_has_a_lease_of_its_own() -> None:
    """Also after a Campaign call that broke, whose key etcd may delete later."""
    here = world()
    transport = Recorded(here.etcd)
    async with here.node("a", transport=transport) as a:
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await asyncio.sleep(5)
        for _ in range(3):
            state = a.candidate.state
            if isinstance(state, Leading):
                await a.client.lease_revoke(state.lease)
            await asyncio.sleep(3)
        a.candidate.leave()
        await standing_a
    used = [request.lease for _, request in transport.calls if isinstance(request, el.CampaignRequest)]
    assert len(used) >= 3
    assert len(set(used)) == len(used)


@virtual
async def test_the_work_is_joined_before_the_key_is_released() -> None:
    """A successor waits for as long as the work takes to stop, within the lease."""
    here = world()
    stopped_at_s = 0.0

    async def slow_to_stop(term: Term) -> None:
        nonlocal stopped_at_s
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3)
            assert not term.is_leader
            stopped_at_s = asyncio.get_running_loop().time()

    async with here.node("a") as a, here.node("b") as b:
        standing_a = asyncio.create_task(a.candidate.lead(slow_to_stop))
        await leads(a)
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(1)
        a.candidate.leave()
        await leads(b)
        assert 0 < stopped_at_s <= here.spans[0].began_s
        b.candidate.leave()
        await asyncio.gather(standing_a, standing_b)


@virtual
async def test_work_that_does_not_stop_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Loudly, once, since another leader can start while it runs."""
    here = world()

    async def stubborn(term: Term) -> None:
        for _ in range(30):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue

    async with here.node("a") as a:
        standing_a = asyncio.create_task(a.candidate.lead(stubborn, once=True))
        await leads(a)
        a.transport.cut(0, 1, 2)
        await asyncio.sleep(20)
        [report] = [record for record in caplog.records if "has not stopped" in record.message]
        assert report.levelname == "CRITICAL"
        assert "test_work_that_does_not_stop_is_reported.<locals>.stubborn (" in report.message
        assert f"{__file__}:" in report.message
        a.transport.mend()
        loss = await standing_a
    assert loss is not None
    assert loss.reason is LossReason.EXPIRED


@virtual
async def test_work_that_does_not_stop_keeps_its_successor_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """However long, while etcd can be reached: the key is released only when the work has ended."""
    here = world()
    ends = asyncio.Event()

    async def stubborn(_: Term) -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    async with here.node("a") as a:
        standing_a = asyncio.create_task(a.candidate.lead(stubborn))
        await leads(a)
        async with standing(here, ["b"]) as [b]:
            await asyncio.sleep(10)
            a.candidate.leave()
            await asyncio.sleep(60)
            assert not b.candidate.is_leader
            [report] = [record.message for record in caplog.records if "has not stopped" in record.message]
            assert "its successor waits for it" in report
            ends.set()
            await standing_a
            await leads(b)


@virtual
async def test_a_leader_whose_key_is_deleted_stops_at_once_and_stands_again() -> None:
    """By anybody: an operator, a script, a mistake."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
        state = a.candidate.state
        assert isinstance(state, Leading)
        await b.client.delete(KEYS.candidate(ELECTION, state.lease))
        await asyncio.sleep(1)
        assert await leads(a, b) is b
        assert a.candidate.loss is not None
        assert a.candidate.loss.reason is LossReason.KEY_DELETED
        b.candidate.leave()
        await leads(a)
    here.check_spans()


@virtual
async def test_a_leader_whose_lease_is_revoked_stops_at_once() -> None:
    """The key goes with it, and the watch tells."""
    here = world()
    async with standing(here, ["a"]) as [a]:
        await leads(a)
        state = a.candidate.state
        assert isinstance(state, Leading)
        await a.client.lease_revoke(state.lease)
        await asyncio.sleep(0.1)
        assert not a.candidate.is_leader
        await leads(a)


@virtual
async def test_work_that_fails_ends_the_term_and_the_candidate_stands_again() -> None:
    """The error is kept."""
    here = world()
    terms: list[Token] = []

    async def failing(term: Term) -> None:
        terms.append(term.token)
        if len(terms) < 3:
            raise ValueError("no")
        node.candidate.leave()

    async with here.node("a") as node:
        loss = await node.candidate.lead(failing)
    assert len(terms) == 3
    assert terms == sorted(terms)
    assert isinstance(loss, Loss)


@virtual
async def test_once_returns_the_loss_of_the_first_term() -> None:
    """With its reason, its error, and the margin that was left."""
    here = world()

    async def failing(_: Term) -> None:
        raise ValueError("no")

    async with here.node("a") as node:
        loss = await node.candidate.lead(failing, once=True)
        assert loss is not None
        assert loss.reason is LossReason.WORK_FAILED
        assert isinstance(loss.error, ValueError)
        assert 8 < loss.margin_s < 9.1
        assert node.candidate.state == Following()


@virtual
async def test_the_loss_of_a_term_can_be_awaited() -> None:
    """By any number of tasks, at once when it is noticed, and long afterwards."""
    here = world()
    terms: list[Term] = []

    async def work(term: Term) -> None:
        terms.append(term)
        await here.work(term)

    async def noticed(term: Term) -> tuple[Loss, float]:
        return await term.lost, asyncio.get_running_loop().time()

    async with here.node("a") as a, here.node("b") as b:
        standing_a = asyncio.create_task(a.candidate.lead(work))
        await leads(a)
        [term] = terms
        assert term.loss is None
        waiting = [asyncio.create_task(noticed(term)) for _ in range(3)]
        given_up = asyncio.create_task(noticed(term))
        await asyncio.sleep(5)
        given_up.cancel()
        await asyncio.wait({given_up})
        state = a.candidate.state
        assert isinstance(state, Leading)
        left_s = state.deadline_s - a.clock.now_s()
        at, at_s = a.clock.wall(), asyncio.get_running_loop().time()
        await b.client.lease_revoke(state.lease)
        for loss, noticed_at_s in await asyncio.gather(*waiting):
            assert (loss.token, loss.reason, loss.error) == (term.token, LossReason.KEY_DELETED, None)
            assert 0 <= noticed_at_s - at_s < 0.1
            assert 0 <= (loss.noticed_at - at).total_seconds() < 0.1
            assert 0 <= left_s - loss.margin_s < 0.1
        await leads(a)
        assert terms[1].loss is None
        a.candidate.leave()
        await standing_a
        assert (await term.lost).reason is LossReason.KEY_DELETED
        assert (await terms[1].lost).reason is LossReason.RESIGNED
        assert a.candidate.loss == await terms[1].lost


@virtual
async def test_a_term_that_is_lost_before_its_work_begins_has_no_work() -> None:
    """Nobody is given a term of which nobody will ever say that it is lost."""
    here = world()
    terms: list[Term] = []

    async def work(term: Term) -> None:
        terms.append(term)

    async def leave_with_the_proof(_: int, __: object, answer: object) -> None:
        if isinstance(answer, rpc.WatchResponse) and any(event.kv.version > 1 for event in answer.events):
            await asyncio.sleep(0.2)  # the watch is the slower one
        if isinstance(answer, rpc.TxnResponse) and any(each.HasField("response_put") for each in answer.responses):
            asyncio.get_running_loop().call_soon(node.candidate.leave)  # before the next task has its turn

    async with here.node("a") as node:
        node.transport.after_call = leave_with_the_proof
        loss = await node.candidate.lead(work)
    assert loss is not None
    assert loss.reason is LossReason.RESIGNED
    assert terms == []


@virtual
async def test_work_that_raises_before_it_can_be_awaited_fails_as_any_other() -> None:
    """It need not be a coroutine function."""
    here = world()

    def failing(_: Term) -> asyncio.Future[None]:
        raise ValueError("no")

    async with here.node("a") as a:
        loss = await a.candidate.lead(failing, once=True)
        assert loss is not None
        assert (loss.reason, str(loss.error)) == (LossReason.WORK_FAILED, "no")
        with pytest.raises(ValueError, match="no"):
            await a.candidate.lead(failing, reraise=True)


@virtual
async def test_work_that_fails_again_and_again_is_begun_less_and_less_often() -> None:
    """Up to the longest pause; a term that ended otherwise begins the pauses anew."""
    here = world()
    began_s: list[float] = []

    async def failing(_: Term) -> None:
        began_s.append(asyncio.get_running_loop().time())
        raise ValueError("no")

    async with here.node("a", config=CandidateConfig(retry_s=0.5, retry_max_s=4)) as a:
        standing_a = asyncio.create_task(a.candidate.lead(failing))
        await asyncio.sleep(30)
        a.candidate.leave()
        await standing_a
    pauses_s = [after - before for before, after in pairwise(began_s)]
    assert pauses_s[0] < 1
    assert all(2 <= pause_s < 4.5 for pause_s in pauses_s[4:])
    assert len(pauses_s) > 6


@virtual
async def test_work_that_fails_can_be_raised_instead() -> None:
    """Once the key is released; what ends otherwise does not raise."""
    here = world()

    async def failing(_: Term) -> None:
        raise ValueError("no")

    async with here.node("a") as a:
        with pytest.raises(ValueError, match="no"):
            await a.candidate.lead(failing, reraise=True)
        assert (await a.client.list(KEYS.campaigns)).count == 0
        assert a.candidate.state == Following()
        standing_a = asyncio.create_task(a.candidate.lead(here.work, reraise=True))
        state = (await leads(a)).candidate.state
        assert isinstance(state, Leading)
        await a.client.lease_revoke(state.lease)
        await asyncio.sleep(5)
        assert a.candidate.is_leader
        a.candidate.leave()
        await standing_a


@virtual
async def test_observing_tells_changes_and_vacancy() -> None:
    """Also to who does not stand, and when the history that a watch would need is compacted meanwhile."""
    here = world()
    seen: list[tuple[LeaderEventKind, str | None]] = []

    async def observe(node: Node) -> None:
        async for event in node.candidate.observe():
            seen.append((event.kind, event.leader.id if event.leader else None))  # noqa: PERF401 (it never ends)

    async with here.node("watcher") as watcher, here.node("a") as a, here.node("b") as b:
        observing = asyncio.create_task(observe(watcher))
        await asyncio.sleep(1)
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(1)
        a.candidate.leave()
        await leads(b)
        watcher.transport.cut(0, 1, 2)
        b.candidate.leave()
        await asyncio.gather(standing_a, standing_b)
        here.etcd.compact()
        watcher.transport.mend()
        await asyncio.sleep(10)
        observing.cancel()
        await asyncio.wait({observing})
    assert seen == [
        (LeaderEventKind.VACATED, None),
        (LeaderEventKind.ELECTED, "a"),
        (LeaderEventKind.ELECTED, "b"),
        (LeaderEventKind.VACATED, None),
    ]


@virtual
async def test_work_that_returns_resigns() -> None:
    """And the next in line leads."""
    here = world()

    async def short(_: Term) -> None:
        await asyncio.sleep(1)

    async with here.node("a") as a, here.node("b") as b:
        first = asyncio.create_task(a.candidate.lead(short, once=True))
        await leads(a)
        second = asyncio.create_task(b.candidate.lead(short, once=True))
        for loss in await asyncio.gather(first, second):
            assert loss is not None
            assert loss.reason is LossReason.RESIGNED


@virtual
async def test_cancelling_lead_joins_the_work_and_releases_the_key() -> None:
    """Cancellation is passed on, and nothing is left in etcd."""
    here = world()
    async with here.node("a") as node:
        standing_a = asyncio.create_task(node.candidate.lead(here.work))
        await leads(node)
        standing_a.cancel()
        with pytest.raises(asyncio.CancelledError):
            await standing_a
        assert here.spans[0].ended_s is not None
        assert (await node.client.list(KEYS.campaigns)).count == 0
        assert list((await node.client.leases()).leases) == []


@virtual
async def test_cancelling_lead_again_while_the_key_is_released_leaves_nothing_behind() -> None:
    """At whatever moment: a program that ends asks its candidate to leave, and cancels all of its tasks next."""
    here = world()
    async with here.machine() as operator, here.node("a") as node:
        for moment in range(40):
            candidate = Candidate(node.client, KEYS, ELECTION, id="a", rng=here.rng(f"{moment}"))
            standing_a = asyncio.create_task(candidate.lead(here.work))
            while not candidate.is_leader:
                await asyncio.sleep(0.001)
            candidate.leave() if moment % 2 else standing_a.cancel()
            await asyncio.sleep(moment * 0.00025)
            standing_a.cancel()
            await asyncio.wait({standing_a})
            assert isinstance(candidate.state, Following | Closed)
            assert (await operator.client.list(KEYS.campaigns)).count == 0, moment


@virtual
async def test_leaving_is_final_and_leaves_nothing_behind() -> None:
    """Whether the candidate leads, waits, or has not begun."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
    for node in (a, b):
        assert node.candidate.state == Closed()
    async with here.node("c") as c:
        c.candidate.leave()
        for _ in range(2):
            assert await c.candidate.lead(here.work) is None
        assert (await c.client.list(KEYS.campaigns)).count == 0
        assert list((await c.client.leases()).leases) == []


@virtual
async def test_two_lead_calls_of_one_candidate_are_refused() -> None:
    """One candidate stands once at a time."""
    here = world()
    async with standing(here, ["a"]) as [node]:
        await leads(node)
        with pytest.raises(ElectionError, match="one lead\\(\\) at a time"):
            await node.candidate.lead(here.work)


@virtual
async def test_etcd_that_is_away_at_the_first_attempt_is_an_error() -> None:
    """Later it is waited for."""
    here = world()
    async with here.node("a") as node:
        node.transport.cut(0, 1, 2)
        with pytest.raises(EtcdUnavailable):
            await node.candidate.lead(here.work)


@virtual
async def test_a_member_that_hangs_at_campaign_does_not_hold_the_candidate_up() -> None:
    """The attempt is given up when the key does not show, and made anew on another member."""
    here = world()
    async with here.node("a") as node:
        standing_a = asyncio.create_task(node.candidate.lead(here.work))
        here.etcd.pause(node.client.member)
        async with asyncio.timeout(30):
            await leads(node)
        node.candidate.leave()
        await standing_a


@virtual
async def test_a_hundred_candidates_in_one_election() -> None:
    """One leads at a time, and all of them in turn."""
    here = world()
    async with standing(here, [f"c{number:02}" for number in range(100)]) as nodes:
        for _ in range(100):
            leader = await leads(*nodes)
            leader.candidate.leave()
            await asyncio.sleep(0.2)
    assert len(here.spans) == 100
    here.check_spans()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults_never_let_two_lead(seed: int) -> None:
    """Links cut, members stopped and paused, leaders moved, clocks a little off; then all is well.

    A failing seed is in the test's name. Leases that a stranger revokes are not among the faults: a leader that is cut
    off cannot know of it before its deadline, and only fencing protects from it.
    """

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(drawn_node(here, rng, number)) for number in range(4)]
            tasks = [asyncio.create_task(node.candidate.lead(here.work)) for node in nodes]
            await asyncio.sleep(1)  # etcd that is away at the first attempt is an error
            for _ in range(25):
                await asyncio.sleep(rng.uniform(0, 4))
                hurt(here, rng, rng.choice(nodes), FAULTS)
            for member in range(3):
                here.etcd.resume(member)
            for node in nodes:
                node.transport.mend()
            async with asyncio.timeout(30):
                await leads(*nodes)
            for node in nodes:
                node.candidate.leave()
            await asyncio.gather(*tasks)
            await asyncio.sleep(10)  # leases that could not be revoked expire
            assert (await nodes[0].client.list(KEYS.campaigns)).count == 0
        here.check_spans()

    run()


def drawn_node(here: World, rng: random.Random, number: int) -> AbstractAsyncContextManager[Node]:
    """A machine whose clock is up to a hundredth too fast or too slow."""
    rate, latency_s = rng.uniform(0.99, 1.01), rng.choice([0.001, 0.05])
    return here.node(f"n{number}", rate=rate, latency_s=latency_s, config=CandidateConfig(ttl_s=5))


@virtual
async def test_a_record_of_the_largest_size_can_be_proven() -> None:
    """The proof makes it longer: one that would not fit then would hold up the whole election, and is refused."""
    here = world()
    async with here.machine() as machine:
        size = 4096
        while True:
            try:
                largest = Candidate(machine.client, KEYS, ELECTION, id="a", address="x" * size)
            except RecordTooLarge:
                size -= 1
            else:
                break
        assert size > 3800
        standing_a = asyncio.create_task(largest.lead(here.work))
        await asyncio.sleep(5)
        assert largest.is_leader
        largest.leave()
        await standing_a


def test_names_are_checked_before_anything_is_sent() -> None:
    """A slash would make one election a folder of another."""

    @virtual
    async def run() -> None:
        here = world()
        async with here.node("a") as node:
            with pytest.raises(ElectionError, match="election 'a/b'"):
                Candidate(node.client, KEYS, "a/b", id="x")
            with pytest.raises(ElectionError, match="candidate ''"):
                Candidate(node.client, KEYS, "a", id="")

    run()


@virtual
async def test_a_candidate_begins_at_the_member_that_leads_in_etcd() -> None:
    """It is asked for at each attempt, and never waited for: a member that hangs costs a quarter of a second."""
    here = world()
    async with here.node("a") as node:
        for leader in (2, 0, 1):
            here.etcd.change_leader(leader)
            await node.client.approach_leader()
            assert node.client.member == leader
        here.etcd.pause(1)
        began_s = asyncio.get_running_loop().time()
        await node.client.approach_leader()
        assert asyncio.get_running_loop().time() - began_s < 0.26
        assert node.client.member == here.etcd.leader != 1
        for member in (0, 2):
            here.etcd.stop(member)
        before = node.client.member
        await node.client.approach_leader()
        assert node.client.member == before
        for member in range(3):
            here.etcd.resume(member)
        here.etcd.change_leader(2)
        standing_a = asyncio.create_task(node.candidate.lead(here.work))
        await leads(node)
        assert node.client.member == 2
        node.candidate.leave()
        await standing_a


@virtual
async def test_a_campaign_that_failed_while_it_waited_does_not_undo_the_proof() -> None:
    """etcd's Campaign writes its record over that of a key which is there: a second call would erase `elected_at`."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
        await asyncio.sleep(1)

        async def late(_: int, method: Method[Req, Resp], request: Message) -> None:
            if method.path == CAMPAIGN.path:
                await asyncio.sleep(1)

        b.transport.before_call = late
        here.etcd.fail_campaigns("etcdserver: no leader")
        a.candidate.leave()
        await leads(b)
        state = b.candidate.state
        assert isinstance(state, Leading)
        await asyncio.sleep(3)
        stored = here.etcd.store.get(KEYS.candidate(ELECTION, state.lease))
        record = CandidateRecord.decode(stored.value) if stored else None
        assert record is not None
        assert record.elected_at is not None
