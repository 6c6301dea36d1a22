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

from election.config import EtcdConfig
from election.dev.etcd import Member
from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.faults.members import MEMBERS
from election.drill.faults.network import NETWORK
from election.drill.site import Site, open_site
from election.errors import EtcdError, EtcdUnavailable
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed
from election.keys import Keyspace
from election.pb.etcd import rpc_pb2 as rpc

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]  # as long as the relays of the site

ALL: tuple[Fault[Stage], ...] = (*MEMBERS, *NETWORK)
FAULTS = {fault.name: fault for fault in ALL}
KEY = b"/election/test/key"


@dataclass
class Tried:
    """A stage on which one fault is tried."""

    site: Site
    keyspace: Keyspace = field(default_factory=lambda: Keyspace("test"))
    election: str = "demo"
    rng: random.Random = field(default_factory=random.Random)
    hurt: list[str] = field(default_factory=list)
    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def on(self, who: str) -> None:
        self.hurt.append(who)

    def note(self, what: str, who: str = "", **more: Any) -> None:
        self.noted.append((what, {"who": who, **more}))

    @asynccontextmanager
    async def set_back(self, *, bumped: bool) -> AsyncGenerator[None]:
        self.note("set back", bumped=bumped)
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
async def done(name: str, site: Site) -> AsyncGenerator[Tried]:
    """Does a fault, which is said to whom, and takes it back; then all is well."""
    seed = random.randrange(10**6)
    sys.stdout.write(f"{name} with seed {seed}\n")
    tried = Tried(site, rng=random.Random(seed))
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
        assert await answers(shared.control, 5.0)


async def test_five_members_in_a_ring_go_on(tmp_path: Path) -> None:
    """Each reaches two others, which is a majority, so that whoever leads can lead on."""
    async with open_site(tmp_path, members=5) as site, done("partition-ring", site) as tried:
        assert len(tried.hurt[0].split(" - ")) == 5
        parted = [one for one in range(5) for other in range(one) if site.peers.parted(one, other)]
        assert len(parted) == 5
        assert await answers(site.control, 5.0)


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
