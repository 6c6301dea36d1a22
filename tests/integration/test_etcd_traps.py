"""What etcd does that the design depends on: one test for each trap, against a real cluster.

Nothing of this project's behaviour is tested here, only etcd's and the one mapping of its errors. Where versions
of etcd differ, the test says which does what, so that a change in a new version shows.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from grpc import StatusCode

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, Member, find_binary
from election.errors import Compacted, EtcdError, EtcdUnavailable, LeaseNotFound, NoSpace
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import GrpcTransport, RpcFailed, Stream
from election.keys import range_end
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

T = TypeVar("T")
Watching = Stream[rpc.WatchRequest, rpc.WatchResponse]


class Etcd:
    """A cluster, a client of it, and calls to one member whose gRPC status arrives as it was sent."""

    def __init__(self, cluster: EtcdCluster, client: EtcdClient, transport: GrpcTransport) -> None:
        self.cluster = cluster
        self.client = client
        self._transport = transport
        self.version = tuple(int(part) for part in cluster.version.split("-")[0].split("."))

    async def call(
        self, method: Method[Req, Resp], request: Req, *, member: int = 0, timeout_s: float = 20.0, token: str = ""
    ) -> Resp:
        metadata = (("token", token),) if token else ()
        return await self._transport.unary(member, method, request, timeout_s=timeout_s, metadata=metadata)

    def open(
        self, method: Method[Req, Resp], *, member: int = 0, has_leader: bool = False, token: str = ""
    ) -> Stream[Req, Resp]:
        metadata = (("hasleader", "true"),) * has_leader + (("token", token),) * bool(token)
        return self._transport.stream(member, method, metadata=metadata)

    async def lease(self, ttl_s: int = 60) -> int:
        return (await self.client.lease_grant(ttl_s)).ID

    async def key(self, key: bytes) -> kv.KeyValue | None:
        return (await self.client.get(key))[0]

    async def campaign(self, name: bytes, lease: int, *, member: int = 0, token: str = "") -> el.CampaignResponse:
        request = el.CampaignRequest(name=name, lease=lease, value=b"v")
        return await self.call(methods.CAMPAIGN, request, member=member, token=token)

    async def lead(self, name: bytes, ttl_s: int = 60) -> el.LeaderKey:
        """Wins an election that nobody else is in."""
        return (await self.campaign(name, await self.lease(ttl_s))).leader

    @asynccontextmanager
    async def waiting(
        self, name: bytes, lease: int, *, member: int = 0, token: str = ""
    ) -> AsyncIterator[asyncio.Task[el.CampaignResponse]]:
        """A Campaign that is queued behind somebody else's key."""
        async with pending(self.campaign(name, lease, member=member, token=token)) as campaign:
            await until(lambda: self.key(candidate(name, lease)))
            yield campaign

    @asynccontextmanager
    async def watching(self, create: rpc.WatchCreateRequest, *, member: int = 0) -> AsyncIterator[Watching]:
        stream = self.open(methods.WATCH, member=member)
        try:
            await stream.write(rpc.WatchRequest(create_request=create))
            yield stream
        finally:
            stream.cancel()


@asynccontextmanager
async def pending(call: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    task = asyncio.create_task(call)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


@asynccontextmanager
async def connected(cluster: EtcdCluster) -> AsyncIterator[Etcd]:
    config = EtcdConfig(cluster.endpoints)
    transport = GrpcTransport(config)
    async with EtcdClient(config, transport=transport) as client:
        yield Etcd(cluster, client, transport)


@contextmanager
def started(members: int = 1, extra_args: Sequence[str] = ()) -> Iterator[EtcdCluster]:
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), members=members, extra_args=extra_args))
        try:
            yield cluster
        finally:
            cluster.kill()


@pytest.fixture
async def etcd(etcd_cluster: EtcdCluster) -> AsyncIterator[Etcd]:
    async with connected(etcd_cluster) as made:
        yield made


@pytest.fixture
async def fresh_etcd(fresh_cluster: EtcdCluster) -> AsyncIterator[Etcd]:
    async with connected(fresh_cluster) as made:
        yield made


@pytest.fixture
def name(namespace: str) -> bytes:
    return f"/traps/{namespace}".encode()


def candidate(name: bytes, lease: int) -> bytes:
    return name + f"/{lease:x}".encode()


async def until(condition: Callable[[], Awaitable[T | None]], timeout_s: float = 10.0) -> T:
    async with asyncio.timeout(timeout_s):
        while True:
            if (value := await condition()) is not None:
                return value
            await asyncio.sleep(0.01)


async def failure(call: Coroutine[Any, Any, object]) -> RpcFailed:
    with pytest.raises(RpcFailed) as caught:
        await call
    return caught.value


async def read(stream: Stream[Any, Resp], timeout_s: float = 10.0) -> Resp:
    async with asyncio.timeout(timeout_s):
        answer = await stream.read()
    assert answer is not None
    return answer


async def followers(cluster: EtcdCluster) -> list[Member]:
    leader = await cluster.leader()
    return [member for member in cluster.members if member is not leader]


# --- the Election API ----------------------------------------------------------------------------------------


async def test_campaign_succeeds_for_a_key_that_is_gone(etcd: Etcd, name: bytes) -> None:
    """A waiting Campaign never looks at its own key: it answers OK though the key was deleted meanwhile."""
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease) as campaign:
        await etcd.client.lease_revoke(lease)
        await etcd.client.resign(first)
        won = await campaign
    assert won.leader.key == candidate(name, lease)
    assert await etcd.key(won.leader.key) is None


async def test_a_cancelled_campaign_deletes_its_key(etcd: Etcd, name: bytes) -> None:
    """The member deletes the key of a Campaign whose caller has gone, at a moment of its own choosing."""
    await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease) as campaign:
        campaign.cancel()
        await until(lambda: absent(etcd, candidate(name, lease)))
    assert (await etcd.client.lease_time_to_live(lease)).TTL > 0


async def test_a_second_campaign_with_the_same_lease_wins_without_a_key(etcd: Etcd, name: bytes) -> None:
    """The second call shares the first one's key, so it wins with none when the first one is cancelled late."""
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease, member=1) as campaign, etcd.waiting(name, lease, member=2) as second:
        await asyncio.sleep(0.1)  # the second one's transaction finds the key of the first
        campaign.cancel()
        await until(lambda: absent(etcd, candidate(name, lease)))
        await etcd.client.resign(first)
        won = await second
    assert won.leader.lease == lease
    assert await etcd.key(won.leader.key) is None


async def absent(etcd: Etcd, key: bytes) -> bool | None:
    return True if await etcd.key(key) is None else None


async def test_campaign_errors_are_unknown_with_a_text(etcd: Etcd, name: bytes) -> None:
    """The Election API answers every error as UNKNOWN, and only the text tells them apart."""
    gone = await failure(etcd.campaign(name, 4242))
    assert (gone.code, gone.details) == (StatusCode.UNKNOWN, "etcdserver: requested lease not found")
    nobody = await failure(etcd.call(methods.LEADER, el.LeaderRequest(name=name)))
    assert (nobody.code, nobody.details) == (StatusCode.UNKNOWN, "election: no leader")
    keyless = await failure(etcd.call(methods.RESIGN, el.ResignRequest()))
    assert (keyless.code, keyless.details) == (StatusCode.UNKNOWN, '"leader" field must be provided')
    nobodys_key = el.LeaderKey(name=name, key=name + b"/1", rev=1, lease=1)
    loser = await failure(etcd.call(methods.PROCLAIM, el.ProclaimRequest(leader=nobodys_key, value=b"v")))
    assert (loser.code, loser.details) == (StatusCode.UNKNOWN, "election: not leader")


async def test_kv_and_lease_errors_have_codes(etcd: Etcd, name: bytes) -> None:
    """KV and Lease answer the same errors with the proper codes."""
    unattached = await failure(etcd.call(methods.PUT, rpc.PutRequest(key=name, value=b"v", lease=4242)))
    assert (unattached.code, unattached.details) == (StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
    lease = await etcd.lease()
    twice = await failure(etcd.call(methods.LEASE_GRANT, rpc.LeaseGrantRequest(TTL=60, ID=lease)))
    assert (twice.code, twice.details) == (StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")


async def test_the_client_maps_texts_and_codes_to_the_same_errors(etcd: Etcd, name: bytes) -> None:
    """An unknown lease is LeaseNotFound, and somebody else's key a plain refusal, whichever way etcd says it."""
    with pytest.raises(LeaseNotFound):
        await etcd.client.campaign(name, 4242, b"v")
    with pytest.raises(LeaseNotFound):
        await etcd.client.put(name, b"v", lease=4242)
    with pytest.raises(LeaseNotFound):
        await etcd.client.lease_revoke(4242)
    with pytest.raises(EtcdError, match="not leader") as refused:
        await etcd.client.proclaim(el.LeaderKey(name=name, key=name + b"/1", rev=1, lease=1), b"v")
    assert type(refused.value) is EtcdError
    assert not refused.value.indefinite


async def test_a_campaign_without_a_lease_gets_one_of_60_s(etcd: Etcd, name: bytes) -> None:
    """For lease 0 etcd makes a lease that nobody renews."""
    won = (await etcd.campaign(name, 0)).leader
    assert won.lease != 0
    assert (await etcd.client.lease_time_to_live(won.lease)).grantedTTL == 60


async def test_a_campaign_on_a_paused_member_hangs_though_its_key_leads(fresh_etcd: Etcd, name: bytes) -> None:
    """The answer of a Campaign may be late for ever: the win shows in the keys only."""
    etcd, (paused, other) = fresh_etcd, await followers(fresh_etcd.cluster)
    use(etcd.client, other)
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease, member=paused.index) as campaign:
        paused.pause()
        await etcd.client.delete(first.key)
        oldest = (await etcd.client.list(name + b"/")).kvs[0]
        assert oldest.key == candidate(name, lease)
        done, _ = await asyncio.wait({campaign}, timeout=0.5)
        assert not done
        paused.resume()
        assert (await campaign).leader.rev == oldest.create_revision


async def test_a_killed_member_leaves_the_key_queued(fresh_etcd: Etcd, name: bytes) -> None:
    """SIGKILL of the member that serves a Campaign: UNAVAILABLE at once, and the key still stands in the queue."""
    etcd, (killed, other) = fresh_etcd, await followers(fresh_etcd.cluster)
    use(etcd.client, other)
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease, member=killed.index) as campaign:
        killed.kill()
        lost = await failure(wait(campaign))
    assert lost.code is StatusCode.UNAVAILABLE
    await etcd.client.delete(first.key)
    oldest = (await etcd.client.list(name + b"/")).kvs[0]
    assert oldest.key == candidate(name, lease)


async def test_a_terminated_member_may_delete_the_key_and_may_wait_first(fresh_etcd: Etcd, name: bytes) -> None:
    """On SIGTERM new versions wait for 7 s and delete the key; old ones end at once, and it may stay or not."""
    etcd, (ended, other) = fresh_etcd, await followers(fresh_etcd.cluster)
    use(etcd.client, other)
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease, member=ended.index) as campaign:
        sent_at_s = time.monotonic()
        ended.terminate()
        lost = await failure(wait(campaign))
        took_s = time.monotonic() - sent_at_s
        assert await ended.wait_ended(5)
    assert lost.code is StatusCode.UNAVAILABLE
    left = [each.key for each in (await etcd.client.list(name + b"/")).kvs]
    if etcd.version >= (3, 5, 8) or (3, 4, 25) <= etcd.version < (3, 5):  # graceful since etcd #15446
        assert 5 < took_s < 10
        assert left == [first.key]
    else:
        assert took_s < 3
        assert left[:1] == [first.key]


async def wait(task: asyncio.Task[T]) -> T:
    return await task


def use(client: EtcdClient, member: Member) -> None:
    while client.member != member.index:
        client.avoid(client.member)


async def test_resigning_a_key_of_somebody_else_answers_ok(etcd: Etcd, name: bytes) -> None:
    """Resign compares the create revision and answers OK when it differs, so the caller has to read back."""
    won = await etcd.lead(name)
    mistaken = el.LeaderKey(name=name, key=won.key, rev=won.rev - 1, lease=won.lease)
    await etcd.call(methods.RESIGN, el.ResignRequest(leader=mistaken))
    held = await etcd.key(won.key)
    assert held is not None
    assert held.create_revision == won.rev


async def test_an_election_counts_the_keys_of_a_longer_name(etcd: Etcd, name: bytes) -> None:
    """Election `a` scans `a/`, so a candidate of `a/b` stands in its queue: names must not have slashes."""
    longer = await etcd.lead(name + b"/b")
    lease = await etcd.lease()
    async with etcd.waiting(name, lease) as campaign:
        done, _ = await asyncio.wait({campaign}, timeout=0.2)
        assert not done
        assert (await etcd.call(methods.LEADER, el.LeaderRequest(name=name))).kv.key == longer.key
        await etcd.client.resign(longer)
        assert (await campaign).leader.key == candidate(name, lease)


async def test_the_header_of_a_campaign_is_that_of_its_first_transaction(etcd: Etcd, name: bytes) -> None:
    """The answer's revision is that of joining the queue: it says nothing about the moment of winning."""
    first = await etcd.lead(name)
    lease = await etcd.lease()
    async with etcd.waiting(name, lease) as campaign:
        resigned = await etcd.client.resign(first)
        won = await campaign
    assert won.header.revision == won.leader.rev
    assert won.header.revision < resigned.header.revision


async def test_proclaim_is_a_compare_and_set_on_the_create_revision(etcd: Etcd, name: bytes) -> None:
    """Proclaim writes only while the key that was won exists, and a later key always has a larger revision."""
    lease = await etcd.lease()
    old = (await etcd.campaign(name, lease)).leader
    await etcd.call(methods.PROCLAIM, el.ProclaimRequest(leader=old, value=b"second"))
    assert (await etcd.call(methods.LEADER, el.LeaderRequest(name=name))).kv.value == b"second"
    await etcd.client.resign(old)
    new = (await etcd.campaign(name, lease)).leader
    assert new.key == old.key
    assert new.rev > old.rev
    refused = await failure(etcd.call(methods.PROCLAIM, el.ProclaimRequest(leader=old, value=b"third")))
    assert refused.details == "election: not leader"
    assert (await etcd.call(methods.LEADER, el.LeaderRequest(name=name))).kv.value == b"v"


# --- leases --------------------------------------------------------------------------------------------------


async def test_the_smallest_ttl_is_2_s(etcd: Etcd) -> None:
    """A TTL below 1.5 election timeouts is raised without a word, so the granted one has to be used."""
    assert (await etcd.call(methods.LEASE_GRANT, rpc.LeaseGrantRequest(TTL=1))).TTL == 2


async def test_an_unknown_lease_is_answered_in_three_ways(etcd: Etcd) -> None:
    """KeepAlive answers TTL 0, TimeToLive answers -1, and only Revoke answers an error."""
    stream = etcd.open(methods.LEASE_KEEP_ALIVE)
    await stream.write(rpc.LeaseKeepAliveRequest(ID=4242))
    assert (await read(stream)).TTL == 0
    stream.cancel()
    assert (await etcd.call(methods.LEASE_TIME_TO_LIVE, rpc.LeaseTimeToLiveRequest(ID=4242))).TTL == -1
    refused = await failure(etcd.call(methods.LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=4242)))
    assert refused.code is StatusCode.NOT_FOUND


async def test_all_keys_of_a_lease_go_in_one_revision(etcd: Etcd, name: bytes) -> None:
    """An expired lease takes all its keys along at once, after its TTL and never before."""
    lease = await etcd.lease(2)
    granted_at_s = time.monotonic()
    for number in range(5):
        put = await etcd.client.put(name + b"/%d" % number, b"v", lease=lease)
    create = rpc.WatchCreateRequest(
        key=name + b"/", range_end=range_end(name + b"/"), start_revision=put.header.revision + 1
    )
    async with etcd.watching(create) as stream:
        assert (await read(stream)).created
        gone = await read(stream)
    assert 1.9 < time.monotonic() - granted_at_s < 6
    assert [event.kv.key for event in gone.events] == [name + b"/%d" % number for number in range(5)]
    assert {event.type for event in gone.events} == {kv.Event.DELETE}
    assert len({event.kv.mod_revision for event in gone.events}) == 1


async def test_a_new_etcd_leader_gives_every_lease_its_full_ttl_again(fresh_etcd: Etcd) -> None:
    """A death may be noticed later than the TTL says when etcd's leader changes, and never earlier."""
    etcd = fresh_etcd
    lease = await etcd.lease(20)
    leader = await etcd.cluster.leader()
    await asyncio.sleep(1.5)
    before = await etcd.client.lease_time_to_live(lease)
    assert before.TTL <= 18
    statuses = {member.index: await etcd.client.status(member.index) for member in etcd.cluster.members}
    target = next(status for index, status in statuses.items() if index != leader.index)
    await etcd.call(methods.MOVE_LEADER, rpc.MoveLeaderRequest(targetID=target.header.member_id), member=leader.index)
    await until(lambda: longer(etcd, lease, 19))


async def longer(etcd: Etcd, lease: int, ttl_s: int) -> bool | None:
    try:
        found = await etcd.client.lease_time_to_live(lease)
    except EtcdUnavailable:
        return None
    return True if ttl_s <= found.TTL else None


# --- watches -------------------------------------------------------------------------------------------------


async def test_a_refused_watch_is_created_and_canceled_at_once(etcd: Etcd) -> None:
    """A watch that etcd will not serve is answered as created and canceled together, with the reason."""
    async with etcd.watching(rpc.WatchCreateRequest(key=b"b", range_end=b"a")) as stream:
        refused = await read(stream)
    assert refused.created
    assert refused.canceled
    assert refused.compact_revision == 0
    assert refused.cancel_reason == "mvcc: watcher range is empty"


async def test_a_watch_from_a_compacted_revision_is_canceled_with_it(single_etcd: EtcdCluster, name: bytes) -> None:
    """The cancellation names the revision up to which history is gone; a read of the past is OUT_OF_RANGE."""
    async with connected(single_etcd) as etcd:
        for _ in range(3):
            put = await etcd.client.put(name, b"v")
        await etcd.client.compact(put.header.revision)
        async with etcd.watching(rpc.WatchCreateRequest(key=name, start_revision=1)) as stream:
            answers = [await read(stream), await read(stream)]
        assert [(each.created, each.canceled) for each in answers] == [(True, False), (False, True)]
        assert answers[1].compact_revision == put.header.revision
        past = rpc.RangeRequest(key=name, revision=put.header.revision - 1)
        assert (await failure(etcd.call(methods.RANGE, past))).code is StatusCode.OUT_OF_RANGE
        with pytest.raises(Compacted):
            await etcd.client.range(past)


async def test_delete_events_carry_key_and_mod_revision_only(etcd: Etcd, name: bytes) -> None:
    """What a deleted key held, and whose lease it had, must be remembered by who watches."""
    lease = await etcd.lease()
    await etcd.client.put(name, b"v", lease=lease)
    async with etcd.watching(rpc.WatchCreateRequest(key=name)) as stream:
        assert (await read(stream)).created
        deleted = await etcd.client.delete(name)
        event = (await read(stream)).events[0]
    assert event == kv.Event(type=kv.Event.DELETE, kv=kv.KeyValue(key=name, mod_revision=deleted.header.revision))


async def test_a_progress_request_is_answered_without_events(etcd: Etcd, name: bytes) -> None:
    """An answer to a progress request is a sign of life of the whole stream: watch id -1 and no events."""
    async with etcd.watching(rpc.WatchCreateRequest(key=name)) as stream:
        assert (await read(stream)).created
        await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        answer = await read(stream)
    assert answer.watch_id == -1
    assert not answer.events


async def test_a_watch_from_a_coming_revision_has_no_progress(single_etcd: EtcdCluster, name: bytes) -> None:
    """New versions answer no progress request before the revision is reached at which a watch begins (etcd #20229)."""
    async with connected(single_etcd) as etcd:
        coming = (await etcd.client.put(name, b"v")).header.revision + 1
        async with etcd.watching(rpc.WatchCreateRequest(key=name, start_revision=coming)) as stream:
            assert (await read(stream)).created
            await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            answer = asyncio.create_task(read(stream))
            done, _ = await asyncio.wait({answer}, timeout=0.5)
            waits = (
                (3, 4, 38) <= etcd.version < (3, 5) or (3, 5, 22) <= etcd.version < (3, 6) or etcd.version >= (3, 6, 2)
            )
            assert bool(done) is not waits
            await etcd.client.put(name + b"-other", b"v")
            await stream.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            assert not (await answer).events


async def test_a_large_answer_comes_in_fragments(etcd: Etcd, name: bytes) -> None:
    """A watch that allows it gets many events in several answers, all but the last marked as fragments."""
    for number in range(4):
        put = await etcd.client.put(name + b"/%d" % number, b"v" * 900_000)
    create = rpc.WatchCreateRequest(
        key=name + b"/", range_end=range_end(name + b"/"), start_revision=put.header.revision - 3, fragment=True
    )
    async with etcd.watching(create) as stream:
        answers: list[rpc.WatchResponse] = []
        while sum(len(answer.events) for answer in answers) < 4:
            answers.append(await read(stream))
    assert [event.kv.key[-1:] for answer in answers for event in answer.events] == [b"0", b"1", b"2", b"3"]
    assert not answers[-1].fragment
    assert sum(answer.fragment for answer in answers) >= 1


async def test_only_streams_that_ask_for_it_end_when_a_member_is_cut_off(fresh_etcd: Etcd, name: bytes) -> None:
    """`hasleader` ends a stream with UNAVAILABLE after three election timeouts; others stay silent for ever."""
    etcd, (alone, other) = fresh_etcd, await followers(fresh_etcd.cluster)
    streams = [etcd.open(methods.WATCH, member=alone.index, has_leader=asked) for asked in (True, False)]
    for stream in streams:
        await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=name)))
        assert (await read(stream)).created
    (await etcd.cluster.leader()).kill()
    other.kill()
    assert (await failure(read(streams[0]))).code is StatusCode.UNAVAILABLE
    with pytest.raises(TimeoutError):
        await read(streams[1], timeout_s=0.3)
    streams[1].cancel()


# --- calls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_etcd() -> Iterator[EtcdCluster]:
    """One member that is full after some megabytes."""
    with started(extra_args=[f"--quota-backend-bytes={4 * 1024 * 1024}"]) as cluster:
        yield cluster


async def test_a_full_etcd_still_renews_revokes_and_deletes(small_etcd: EtcdCluster, name: bytes) -> None:
    """Under the NOSPACE alarm puts, grants and campaigns fail, while leases can be renewed and given up."""
    async with connected(small_etcd) as etcd:
        renewed, revoked = await etcd.lease(), await etcd.lease()
        leader = (await etcd.campaign(name, renewed)).leader
        await etcd.client.put(name + b"-revoked", b"v", lease=revoked)
        full = await fill(etcd, name)
        assert "alarm disarm" in str(full)
        assert not full.indefinite
        raw = await failure(etcd.call(methods.PUT, rpc.PutRequest(key=name, value=b"v")))
        assert (raw.code, raw.details) == (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
        with pytest.raises(NoSpace):
            await etcd.client.lease_grant(60)
        with pytest.raises(NoSpace):
            await etcd.client.campaign(name, revoked, b"v")
        with pytest.raises(NoSpace):
            await etcd.client.proclaim(leader, b"second")

        assert await etcd.key(leader.key) is not None
        stream = etcd.open(methods.LEASE_KEEP_ALIVE)
        await stream.write(rpc.LeaseKeepAliveRequest(ID=renewed))
        assert (await read(stream)).TTL == 60
        stream.cancel()
        await etcd.client.lease_revoke(revoked)
        assert await etcd.key(name + b"-revoked") is None
        assert (await etcd.client.delete(name + b"-0")).deleted == 1


async def fill(etcd: Etcd, name: bytes) -> NoSpace:
    """Writes until etcd is full, and returns what it says then; the alarm, which follows the refusal, is on."""
    for number in range(100):
        try:
            await etcd.client.put(name + b"-%d" % number, b"v" * 500_000)
        except NoSpace as full:
            async with asyncio.timeout(10):
                while not (await etcd.client.call(methods.ALARM, rpc.AlarmRequest())).alarms:
                    await asyncio.sleep(0.01)
            return full
    raise AssertionError("etcd took 50 MB")


async def test_a_full_etcd_runs_transactions_that_only_delete_since_3_5_7(small_etcd: EtcdCluster, name: bytes) -> None:
    """Under the NOSPACE alarm old versions refuse every Txn, so nobody can resign: revoking the lease still works."""
    async with connected(small_etcd) as etcd:
        leader = await etcd.lead(name)
        await fill(etcd, name)
        remove = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=name + b"-0"))
        if (3, 5) <= etcd.version < (3, 5, 7):  # etcd #14884
            with pytest.raises(NoSpace):
                await etcd.client.txn([], [remove])
            with pytest.raises(NoSpace):
                await etcd.client.resign(leader)
            await etcd.client.lease_revoke(leader.lease)
        else:
            assert (await etcd.client.txn([], [remove])).responses[0].response_delete_range.deleted == 1
            await etcd.client.resign(leader)
        assert await etcd.key(leader.key) is None


def unchanged(prefix: bytes, revision: int) -> rpc.Compare:
    return rpc.Compare(
        result=rpc.Compare.LESS,
        target=rpc.Compare.MOD,
        key=prefix,
        range_end=range_end(prefix),
        mod_revision=revision + 1,
    )


async def test_a_compare_of_a_range_holds_for_every_key_and_for_none(etcd: Etcd, name: bytes) -> None:
    """A comparison with range_end must hold for all keys of the range, and holds for an empty one."""
    prefix, seen = name + b"/", (await etcd.client.put(name, b"v")).header.revision
    assert (await etcd.client.txn([unchanged(prefix, seen)], [])).succeeded
    seen = (await etcd.client.put(prefix + b"a", b"v")).header.revision
    assert (await etcd.client.txn([unchanged(prefix, seen)], [])).succeeded
    await etcd.client.put(prefix + b"b", b"v")
    assert not (await etcd.client.txn([unchanged(prefix, seen)], [])).succeeded


async def test_a_transaction_has_128_operations_and_a_prefix_is_one(etcd: Etcd, name: bytes) -> None:
    """The deletion of a whole prefix counts as one of the 128 operations that each list of a Txn may have."""
    prefix = name + b"/"
    puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=prefix + b"%d" % number, value=b"v")) for number in range(129)]
    refused = await failure(etcd.call(methods.TXN, rpc.TxnRequest(success=puts)))
    assert (refused.code, refused.details) == (
        StatusCode.INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    )
    await etcd.client.txn([], puts[:128])
    await etcd.client.txn([], puts[128:])
    sweep = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=prefix, range_end=range_end(prefix)))
    swept = await etcd.client.txn([], [sweep])
    assert swept.responses[0].response_delete_range.deleted == 129


async def test_a_request_of_more_than_a_mebibyte_and_a_half_is_refused(etcd: Etcd, name: bytes) -> None:
    """etcd refuses the request before it proposes it, so the failure is definite."""
    with pytest.raises(EtcdError, match="request is too large") as refused:
        await etcd.client.put(name, b"v" * 1_600_000)
    assert not refused.value.indefinite


# --- users ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded_etcd() -> Iterator[EtcdCluster]:
    """One member with users: root, and alice and bob who may each write below their own name; tokens live 1 s."""
    with started(extra_args=["--bcrypt-cost=4", "--auth-token-ttl=1"]) as cluster:
        control = [str(find_binary("etcdctl")), f"--endpoints={cluster.endpoints[0]}"]
        commands = ["user add root:secret", "user grant-role root root"]
        for user in ("alice", "bob"):
            commands += [
                f"role add {user}",
                f"role grant-permission --prefix=true {user} readwrite /{user}/",
                f"user add {user}:secret",
                f"user grant-role {user} {user}",
            ]
        for command in ("role add root", *commands, "auth enable"):
            ran = subprocess.run([*control, *command.split()], capture_output=True, text=True, check=False)
            assert ran.returncode == 0, f"etcdctl {command}: {ran.stderr}"
        yield cluster


async def token(etcd: Etcd, user: str) -> str:
    return (await etcd.call(methods.AUTHENTICATE, rpc.AuthenticateRequest(name=user, password="secret"))).token


async def test_a_call_without_a_token_is_refused_by_its_text(guarded_etcd: EtcdCluster) -> None:
    """With users, a call of nobody is INVALID_ARGUMENT, one with a token that is not known UNAUTHENTICATED."""
    async with connected(guarded_etcd) as etcd:
        nobody = await failure(etcd.call(methods.RANGE, rpc.RangeRequest(key=b"/alice/key")))
        assert (nobody.code, nobody.details) == (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty")
        stranger = await failure(etcd.call(methods.RANGE, rpc.RangeRequest(key=b"/alice/key"), token="stale"))
        assert (stranger.code, stranger.details) == (
            StatusCode.UNAUTHENTICATED,
            "etcdserver: invalid auth token",
        )


async def test_a_watch_with_a_stale_token_is_refused_in_its_first_answer(guarded_etcd: EtcdCluster) -> None:
    """A watch's token is judged by no status but by `cancel_reason`; before 3.5.6 as a missing permission."""
    async with connected(guarded_etcd) as etcd:
        stream = etcd.open(methods.WATCH, token="stale")
        await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/alice/key")))
        refused = await read(stream)
        stream.cancel()
        assert refused.created
        assert refused.canceled
        if (3, 5) <= etcd.version < (3, 5, 6):  # etcd #14547
            assert refused.cancel_reason == "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        else:
            assert refused.cancel_reason == "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"


async def test_a_second_user_cannot_wait_on_the_same_member(guarded_etcd: EtcdCluster) -> None:
    """All Campaigns on a member wait by one shared watch, with the rights of the first; the key stays queued.

    Before 3.5.6 the refusal also ends the watch of the first one, whose Campaign then hangs for ever (etcd #14563).
    """
    async with connected(guarded_etcd) as etcd:
        alice, bob = await Candidate.join(etcd, "alice"), await Candidate.join(etcd, "bob")
        async with alice.waiting() as campaign:
            async with bob.waiting() as second:
                refused = await failure(wait(second))
            assert refused.code is StatusCode.UNKNOWN
            assert refused.details == "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
            assert await bob.queue() == [bob.first, bob.second]
            await alice.remove_first()
            done, _ = await asyncio.wait({campaign}, timeout=0.5)
            assert bool(done) is not ((3, 5) <= etcd.version < (3, 5, 6))
            assert await alice.queue() == [alice.second]


async def test_a_token_that_expires_while_waiting_fails_the_campaign(guarded_etcd: EtcdCluster) -> None:
    """The member looks at the caller's token again when it has waited, and leaves the key in the queue."""
    async with connected(guarded_etcd) as etcd:
        alice = await Candidate.join(etcd, "alice")
        async with alice.waiting() as campaign:
            await asyncio.sleep(2.2)  # a token lives for 1 s, and etcd looks every second
            await alice.remove_first()
            refused = await failure(wait(campaign))
        assert (refused.code, refused.details) == (StatusCode.UNKNOWN, "etcdserver: invalid auth token")
        assert await alice.queue() == [alice.second]


class Candidate:
    """A user with two keys in an election of their own; every call has a new token, as tokens end soon here."""

    def __init__(self, etcd: Etcd, user: str, leases: tuple[int, int]) -> None:
        self._etcd = etcd
        self._user = user
        self._leases = leases
        self._name = f"/{user}/election".encode()
        self.first, self.second = (candidate(self._name, lease) for lease in leases)

    @classmethod
    async def join(cls, etcd: Etcd, user: str) -> Candidate:
        """Wins the election with the first of the two keys."""
        leases = [
            await etcd.call(methods.LEASE_GRANT, rpc.LeaseGrantRequest(TTL=60), token=await token(etcd, user))
            for _ in range(2)
        ]
        joined = cls(etcd, user, (leases[0].ID, leases[1].ID))
        await etcd.campaign(joined._name, leases[0].ID, token=await token(etcd, user))
        return joined

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[asyncio.Task[el.CampaignResponse]]:
        """Campaigns with the second key."""
        call = self._etcd.campaign(self._name, self._leases[1], token=await token(self._etcd, self._user))
        async with pending(call) as campaign:
            await until(self._both)
            yield campaign

    async def queue(self) -> list[bytes]:
        prefix = self._name + b"/"
        request = rpc.RangeRequest(key=prefix, range_end=range_end(prefix), sort_target=rpc.RangeRequest.CREATE)
        request.sort_order = rpc.RangeRequest.ASCEND
        listed = await self._etcd.call(methods.RANGE, request, token=await token(self._etcd, self._user))
        return [each.key for each in listed.kvs]

    async def remove_first(self) -> None:
        request = rpc.DeleteRangeRequest(key=self.first)
        await self._etcd.call(methods.DELETE_RANGE, request, token=await token(self._etcd, "root"))

    async def _both(self) -> bool | None:
        return True if len(await self.queue()) == 2 else None
