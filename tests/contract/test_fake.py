"""What the fake does that no real etcd can be asked for in a test: its faults, its time, and its alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
from google.protobuf.message import Message

from election.config import EtcdConfig
from election.errors import EtcdUnavailable, LeaseNotFound, NoSpace
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.lease import grant, renewals
from election.etcd.methods import Method
from election.etcd.transport import RpcFailed
from election.etcd.watch import Changes, Snapshot, follow
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import answered, backoff
from tests.fake import statuses
from tests.fake.clock import NothingLeftToHappen, VirtualClock, VirtualLoop, run_virtual, virtual
from tests.fake.etcd import FakeEtcd
from tests.fake.kv import EtcdPanics
from tests.fake.transport import FakeTransport, Link

TTL_S = 10


class World:
    """A fake cluster and one client of it."""

    def __init__(self, *, latency_s: float = 0.0) -> None:
        self.clock = VirtualClock()
        self.etcd = FakeEtcd(self.clock)
        self.transport = FakeTransport(self.etcd, latency_s=latency_s)
        self.client = self.another_client(self.transport)

    def another_client(self, transport: FakeTransport) -> EtcdClient:
        return EtcdClient(EtcdConfig(self.etcd.endpoints), clock=self.clock, transport=transport)

    @property
    def keys(self) -> list[bytes]:
        return [found.key for found in self.etcd.kvs.range(rpc.RangeRequest(key=b"\0", range_end=b"\0")).kvs]

    async def put_at(self, member: int, timeout_s: float = 1.0) -> rpc.PutResponse:
        return await self.transport.unary(
            member, methods.PUT, rpc.PutRequest(key=b"k"), timeout_s=timeout_s, metadata=()
        )  # fmt: skip

    async def failure(self, call: Awaitable[object]) -> tuple[str, float]:
        """The code with which a call fails, and after how long."""
        began_s = self.clock.now_s()
        with pytest.raises(RpcFailed) as failed:
            await call
        return failed.value.code.name, round(self.clock.now_s() - began_s, 3)


# --- time ----------------------------------------------------------------------------------------------------


@virtual
async def test_a_day_passes_at_once() -> None:
    clock = VirtualClock()
    await clock.sleep_s(80_000)
    assert clock.now_s() == pytest.approx(80_000)


@virtual
async def test_clocks_drift_apart_and_never_wake_early() -> None:
    fast, slow = VirtualClock(rate=1.1), VirtualClock(rate=0.9, offset_s=-5.0)
    for clock in (fast, slow):
        for duration_s in (0.1, 1 / 3, 7.7):
            began_s = clock.now_s()
            await clock.sleep_s(duration_s)
            assert began_s + duration_s <= clock.now_s() < began_s + duration_s + 1e-5
    suspended_at_s = fast.now_s()
    fast.skip(30.0)
    assert fast.now_s() == suspended_at_s + 30.0


def test_a_test_that_waits_for_nothing_fails() -> None:
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError):
        run_virtual(stuck(), limit_s=60.0)


def test_a_loop_without_timers_fails_too() -> None:
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.raises(NothingLeftToHappen):
        runner.run(stuck())


# --- members -------------------------------------------------------------------------------------------------


@virtual
async def test_a_member_that_is_down_refuses_calls_definitely() -> None:
    world = World()
    world.etcd.stop(0)
    assert await world.failure(world.put_at(0)) == ("UNAVAILABLE", 0.0)
    await world.client.put(b"k", b"")
    world.etcd.resume(0)
    await world.put_at(0)
    assert world.etcd.store.revision == 3


@virtual
async def test_a_member_that_is_paused_hangs_and_goes_on() -> None:
    world = World()
    world.etcd.pause(0)
    assert await world.failure(world.put_at(0, timeout_s=2.0)) == ("DEADLINE_EXCEEDED", 2.0)
    call = asyncio.create_task(world.put_at(0, timeout_s=10.0))
    await world.clock.sleep_s(3.0)
    assert not call.done()
    world.etcd.resume(0)
    assert (await call).header.revision == 2  # the call that was given up never arrived


@virtual
async def test_a_call_that_was_given_up_may_arrive_late() -> None:
    world = World()
    world.transport.arrives_late = lambda method, request: method is methods.PUT
    world.etcd.pause(0)
    await world.failure(world.put_at(0))
    assert world.keys == []
    world.etcd.resume(0)
    assert world.keys == [b"k"]


@virtual
async def test_without_a_quorum_nothing_is_written_and_no_lease_ends() -> None:
    world = World()
    lease = (await world.client.lease_grant(TTL_S)).ID
    await world.client.put(b"leased", b"", lease=lease)
    world.etcd.stop(1)
    world.etcd.isolate(2)
    assert not world.etcd.has_quorum
    assert await world.failure(world.put_at(0, timeout_s=20.0)) == ("UNAVAILABLE", 7.0)
    stale = rpc.RangeRequest(key=b"leased", serializable=True)
    assert (await world.transport.unary(0, methods.RANGE, stale, timeout_s=1.0, metadata=())).count == 1
    await world.clock.sleep_s(60.0)
    assert world.keys == [b"leased"]
    term = world.etcd.raft_term
    world.etcd.resume(1)
    assert world.etcd.raft_term == term + 1
    await world.clock.sleep_s(TTL_S)
    assert world.keys == [b"leased"]  # the new leader gave it all its time again, and an election timeout more
    await world.clock.sleep_s(2.0)
    assert world.keys == []


@virtual
async def test_an_isolated_member_shows_the_past_and_ends_streams_that_ask_for_a_leader() -> None:
    world = World()
    stream = world.transport.stream(0, methods.WATCH, metadata=(("hasleader", "true"),))
    await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
    assert (await answered(stream)).created
    world.etcd.isolate(0)
    await world.put_at(1)
    serializable = rpc.RangeRequest(key=b"k", serializable=True)
    seen = await world.transport.unary(0, methods.RANGE, serializable, timeout_s=1.0, metadata=())
    assert (seen.count, seen.header.revision) == (0, 1)
    await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
    assert (await answered(stream)).watch_id == -1  # it believes that it misses nothing
    assert await world.failure(stream.read()) == ("UNAVAILABLE", 3.0)
    world.etcd.resume(0)
    await world.put_at(0)


@virtual
async def test_a_watch_on_a_member_that_was_paused_or_isolated_catches_up() -> None:
    for hurt in (FakeEtcd.pause, FakeEtcd.isolate):
        world = World()
        stream = world.transport.stream(0, methods.WATCH, metadata=())
        await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
        await answered(stream)
        hurt(world.etcd, 0)
        await world.put_at(1)
        await world.put_at(1)
        reading = asyncio.ensure_future(stream.read())
        await world.clock.sleep_s(1.0)
        assert not reading.done()
        world.etcd.resume(0)
        first, second = await reading, await answered(stream)
        assert first is not None
        assert [answer.events[0].kv.mod_revision for answer in (first, second)] == [2, 3]


@virtual
async def test_a_new_etcd_leader_gives_every_lease_its_time_again() -> None:
    world = World()
    lease = (await world.client.lease_grant(TTL_S)).ID
    await world.client.put(b"leased", b"", lease=lease)
    await world.clock.sleep_s(9.0)
    world.etcd.change_leader()
    await world.clock.sleep_s(10.9)
    assert world.keys == [b"leased"]
    await world.clock.sleep_s(0.7)
    assert world.keys == []
    assert (await world.client.get(b"k"))[1].raft_term == world.etcd.raft_term == 3


@virtual
async def test_leases_end_by_the_members_clock() -> None:
    loop_s = VirtualClock()
    etcd = FakeEtcd(VirtualClock(rate=2.0))
    client = EtcdClient(EtcdConfig(etcd.endpoints), clock=loop_s, transport=FakeTransport(etcd))
    lease = (await client.lease_grant(TTL_S)).ID
    await loop_s.sleep_s(4.9)
    assert (await client.lease_time_to_live(lease)).TTL == 0
    await loop_s.sleep_s(0.4)
    assert (await client.lease_time_to_live(lease)).TTL == -1


@virtual
async def test_leases_that_end_together_are_revoked_a_thousand_a_second() -> None:
    world = World()
    for i in range(1_200):
        world.etcd.lessor.grant(i + 1, TTL_S)
    world.etcd.tick()
    await world.clock.sleep_s(TTL_S + 0.1)
    left = []
    for _ in range(4):
        left.append(len(world.etcd.lessor.by_expiry()))
        await world.clock.sleep_s(0.5)
    assert left == [700, 200, 0, 0]


# --- the way there and back ----------------------------------------------------------------------------------


@virtual
async def test_a_cut_link_is_cut_for_this_client_only_and_both_ways() -> None:
    world = World()
    other = world.another_client(FakeTransport(world.etcd))
    world.transport.cut()
    with pytest.raises(EtcdUnavailable) as failed:
        await world.client.put(b"k", b"")
    assert failed.value.indefinite
    assert world.keys == []
    await other.put(b"other", b"")
    world.transport.mend()
    assert (await world.client.get(b"other"))[0] is not None


@virtual
async def test_an_answer_that_is_lost_is_one_of_a_call_that_was_executed() -> None:
    world = World()
    world.transport.set_link(0, Link.ANSWERS_LOST)
    assert await world.failure(world.put_at(0)) == ("DEADLINE_EXCEEDED", 1.0)
    assert world.keys == [b"k"]


@virtual
async def test_a_connection_that_is_silent_for_too_long_is_given_up() -> None:
    world = World()
    stream = world.transport.stream(0, methods.WATCH, metadata=())
    await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
    await answered(stream)
    await world.clock.sleep_s(1.0)
    world.transport.cut(0)
    await world.clock.sleep_s(5.0)
    assert await world.failure(stream.read()) == ("UNAVAILABLE", 10.0)


@virtual
async def test_hooks_delay_fail_and_repeat_calls() -> None:
    world = World(latency_s=0.01)
    began_s = world.clock.now_s()
    await world.put_at(0)
    assert world.clock.now_s() - began_s == pytest.approx(0.02)

    async def refuse(member: int, method: Method[Message, Message], request: Message) -> None:
        raise statuses.CANNOT_CONNECT.error()

    async def repeat(member: int, method: Method[Message, Message], request: Message) -> None:
        world.transport.execute(1, method, request)

    async def lose(member: int, method: Method[Message, Message], answer: Message) -> None:
        raise statuses.SOCKET_CLOSED.error()

    world.transport.before_call = refuse
    assert (await world.failure(world.put_at(0)))[0] == "UNAVAILABLE"
    assert world.etcd.store.revision == 2
    world.transport.before_call = repeat
    assert (await world.put_at(0)).header.revision == 4
    world.transport.before_call, world.transport.after_call = None, lose
    assert (await world.failure(world.put_at(0)))[0] == "UNAVAILABLE"
    assert world.etcd.store.revision == 5


@virtual
async def test_a_member_that_dies_breaks_its_streams_and_calls_off() -> None:
    world = World()
    leader = await world.client.campaign(b"e", (await world.client.lease_grant(60)).ID, b"")
    second = (await world.client.lease_grant(60)).ID
    campaign = asyncio.create_task(world.client.campaign(b"e", second, b""))
    stream = world.transport.stream(world.client.member, methods.WATCH, metadata=())
    await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
    await answered(stream)
    dies = world.client.member
    world.etcd.stop(dies)
    world.etcd.resume(dies)
    with pytest.raises(EtcdUnavailable):
        await campaign
    assert (await world.failure(stream.read()))[0] == "UNAVAILABLE"
    with pytest.raises(RpcFailed):
        await stream.write(rpc.WatchRequest())
    assert set(world.keys) == {leader.leader.key, f"e/{second:x}".encode()}  # a killed member deletes nothing


@virtual
async def test_a_campaign_that_is_cancelled_behind_a_pause_takes_the_key_of_a_leader_along() -> None:
    world = World()
    member, key = await cancelled_behind(world, world.etcd.pause)
    assert world.keys == [key]  # it leads, and nobody has told it
    world.etcd.resume(member)
    assert world.keys == []


@virtual
async def test_a_campaign_that_is_cancelled_behind_a_cut_has_won_before_the_member_hears_of_it() -> None:
    world = World()
    _, key = await cancelled_behind(world, world.transport.cut)
    world.transport.mend()
    assert world.keys == [key]


async def cancelled_behind(world: World, hurt: Callable[[int], None]) -> tuple[int, bytes]:
    """Cancels a campaign on a member that cannot be told so, and lets the key become the oldest."""
    first, second = [(await world.client.lease_grant(60)).ID for _ in range(2)]
    await world.client.campaign(b"e", first, b"")
    campaign = asyncio.create_task(world.client.campaign(b"e", second, b""))
    await world.clock.sleep_s(0.1)
    member = world.client.member
    hurt(member)
    campaign.cancel()
    await asyncio.wait({campaign})
    world.client.avoid(member)
    await world.client.lease_revoke(first)
    return member, f"e/{second:x}".encode()


@virtual
async def test_a_campaign_can_fail_and_leave_its_key() -> None:
    world = World()
    await world.client.campaign(b"e", (await world.client.lease_grant(60)).ID, b"")
    lease = (await world.client.lease_grant(60)).ID
    campaign = asyncio.create_task(world.client.campaign(b"e", lease, b""))
    await world.clock.sleep_s(0.1)
    world.etcd.fail_campaigns(statuses.COMPACTED.text)
    with pytest.raises(Exception, match="compacted"):
        await campaign
    assert len(world.keys) == 2


@virtual
async def test_a_renewal_survives_a_member_and_ends_with_the_lease() -> None:
    world = World(latency_s=0.001)
    lease = await grant(world.client, ttl_s=TTL_S, margin_s=1.0, renew_s=3.0)
    async with aclosing(renewals(world.client, lease, backoff())) as renewed:
        await anext(renewed)
        world.etcd.stop(world.client.member)
        renewal = await anext(renewed)
        assert renewal.deadline_s == pytest.approx(world.clock.now_s() + TTL_S - 1.0, abs=0.01)
        world.transport.cut()
        await world.clock.sleep_s(TTL_S + 1.0)
        world.transport.mend()
        with pytest.raises(LeaseNotFound):
            await anext(renewed)


@virtual
async def test_a_follower_of_changes_goes_on_with_another_member() -> None:
    world = World(latency_s=0.001)
    async with aclosing(follow(world.client, b"k/", backoff())) as items:
        assert isinstance(await anext(items), Snapshot)
        changes = (item async for item in items if isinstance(item, Changes))
        for hurt in (world.etcd.stop, world.etcd.pause):
            following = asyncio.ensure_future(anext(changes))
            await world.clock.sleep_s(0.5)
            member = world.client.member
            hurt(member)
            other = next(i for i in range(3) if i != member)
            put = rpc.PutRequest(key=b"k/a")
            await world.transport.unary(other, methods.PUT, put, timeout_s=1.0, metadata=())
            changed = await following
            assert changed.revision == world.etcd.store.revision
            world.etcd.resume(member)


# --- what must not happen ------------------------------------------------------------------------------------


@virtual
async def test_a_transaction_that_makes_real_members_panic_fails_the_test() -> None:
    world = World()
    await world.client.put(b"k", b"")
    kept = rpc.PutRequest(key=b"k", ignore_lease=True)
    ops = [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"a", range_end=b"\0")),
        rpc.RequestOp(request_put=kept),
    ]
    with pytest.raises(EtcdPanics):
        await world.client.txn([], ops)


# --- the alarm -----------------------------------------------------------------------------------------------


@virtual
async def test_a_full_database_takes_nothing_new_but_lets_the_old_live_and_go() -> None:
    world = World()
    client = world.client
    lease = (await client.lease_grant(TTL_S)).ID
    await client.put(b"k", b"", lease=lease)
    won = await client.campaign(b"e", lease, b"")
    world.etcd.set_no_space(True)
    refused: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: client.put(b"k", b""),
        lambda: client.lease_grant(TTL_S),
        lambda: client.campaign(b"e", 4711, b""),
        lambda: client.proclaim(won.leader, b""),
        lambda: client.txn([], [rpc.RequestOp(request_put=rpc.PutRequest(key=b"k"))]),
    )
    for call in refused:
        with pytest.raises(NoSpace):
            await call()
    assert (await client.delete(b"k")).deleted == 1
    assert (await client.get(b"k"))[0] is None
    assert (await world.client.status(0)).errors
    await client.resign(won.leader)
    await client.lease_revoke(lease)
    world.etcd.set_no_space(False)
    await client.put(b"k", b"")
