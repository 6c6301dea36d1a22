"""The history of etcd is set back: no token is smaller than one before, and somebody leads after all."""

from __future__ import annotations

import asyncio
import random

import pytest

from election import published
from election.candidate import Candidate
from election.epoch import EpochGuard, raise_epoch, read_epoch
from election.errors import EtcdError, RolledBack
from election.leadership import Campaigning, Leading
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc
from election.token import Token
from tests.fake.clock import virtual
from tests.fake.etcd import Snapshot
from tests.simulation.world import ELECTION, KEYS, Machine, Node, World, leads, standing, world


class Folder:
    """A local state folder, without files: it outlives candidates."""

    def __init__(self) -> None:
        self.highest = Token(0, 0)

    async def advance(self, name: str, token: Token) -> Token:
        assert name == KEYS.namespace
        self.highest = max(self.highest, token)
        return self.highest


def token(node: Node) -> Token:
    state = node.candidate.state
    assert isinstance(state, Leading)
    return state.token


async def raised(node: Node) -> None:
    """What `election epoch raise` does."""
    await raise_epoch(node.client, KEYS, by="operator")


async def written(machine: Machine, revisions: int) -> None:
    """Lets etcd's revision grow."""
    for _ in range(revisions):
        await machine.client.put(b"elsewhere", b"")


async def saved_before(here: World, *nodes: Node) -> Snapshot:
    """A snapshot that is older than the present term."""
    leader = await leads(*nodes)
    snapshot = here.etcd.snapshot()
    for _ in range(50):
        await leader.client.put(b"elsewhere", b"")
    for _ in nodes:  # whoever leads at the end has queued after the snapshot
        (await leads(*nodes)).candidate.hand_over()
        await asyncio.sleep(5)
    await leads(*nodes)
    return snapshot


@virtual
async def test_nobody_leads_after_a_restore_until_the_epoch_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Also nobody who came later and knows nothing of what was lost; and the log says how to go on."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        snapshot = await saved_before(here, a, b)
        before = token(await leads(a, b))
        here.etcd.restore(snapshot)
        await asyncio.sleep(3)  # less than the leases that the snapshot has brought back
        async with here.node("late") as late:
            with pytest.raises(RolledBack, match=f"{before.epoch}-.* has been seen .* `election epoch raise`"):
                await late.candidate.lead(here.work)
            reported = await read_epoch(late.client, KEYS)
        assert reported.epoch == 0
        assert reported.revision >= before.revision
        assert reported.by in ("a", "b")
        await asyncio.sleep(30)
        assert not a.candidate.is_leader
        assert not b.candidate.is_leader
        assert any("etcd's history was set back" in record.message for record in caplog.records)
        await raised(a)
        after = token(await leads(a, b))
        assert after.epoch == 1
        assert before.revision > after.revision
        assert before < after
    here.check_spans()


@virtual
async def test_a_restore_that_bumps_the_revision_needs_no_operator() -> None:
    """Tokens grow by themselves; and the raft terms that begin anew are not taken for those of a deposed leader."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        snapshot = await saved_before(here, a, b)
        for _ in range(5):
            here.etcd.change_leader()
            await asyncio.sleep(2)
        before = token(await leads(a, b))
        here.etcd.restore(snapshot, bump=1_000_000)
        await asyncio.sleep(30)
        after = await leads(a, b)
        assert before < token(after)
        assert token(after).epoch == 0
        held = token(after)
        await asyncio.sleep(30)  # it is renewed
        assert token(after) == held
    here.check_spans()


@virtual
async def test_a_process_that_was_restarted_remembers_by_its_state_folder() -> None:
    """Nobody else lives who could know."""
    here, folder = world(), Folder()

    def remembering(node: Node) -> Candidate:
        guard = EpochGuard(node.client, KEYS, memory=folder)
        return Candidate(node.client, KEYS, ELECTION, id="a", guard=guard, rng=here.rng("a"))

    async with here.node("first") as first:
        snapshot = here.etcd.snapshot()
        first.candidate = remembering(first)
        standing_first = asyncio.create_task(first.candidate.lead(here.work))
        await leads(first)
        await asyncio.sleep(1)
        assert folder.highest >= token(first)
        first.candidate.leave()
        await standing_first
    here.etcd.restore(snapshot)
    await asyncio.sleep(1)
    async with here.node("second") as second:
        second.candidate = remembering(second)
        with pytest.raises(RolledBack):
            await second.candidate.lead(here.work)
        await raised(second)
        standing_second = asyncio.create_task(second.candidate.lead(here.work))
        await leads(second)
        second.candidate.leave()
        await standing_second
    here.check_spans()


@virtual
async def test_a_term_that_begins_while_a_candidate_is_admitted_is_no_regress() -> None:
    """Its token is above the revision at which the lease was granted, and below that of the reads after it."""
    here = world()

    async def slowly(_: int, __: object, request: object) -> None:
        if isinstance(request, rpc.TxnRequest):
            await asyncio.sleep(0.5)

    async with here.node("a") as a, here.node("b") as b:
        b.transport.before_call = slowly
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(0.01)
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        await asyncio.sleep(2)
        assert isinstance(b.candidate.state, Campaigning)
        assert (await read_epoch(a.client, KEYS)).revision == 0
        b.candidate.leave()
        a.candidate.leave()
        await asyncio.gather(standing_a, standing_b)


@virtual
async def test_a_term_that_another_candidate_of_the_process_sees_meanwhile_is_no_regress() -> None:
    """They share a guard, and a state folder that takes its time."""
    here = world()

    class Slow(Folder):
        async def advance(self, name: str, token: Token) -> Token:
            await asyncio.sleep(0.2)
            return await super().advance(name, token)

    async def slowly(_: int, __: object, answer: object) -> None:
        if isinstance(answer, rpc.LeaseGrantResponse):
            await asyncio.sleep(0.9)

    async with here.machine() as machine:
        guard = EpochGuard(machine.client, KEYS, memory=Slow())
        late, early = (Candidate(machine.client, KEYS, name, id=name, guard=guard) for name in ("late", "early"))
        machine.transport.after_call = slowly
        standing_late = asyncio.create_task(late.lead(here.work))
        await asyncio.sleep(0.1)
        machine.transport.after_call = None
        standing_early = asyncio.create_task(early.lead(here.work))
        await asyncio.sleep(5)
        assert early.is_leader
        assert late.is_leader
        early.leave()
        late.leave()
        await asyncio.gather(standing_early, standing_late)


@virtual
async def test_a_history_that_was_set_back_and_has_caught_up_unseen_gives_no_second_leader() -> None:
    """The queue of who was away goes on from another history, and lacks the leader's key; the proof finds it."""
    here = world()
    async with here.machine() as operator, here.node("b") as b, here.node("c") as c:
        snapshot = here.etcd.snapshot()
        await written(operator, 20)

        async def cut_off(_: int, __: object, request: object) -> None:
            if isinstance(request, el.CampaignRequest):
                b.transport.cut(0, 1, 2)

        b.transport.before_call = cut_off
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(0.5)
        here.etcd.restore(snapshot)
        standing_c = asyncio.create_task(c.candidate.lead(here.work))
        await leads(c)
        await written(operator, 100)
        await asyncio.sleep(5)
        b.transport.before_call = None
        b.transport.mend()
        await asyncio.sleep(30)
        assert [span.id for span in here.spans] == ["c"]
        assert c.candidate.is_leader
        c.candidate.leave()
        await leads(b)
        b.candidate.leave()
        await asyncio.gather(standing_b, standing_c)
    here.check_spans()


@virtual
async def test_a_history_that_was_set_back_and_has_caught_up_unseen_keeps_nobody_from_leading() -> None:
    """The queue of who was away goes on from another history, and shows keys that are gone."""
    here = world()
    async with here.machine() as operator, here.node("a") as a, here.node("b") as b:
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        snapshot = here.etcd.snapshot()
        standing_b = asyncio.create_task(b.candidate.lead(here.work))
        await asyncio.sleep(1)
        b.transport.cut(0, 1, 2)
        here.etcd.restore(snapshot)
        await asyncio.sleep(1)
        await written(operator, 100)
        await asyncio.sleep(15)
        b.transport.mend()
        await asyncio.sleep(30)
        await leads(a)
        a.candidate.leave()
        await asyncio.sleep(30)
        terms = len(here.spans)
        await asyncio.sleep(30)
        assert b.candidate.is_leader
        assert len(here.spans) == terms
        b.candidate.leave()
        await asyncio.gather(standing_a, standing_b)
    here.check_spans()


@virtual
async def test_a_state_folder_that_hangs_does_not_end_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the queue changes meanwhile."""
    monkeypatch.setattr(published, "QUEUE_LIMIT", 1_000)
    here = world()
    goes_on = asyncio.Event()

    class Hanging(Folder):
        async def advance(self, name: str, token: Token) -> Token:
            if self.highest.revision:  # once the candidate is admitted
                await goes_on.wait()
            return await super().advance(name, token)

    async with here.machine() as other, here.node("a") as a:
        guard = EpochGuard(a.client, KEYS, memory=Hanging())
        candidate = Candidate(a.client, KEYS, ELECTION, id="a", guard=guard)
        standing_a = asyncio.create_task(candidate.lead(here.work))
        while not candidate.is_leader:
            await asyncio.sleep(0.01)
        key = KEYS.campaign(ELECTION) + b"another"
        for _ in range(published.QUEUE_LIMIT // 2 + 100):
            await other.client.put(key, b"")
            await other.client.delete(key)
        goes_on.set()
        await asyncio.sleep(1)
        assert len(here.spans) == 1
        candidate.leave()
        await standing_a


@virtual
async def test_keys_that_were_copied_to_another_etcd_tell_what_was_seen() -> None:
    """The last token of the election is among them, and etcd's revision is behind it."""
    here = world()
    async with here.node("a") as a:
        await a.client.put(KEYS.highest(ELECTION), b"0-5000")
        with pytest.raises(RolledBack, match="0-5000 has been seen"):
            await a.candidate.lead(here.work)
        await raised(a)
        await a.client.put(KEYS.highest(ELECTION), b"what somebody else wrote")
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        assert token(a).epoch == 1
        a.candidate.leave()
        await standing_a


@virtual
async def test_an_epoch_that_is_raised_counts_for_those_who_wait() -> None:
    """Whether they prove their leadership themselves, or their predecessor hands over."""
    here = world()
    async with standing(here, ["a", "b", "c"]) as [a, b, c]:
        await leads(a)
        await raised(a)
        await asyncio.sleep(1)
        assert token(a).epoch == 0  # the term goes on
        a.candidate.leave()
        assert await leads(b, c) is b
        assert token(b).epoch == 1
        await raised(a)
        state = b.candidate.state
        assert isinstance(state, Leading)
        await a.client.lease_revoke(state.lease)
        assert await leads(c) is c
        assert token(c).epoch == 2
    assert [span.token.epoch for span in here.spans[:3]] == [0, 1, 2]


@virtual
async def test_an_epoch_that_cannot_be_read_lets_nobody_lead() -> None:
    """Anyone can write below the prefix; raising the epoch mends it."""
    here = world()
    async with here.node("a") as a:
        await a.client.put(KEYS.epoch, b"nonsense")
        with pytest.raises(EtcdError, match="is not an epoch: run `election epoch raise`"):
            await a.candidate.lead(here.work)
        await raised(a)
        standing_a = asyncio.create_task(a.candidate.lead(here.work))
        await leads(a)
        a.candidate.leave()
        await standing_a


@virtual
async def test_an_epoch_that_cannot_be_read_any_more_is_waited_out() -> None:
    """Who has stood before goes on trying: one bad write ends no fleet."""
    here = world()
    async with standing(here, ["a"]) as [a]:
        await leads(a)
        state = a.candidate.state
        assert isinstance(state, Leading)
        await a.client.put(KEYS.epoch, b"nonsense")
        await a.client.lease_revoke(state.lease)
        await asyncio.sleep(30)
        assert not a.candidate.is_leader
        await raised(a)
        await leads(a)


@pytest.mark.parametrize("seed", range(40))
def test_tokens_grow_over_random_restores(seed: int) -> None:
    """Snapshots of any age, with other faults between; an operator raises the epoch some time after each restore."""

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with standing(here, ["a", "b", "c"]) as nodes:
            snapshots = [here.etcd.snapshot()]
            for _ in range(8):
                await asyncio.sleep(rng.uniform(0, 20))
                match rng.choice(["save", "save", "hand over", "cut", "move", "restore"]):
                    case "save":
                        snapshots.append(here.etcd.snapshot())
                    case "hand over":
                        for node in nodes:
                            if node.candidate.is_leader:
                                node.candidate.leave() if rng.random() < 0.2 else None
                    case "cut":
                        node = rng.choice(nodes)
                        node.transport.cut(0, 1, 2)
                        await asyncio.sleep(rng.uniform(0, 15))
                        node.transport.mend()
                    case "move":
                        here.etcd.change_leader()
                    case "restore":
                        here.etcd.restore(rng.choice(snapshots))
                        await asyncio.sleep(rng.uniform(15, 30))
                        await raised(nodes[0])
            await asyncio.sleep(30)
        here.check_spans()
        assert here.spans

    run()
