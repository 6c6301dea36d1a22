"""The shared keepalive on the fake etcd, in virtual time: no lease is believed alive that etcd does not have."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message import Message

from election.etcd.keepalive import KeepAlive, KeptLease
from election.etcd.lease import grant
from election.etcd.methods import LEASE_KEEP_ALIVE, Method, Req, Resp
from election.etcd.transport import Metadata, RpcFailed, Stream
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.clock import virtual
from tests.fake.transport import FakeTransport
from tests.simulation.world import Machine, World, hurt, world

TTL_S = 6
MARGIN_S = 1.0
SEEDS = range(60)
FAULTS = ("cut", "cut off", "mend", "mend", "move", "stop", "pause", "resume", "resume")


class Counting(FakeTransport):
    """Counts the streams that were opened, by member."""

    def __init__(self, here: World, *, latency_s: float = 0.001) -> None:
        super().__init__(here.etcd, latency_s=latency_s)
        self.opened: list[int] = []

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        self.opened.append(member)
        return super().stream(member, method, metadata=metadata)


@dataclass
class Keeping:
    """A keepalive that runs, and what it has told."""

    machine: Machine
    transport: Counting
    keepalive: KeepAlive
    kept: list[KeptLease] = field(default_factory=list)
    lost: list[KeptLease] = field(default_factory=list)

    async def grant(self, number: int = 1, *, ttl_s: int = TTL_S) -> list[KeptLease]:
        settings: Any = {"ttl_s": ttl_s, "margin_s": MARGIN_S, "renew_s": ttl_s / 3}
        granted = await asyncio.gather(*(grant(self.machine.client, **settings) for _ in range(number)))
        added = [self.keepalive.add(lease) for lease in granted]
        self.kept += added
        return added

    def believed(self) -> list[KeptLease]:
        """The leases whose deadlines have not passed."""
        now_s = self.machine.clock.now_s()
        return [kept for kept in self.kept if now_s < kept.deadline_s and kept not in self.lost]

    def check(self) -> None:
        """Each lease that is believed alive has its margin at least; etcd can delay its end, and never hasten it."""
        for kept in self.believed():
            expires_at_s = self.transport.etcd.lessor.find(kept.id).expires_at_s
            assert kept.deadline_s <= expires_at_s - MARGIN_S + 1e-6


@asynccontextmanager
async def keeping(here: World, number: int = 1, **settings: Any) -> AsyncGenerator[Keeping]:
    """A machine that keeps leases alive."""
    transport = Counting(here, **settings)
    async with here.machine(transport=transport) as machine:
        made = Keeping(machine, transport, KeepAlive(machine.client, here.rng("keepalive")))

        async def listen() -> None:
            while True:
                made.lost += await made.keepalive.lost()

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(made.keepalive.run()), group.create_task(listen())]
            await made.grant(number)
            yield made
            for task in running:
                task.cancel()


def requests_of(transport: FakeTransport) -> list[tuple[float, int]]:
    """When which lease's renewal was sent, from now on."""
    sent: list[tuple[float, int]] = []

    async def note(_: int, method: Method[Any, Any], request: Message) -> None:
        if isinstance(request, rpc.LeaseKeepAliveRequest):
            sent.append((asyncio.get_running_loop().time(), request.ID))

    transport.before_call = note
    return sent


@virtual
async def test_many_leases_live_on_one_stream() -> None:
    """Each is renewed in time, for ten TTLs."""
    async with keeping(world(), 300) as made:
        for _ in range(10 * TTL_S):
            await asyncio.sleep(1)
            assert len(made.believed()) == 300
            made.check()
        assert (made.lost, len(made.transport.opened)) == ([], 1)


@virtual
async def test_leases_that_were_granted_together_are_renewed_evenly() -> None:
    """In the first interval, and after a burst they spread again."""
    async with keeping(world(), 1000, latency_s=0.0) as made:
        sent = requests_of(made.transport)
        await asyncio.sleep(5 * TTL_S)
        per_turn = Counter(int(at_s / 0.1) for at_s, _ in sent)
        even = 1000 / (TTL_S / 3) * 0.1
        assert max(per_turn.values()) < 3 * even, "a burst"


@virtual
async def test_the_time_of_a_renewal_is_that_before_it_was_sent() -> None:
    """A request that takes two seconds moves the deadline by two seconds less."""
    async with keeping(world()) as made:
        [kept] = made.kept

        async def slow(_: int, method: Method[Any, Any], request: Message) -> None:
            if isinstance(request, rpc.LeaseKeepAliveRequest):
                sent_at_s.append(made.machine.clock.now_s())
                await asyncio.sleep(0.4)

        sent_at_s: list[float] = []
        made.transport.before_call = slow
        await asyncio.sleep(TTL_S / 3 + 0.5)
        assert kept.deadline_s == pytest.approx(sent_at_s[0] + TTL_S - MARGIN_S, abs=0.01)


@virtual
async def test_an_answer_of_a_deposed_etcd_leader_renews_nothing() -> None:
    """Its raft term is below one that was seen; the lease is lost by its deadline, and not before."""
    async with keeping(world(), 3) as made:
        await asyncio.sleep(TTL_S)

        async def depose(_: int, method: Method[Any, Any], answer: Message) -> None:
            if isinstance(answer, rpc.LeaseKeepAliveResponse):
                answer.header.raft_term -= 1

        made.transport.after_call = depose
        deadlines_s = {kept.id: kept.deadline_s for kept in made.kept}
        last_s = max(deadlines_s.values())
        while made.machine.clock.now_s() < last_s + 0.1:
            assert {kept.id: kept.deadline_s for kept in made.kept} == deadlines_s
            await asyncio.sleep(0.05)
        assert sorted(kept.id for kept in made.lost) == sorted(deadlines_s)
        assert not any(kept.gone for kept in made.lost)


@virtual
async def test_a_lease_that_etcd_does_not_know_is_lost_at_once() -> None:
    """That is, when it would have been renewed; the others live on."""
    async with keeping(world(), 5) as made:
        await made.machine.client.lease_revoke(made.kept[2].id)
        await asyncio.sleep(TTL_S / 3 + 0.1)
        assert made.lost == [made.kept[2]]
        assert made.kept[2].gone
        await asyncio.sleep(3 * TTL_S)
        assert len(made.believed()) == 4


@virtual
async def test_a_lease_that_is_forgotten_is_neither_renewed_nor_lost() -> None:
    """Also when its renewal is on its way, or etcd has just said that it is gone."""
    async with keeping(world(), 50, latency_s=0.005) as made:
        take, gone = made.keepalive._take, made.kept[0]
        await made.machine.client.lease_revoke(gone.id)
        sent = requests_of(made.transport)

        def take_and_forget(*answer: Any) -> None:
            take(*answer)
            if gone.gone:
                sent.clear()
                for kept in made.kept:
                    made.keepalive.forget(kept)

        made.keepalive._take = take_and_forget  # type: ignore[assignment,method-assign]
        await asyncio.sleep(3 * TTL_S)
        assert gone.gone
        assert (made.lost, sent) == ([], [])


@virtual
async def test_nothing_is_sent_for_a_lease_whose_deadline_has_passed() -> None:
    """etcd would block the whole stream on it until it is revoked; after a suspend nobody has noticed yet."""
    async with keeping(world()) as made:
        late: list[int] = []

        async def note(_: int, method: Method[Any, Any], request: Message) -> None:
            if isinstance(request, rpc.LeaseKeepAliveRequest):
                [kept] = [kept for kept in made.kept if kept.id == request.ID]
                late.extend([kept.id] if made.machine.clock.now_s() >= kept.deadline_s else [])

        made.transport.before_call = note
        for turn in range(20):
            await made.grant(5)
            await asyncio.sleep(0.1 * turn)
            made.machine.clock.skip(TTL_S)
            await asyncio.sleep(TTL_S)
        assert len(made.lost) == 101
        assert late == []


@virtual
async def test_a_stream_that_blocks_on_an_expired_lease_does_not_take_the_others_along() -> None:
    """A machine whose clock is slow renews one that etcd holds to have expired; the rest lives."""
    here = world()
    async with keeping(here, 20) as made:
        stuck, *others = made.kept
        here.etcd.lessor.find(stuck.id).expires_at_s = here.etcd.clock.now_s()
        renew = here.etcd.lessor.renew
        here.etcd.lessor.renew = lambda lease_id: None if lease_id == stuck.id else renew(lease_id)  # type: ignore[method-assign]
        here.etcd.lessor.sweep = lambda: None  # type: ignore[method-assign]
        for _ in range(100):
            await asyncio.sleep(TTL_S / 20)
            assert all(made.machine.clock.now_s() < kept.deadline_s for kept in others)
        assert made.lost == [stuck]


@pytest.mark.parametrize("fault", ["stop", "pause", "isolate"])
def test_leases_outlive_the_member_that_serves_them(fault: str) -> None:
    """The stream is replaced, and what was not answered is renewed at once."""

    @virtual
    async def run() -> None:
        here = world()
        async with keeping(here, 300) as made:
            await asyncio.sleep(TTL_S)
            getattr(here.etcd, fault)(made.transport.opened[-1])
            for _ in range(5 * TTL_S * 10):
                await asyncio.sleep(0.1)
                assert len(made.believed()) == 300
                made.check()
            assert made.lost == []

    run()


@virtual
async def test_the_stream_follows_etcds_leader() -> None:
    """A follower passes renewals on one by one; and a member that failed is not gone back to at once."""
    here = world()
    async with keeping(here, 10) as made:
        await asyncio.sleep(TTL_S)
        assert made.transport.opened == [0]
        here.etcd.change_leader(2)
        await asyncio.sleep(TTL_S)
        assert made.transport.opened == [0, 2]
        here.etcd.change_leader(1)
        made.transport.cut(1)
        await asyncio.sleep(5 * TTL_S)
        assert made.transport.opened == [0, 2]
        assert made.lost == []


@virtual
async def test_a_refusal_is_logged_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody may give the permission back before the deadline."""
    async with keeping(world(), 3) as made:

        async def refuse(_: int, method: Method[Any, Any], request: Message) -> None:
            if method.path == LEASE_KEEP_ALIVE.path:
                raise RpcFailed(statuses.NO_LEADER.code.PERMISSION_DENIED, "etcdserver: permission denied")

        made.transport.before_call = refuse
        await asyncio.sleep(TTL_S / 2)
        made.transport.before_call = None
        await asyncio.sleep(2 * TTL_S)
        assert [record.message for record in caplog.records if "cannot be renewed" in record.message] == [
            "leases cannot be renewed: etcd at fake-1:2379 refused access: the user of the client "
            "certificate has no permission for this, or for a key of this lease"
        ]
        assert made.lost == []


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lease_is_believed_alive_that_etcd_has_not(seed: int) -> None:
    """Whatever happens to members, links, requests and answers. A failing seed is in the test's name."""

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with keeping(here, 30, latency_s=0.005) as made:

            async def delay(_: int, method: Method[Any, Any], message: Message) -> None:
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.uniform(0, 1.0))

            made.transport.before_call = made.transport.after_call = delay
            for _ in range(60):
                hurt(here, rng, made.machine, FAULTS)
                for _ in range(rng.randrange(1, 20)):
                    await asyncio.sleep(0.1)
                    made.check()
            made.transport.before_call = made.transport.after_call = None
            for member in range(3):
                here.etcd.resume(member)
            made.transport.mend()
            await asyncio.sleep(TTL_S)
            fresh = await made.grant(5)
            await asyncio.sleep(5 * TTL_S)
            assert set(fresh) <= set(made.believed())
            assert sorted(kept.id for kept in made.lost) == sorted(
                kept.id for kept in made.kept if kept not in made.believed()
            )

    run()
