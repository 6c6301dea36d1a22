"""Every fault is done once to a real etcd: something shows that it is in effect, and that it was taken back."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from election import connect
from election.config import EtcdConfig
from election.dev.etcd import Member
from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.faults.members import MEMBERS
from election.drill.faults.network import NETWORK
from election.drill.faults.operations import OPERATIONS
from election.drill.faults.restore import RESTORES
from election.drill.faults.strangers import STRANGERS
from election.drill.site import Site, open_site
from election.drill.vocabulary import Done
from election.epoch import read_epoch
from election.errors import AccessDenied, Compacted, EtcdError, EtcdUnavailable, LossReason, NoSpace
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.transport import GrpcTransport, RpcFailed
from election.keys import Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from tests.integration.ran import ELECTION, QUICK, Ran, leads, reason, standing, token

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]  # as long as the relays of the site

ALL: tuple[Fault[Stage], ...] = (*MEMBERS, *NETWORK, *OPERATIONS, *RESTORES, *STRANGERS)
FAULTS = {fault.name: fault for fault in ALL}
KEYSPACE = Keyspace("test")
KEY, LOST = b"/election/test/key", b"/election/test/lost"


@dataclass
class Tried:
    """A stage on which one fault is tried."""

    site: Site
    keyspace: Keyspace = KEYSPACE
    election: str = ELECTION
    rng: random.Random = field(default_factory=random.Random)
    hurt: list[str] = field(default_factory=list)
    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lost_at: int = 0
    observed: int = 0

    def on(self, who: str) -> None:
        self.hurt.append(who)

    def note(self, what: str, who: str = "", **more: Any) -> None:
        self.noted.append((what, {"who": who, **more}))

    @asynccontextmanager
    async def set_back(self, *, bumped: bool) -> AsyncGenerator[None]:
        self.note(Done.SET_BACK, bumped=bumped)
        self.lost_at = (await self.site.control.put(LOST, b"")).header.revision
        yield

    @property
    def member(self) -> Member:
        """The one that was hurt."""
        [who] = self.hurt
        return next(member for member in self.site.cluster.members if member.name == who.split()[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path) -> AsyncIterator[Site]:
    """Three members: whatever is done to them is taken back."""
    async with open_site(folder) as site:
        yield site


@asynccontextmanager
async def done(name: str, site: Site, keyspace: Keyspace = KEYSPACE, *, observed: int = 0) -> AsyncGenerator[Tried]:
    """Does a fault, which is said to whom, and takes it back; then all is well."""
    seed = random.randrange(10**6)
    sys.stdout.write(f"{name} with seed {seed}\n")
    tried = Tried(site, keyspace, rng=random.Random(seed), observed=observed)
    async with FAULTS[name].act(tried):
        assert len(tried.hurt) == 1
        yield tried
    assert all(member.running and not member.paused for member in site.cluster.members)
    for member in site.cluster.members:
        async with site.client_of(member) as client:
            await client.put(KEY, member.name.encode())


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.02)


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def refuses(member: Member, site: Site) -> bool:
    """Whether the member does not answer a linearizable read."""
    async with site.client_of(member) as client:
        return not await answers(client)


async def answers(client: EtcdClient, within_s: float = 1.0) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await client.get(KEY)
    except (EtcdUnavailable, TimeoutError):
        return False
    return True


async def another_leads(site: Site, member: Member) -> bool:
    try:
        return await site.cluster.leader(timeout_s=1.0) is not member
    except EtcdUnavailable:
        return False


async def took_s(call: Awaitable[object]) -> float:
    began_s = time.monotonic()
    await call
    return time.monotonic() - began_s


# --- members -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kill-etcd-leader", "pause-etcd-leader", "partition-leader", "partition-one-way"])
async def test_the_leader_in_etcd_is_hurt_and_another_one_leads(shared: Site, name: str) -> None:
    """The others elect, since they do not hear it or it has noticed that it hears nobody."""
    leader = await shared.cluster.leader()
    async with done(name, shared) as tried:
        assert tried.member is leader
        await until(lambda: another_leads(shared, leader))


@pytest.mark.parametrize("name", ["kill-etcd-leader", "pause-etcd-leader", "partition-leader"])
async def test_a_leader_in_etcd_that_is_hurt_serves_nobody(shared: Site, name: str) -> None:
    """It answers no linearizable read once it is dead, stands still or is alone."""
    async with done(name, shared) as tried:
        await until(lambda: refuses(tried.member, shared))


@pytest.mark.parametrize("name", ["kill-etcd-follower", "pause-etcd-follower"])
async def test_a_follower_is_hurt_and_its_leader_leads_on(shared: Site, name: str) -> None:
    """Only the member itself answers nobody."""
    leader = await shared.cluster.leader()
    async with done(name, shared) as tried:
        assert tried.member is not leader
        assert await refuses(tried.member, shared)
        assert await answers(shared.control, 5.0)
        assert await shared.cluster.leader() is leader


@pytest.mark.parametrize("name", ["kill-etcd-majority", "kill-etcd-all", "pause-etcd-majority"])
async def test_without_a_quorum_nobody_is_answered(shared: Site, name: str) -> None:
    """Neither of the members that are left answers a linearizable read."""
    async with done(name, shared) as tried:
        assert len(tried.hurt[0].split(", ")) == (3 if name == "kill-etcd-all" else 2)
        for member in shared.cluster.members:
            assert await refuses(member, shared)


async def test_a_leader_in_etcd_ends_in_order(shared: Site) -> None:
    """It is a process of its own that serves afterwards, and the one before was not killed."""
    pid = (await shared.cluster.leader()).pid
    async with done("restart-etcd-leader", shared) as tried:
        assert not tried.member.running
        assert tried.member.exit_code != -9
    assert tried.member.pid != pid


async def test_a_leader_in_etcd_stands_still_for_short_times(shared: Site) -> None:
    """Writes take long now and then, and in between they are done."""
    async with done("fsync-stall", shared) as tried:
        states = set()
        for _ in range(40):
            states.add(tried.member.paused)
            await asyncio.sleep(0.05)
        assert states == {True, False}


# --- the network ---------------------------------------------------------------------------------------------


async def test_three_members_in_a_line_are_led_from_its_end(shared: Site) -> None:
    """The member at the other end does not hear its leader, and has none or makes that the others elect."""
    leader = await shared.cluster.leader()
    async with done("partition-ring", shared) as tried:
        far = tried.hurt[0].split(" - ")[-1]
        [member] = [member for member in shared.cluster.members if member.name == far]

        async def felt() -> bool:
            return await refuses(member, shared) or await another_leads(shared, leader)

        await until(felt)
        await until(lambda: answers(shared.control, 5.0))


async def test_five_members_in_a_ring_go_on(tmp_path: Path) -> None:
    """Each reaches two others, which is a majority, so that whoever leads can lead on."""
    async with open_site(tmp_path, members=5) as site, done("partition-ring", site) as tried:
        assert len(tried.hurt[0].split(" - ")) == 5
        parted = [one for one in range(5) for other in range(one) if site.peers.parted(one, other)]
        assert len(parted) == 5
        await until(lambda: answers(site.control, 5.0))


async def test_members_answer_late_when_their_network_is_slow(shared: Site) -> None:
    """A write needs a round trip between members."""
    async with done("slow-peers", shared):
        await until(lambda: answers(shared.control, 5.0))
        assert await took_s(shared.control.put(KEY, b"")) > 2 * 0.05


@asynccontextmanager
async def client_behind_links(site: Site) -> AsyncGenerator[EtcdClient]:
    """The one process that has links."""
    config = EtcdConfig(await site.endpoints_for("only"), call_timeout_s=1.5)
    async with EtcdClient(config) as client:
        await client.get(KEY)
        yield client


async def one_answers(client: EtcdClient, member: int) -> bool:
    try:
        await client.status(member)
    except EtcdError:
        return False
    return True


async def test_a_process_cannot_reach_one_member(shared: Site) -> None:
    """The others serve it."""
    async with client_behind_links(shared) as client:
        async with done("partition-client-from-one", shared):
            reached = [await one_answers(client, member) for member in range(3)]
            assert sorted(reached) == [False, True, True]
            assert await answers(client, 3.0)
        assert [await one_answers(client, member) for member in range(3)] == [True] * 3


@pytest.mark.parametrize("name", ["partition-client-from-all", "one-way-client"])
async def test_a_process_hears_no_member(shared: Site, name: str) -> None:
    """What it writes meanwhile is done when only the answers are held, and not known to anybody otherwise."""
    async with client_behind_links(shared) as client:
        await client.put(KEY, b"before")
        async with done(name, shared):
            with pytest.raises(EtcdUnavailable):
                await client.put(KEY, b"after")
            found, _ = await shared.control.get(KEY)
            assert found is not None
            assert found.value == (b"after" if name == "one-way-client" else b"before")
        await until(lambda: answers(client))


async def test_processes_wait_when_their_network_is_slow(shared: Site) -> None:
    """A read takes a round trip longer."""
    async with client_behind_links(shared) as client:
        async with done("slow-clients", shared):
            assert await took_s(client.get(KEY)) > 2 * 0.05

        async def is_quick() -> bool:
            return await took_s(client.get(KEY)) < 2 * 0.05

        await until(is_quick, 5.0)


async def test_all_connections_of_a_process_are_reset(shared: Site) -> None:
    """What it waits for ends at once, and what it asks afterwards goes over new connections."""
    async with client_behind_links(shared) as client:
        _, stream = await client.open(methods.WATCH)
        create = rpc.WatchCreateRequest(key=KEY)
        await stream.write(rpc.WatchRequest(create_request=create))
        created = await stream.read()
        assert created is not None
        assert created.created
        async with done("reset-clients", shared):
            with pytest.raises(RpcFailed):
                await asyncio.wait_for(stream.read(), 1.0)
        await until(lambda: answers(client))


# --- operations ----------------------------------------------------------------------------------------------


async def test_history_is_forgotten(shared: Site) -> None:
    """Who asks for what was before learns that it is compacted."""
    before = await shared.control.put(KEY, b"")
    last = await shared.control.put(KEY, b"")
    async with done("compact", shared, observed=last.header.revision):
        with pytest.raises(Compacted):
            await shared.control.range(rpc.RangeRequest(key=KEY, revision=before.header.revision))


async def test_databases_are_rewritten(shared: Site) -> None:
    """What was deleted takes no room any more, in none of the members."""
    for number in range(80):
        await shared.control.put(b"/large/%d" % number, bytes(100_000))
    deleted = await shared.control.delete(b"/large/", b"/large0")
    await shared.control.compact(deleted.header.revision)
    assert await smallest(shared) > 4_000_000
    async with done("defragment", shared):
        assert await largest(shared) < 2_000_000


async def sizes(site: Site) -> list[int]:
    return [(await site.control.status(member.index)).dbSize for member in site.cluster.members]


async def smallest(site: Site) -> int:
    return min(await sizes(site))


async def largest(site: Site) -> int:
    return max(await sizes(site))


async def test_an_etcd_that_is_full_takes_no_writes(shared: Site) -> None:
    """It answers reads, and deletes."""
    async with done("no-space", shared):
        with pytest.raises(NoSpace):
            await shared.control.put(KEY, b"")
        assert await answers(shared.control)


async def test_another_member_is_told_to_lead(shared: Site) -> None:
    """Nobody has died, and the term of raft is another one."""
    leader = await shared.cluster.leader()
    term = (await shared.control.status(leader.index)).raftTerm
    async with done("move-etcd-leader", shared):
        assert await shared.cluster.leader() is not leader
        assert (await shared.control.status(leader.index)).raftTerm > term


async def test_a_member_is_replaced_by_a_new_one(shared: Site) -> None:
    """It has another id in the same place, and all data; in between etcd has a member less."""
    await shared.control.put(KEY, b"from before")
    before = await ids(shared)
    async with done("replace-member", shared) as tried:
        assert not tried.member.running
        assert len(await ids(shared)) == 2
        assert await answers(shared.control, 5.0)
    after = await ids(shared)
    assert len(after) == 3
    assert len(after & before) == 2
    found = await shared.control.range(rpc.RangeRequest(key=b"/election/", range_end=b"/election0"))
    async with shared.client_of(tried.member) as client:
        assert (await client.range(rpc.RangeRequest(key=b"/election/", range_end=b"/election0"))).kvs == found.kvs


async def ids(site: Site) -> set[int]:
    listed = await site.control.call(methods.MEMBER_LIST, rpc.MemberListRequest())
    return {each.ID for each in listed.members}


# --- etcd with users -----------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Three members with users."""
    async with open_site(tmp_path_factory.mktemp("guarded"), auth=True) as site:
        yield site


async def test_members_forget_the_tokens_of_processes(guarded: Site) -> None:
    """A token that was good is refused by every member; a client gets another one by itself, and may what it might."""
    assert guarded.user is not None
    user, password = guarded.user
    async with EtcdClient(EtcdConfig(guarded.cluster.endpoints, user=user, password=password)) as client:
        transport = GrpcTransport(client.config)
        asked = rpc.AuthenticateRequest(name=user, password=password)
        answer = await transport.unary(0, methods.AUTHENTICATE, asked, timeout_s=5.0, metadata=())

        async def is_known(member: int) -> bool:
            request, token = rpc.RangeRequest(key=KEY), ("token", answer.token)
            try:
                await transport.unary(member, methods.RANGE, request, timeout_s=5.0, metadata=(token,))
            except RpcFailed as refused:
                return "invalid auth token" not in refused.details
            return True

        try:
            await client.put(KEY, b"")
            assert [await is_known(member) for member in range(3)] == [True] * 3
            async with done("auth-token-expired", guarded):
                assert [await is_known(member) for member in range(3)] == [False] * 3
                await client.put(KEY, b"")
                with pytest.raises(AccessDenied):
                    await client.put(b"/elsewhere", b"")
        finally:
            await transport.close()


# --- etcd that is set back -----------------------------------------------------------------------------------


async def is_set_back(site: Site) -> None:
    """Restores a snapshot, and checks what has become of a write that came after it."""
    await site.control.put(KEY, b"in the snapshot")
    before = (await read_epoch(site.control, KEYSPACE)).epoch
    async with done("restore-snapshot", site) as tried:
        assert tried.noted == [(Done.SET_BACK, {"who": "", "bumped": False})]
        found, header = await site.control.get(LOST)
        assert found is None
        assert header.revision < tried.lost_at
        kept, _ = await site.control.get(KEY)
        assert kept is not None
        assert kept.value == b"in the snapshot"
        assert (await read_epoch(site.control, KEYSPACE)).epoch == before
    assert tried.noted[1:] == [(Done.EPOCH_RAISED, {"who": "", "epoch": before + 1})]
    assert (await read_epoch(site.control, KEYSPACE)).epoch == before + 1


async def test_etcd_is_set_back(shared: Site) -> None:
    """What was acknowledged after the snapshot is gone, revisions begin again, and the operator raises the epoch."""
    await is_set_back(shared)


async def test_an_etcd_with_users_is_set_back(guarded: Site) -> None:
    """The snapshot is taken, and the epoch raised, as root.

    Members do not refuse a token of after the snapshot, they wait until their index is as high: a client that has one
    gets a new one when nothing is answered.
    """
    assert guarded.user is not None
    user, password = guarded.user
    async with EtcdClient(EtcdConfig(guarded.cluster.endpoints, user=user, password=password)) as client:
        for _ in range(10):
            await guarded.control.put(KEY, b"")
        await client.put(KEY, b"")
        await is_set_back(guarded)
        await asyncio.sleep(2)
        await until(lambda: answers(client, 10))


async def test_etcd_is_set_back_and_its_revisions_go_on(shared: Site) -> None:
    """What was acknowledged after the snapshot is gone, and no revision is handed out again."""
    if why := FAULTS["restore-snapshot-bumped"].unavailable():
        pytest.skip(why)
    async with done("restore-snapshot-bumped", shared) as tried:
        found, header = await shared.control.get(LOST)
        assert found is None
        assert header.revision > tried.lost_at
    assert tried.noted == [(Done.SET_BACK, {"who": "", "bumped": True})]


# --- strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"), [("rob-leader-key", "key"), ("rob-leader-lease", "lease"), ("rob-candidate-key", "key")]
)
async def test_a_candidate_is_robbed(shared: Site, namespace: str, name: str, how: str) -> None:
    """The leader loses its term, and the next one leads; who waits queues anew, and the leader leads on."""
    async with connect(shared.cluster.endpoints, namespace=namespace) as store:
        ran, candidates = Ran(), [store.candidate(ELECTION, id=each, config=QUICK) for each in ("a", "b")]
        async with standing(ran, *candidates):
            leader = await leads(ran, *candidates)
            [waiting] = [candidate for candidate in candidates if candidate is not leader]
            await soon(lambda: token(waiting) > 0)
            robbed = waiting if name == "rob-candidate-key" else leader
            before = token(robbed)
            async with done(name, shared, Keyspace(namespace)) as tried:
                assert tried.hurt == [robbed.id]
                assert tried.noted == [(Done.ROBBED, {"who": robbed.id, "token": f"0-{before}", "how": how})]
                await soon(lambda: token(robbed) > before)
            assert (await leads(ran, *candidates) is leader) == (robbed is waiting)
            if robbed is leader:
                assert reason(robbed) is LossReason.KEY_DELETED


# --- all of them ---------------------------------------------------------------------------------------------


async def test_each_fault_says_what_it_is() -> None:
    """In one line, under a name that no other has."""
    assert len({fault.name for fault in ALL}) == len(ALL)
    assert all(fault.about and "\n" not in fault.about and len(fault.about) < 80 for fault in ALL)
    assert all(0 <= fault.hold_s[0] <= fault.hold_s[1] <= 6 for fault in ALL)


@pytest.mark.parametrize("name", ["kill-etcd-majority", "partition-leader", "partition-client-from-all"])
async def test_a_fault_that_is_cancelled_is_taken_back(shared: Site, name: str) -> None:
    """As when the drill ends early."""
    entered = asyncio.Event()

    async def hold() -> None:
        async with done(name, shared):
            entered.set()
            await asyncio.Event().wait()

    async with client_behind_links(shared) as client:
        holding = asyncio.create_task(hold())
        await entered.wait()
        holding.cancel()
        await asyncio.wait({holding})
        assert holding.cancelled()
        await shared.cluster.wait_healthy(5.0)
        await until(lambda: answers(client), 5.0)


async def test_who_is_not_there_cannot_be_hurt(tmp_path: Path) -> None:
    """A fault of processes is skipped while there are none, before it says on whom it is."""
    async with open_site(tmp_path) as site:
        for fault in ALL:
            if fault.lane is Lane.CLIENTS:
                tried = Tried(site)
                with pytest.raises(Nobody):
                    await fault.act(tried).__aenter__()
                assert not tried.hurt
