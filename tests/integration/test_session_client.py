"""`Client.session` and `Client.care` against several servers, over real sockets and a real etcd."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

import pytest

from election.agent_control import Drained, Reaped
from election.agent_records import AgentState
from election.agent_restore import Restored
from election.client import Client, dial
from election.client.care import Care, EtcdCare
from election.client.servers import ServerUnavailable
from election.config import AgentConfig, CollectorConfig
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.errors import (
    AgentAlive,
    AgentExists,
    AgentLost,
    AgentUnknown,
    CollectorSilent,
    ConfigError,
    LossReason,
    StateExists,
)
from election.keys import REGISTRATION
from election.server.serving import GrpcServer
from election.store import Store, connect

pytestmark = pytest.mark.etcd

CONFIG = AgentConfig(ttl_s=6, retry_max_s=1.0)


async def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


@dataclass
class Process:
    """`election serve` as a process of its own."""

    process: asyncio.subprocess.Process
    address: str

    @classmethod
    async def started(cls, cluster: EtcdCluster, namespace: str) -> Self:
        where = ["--endpoints", ",".join(cluster.endpoints), "--namespace", namespace]
        command = [sys.executable, "-m", "election.cli", "serve", "--no-collect", "--grpc-port", "0", "-o", "json"]
        process = await asyncio.create_subprocess_exec(
            *bound_to_this_process([*command, *where]), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        return cls(process, json.loads(line)["grpc"])

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()


@dataclass
class Api:
    """A store, to look at etcd, and a client of two servers."""

    store: Store
    client: Client
    servers: list[GrpcServer]

    async def alive(self, agent: str = "w") -> int:
        found, _ = await self.store.client.get(self.store.keyspace.alive(agent))
        return found.create_revision if found else 0

    async def stored(self, agent: str = "w") -> dict[str, bytes]:
        prefix = self.store.keyspace.states(agent)
        found = {kv.key[len(prefix) :].decode(): kv.value for kv in (await self.store.client.list(prefix)).kvs}
        found.pop(REGISTRATION, None)
        return found

    async def leave_behind(self, agent: str, **values: str) -> int:
        """What a dead agent leaves; returns its incarnation."""
        async with self.store.agent(agent) as living:
            for key, value in values.items():
                await living.put(key, value)
            return living.incarnation


@pytest.fixture
async def api(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Api]:
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(2):
            store = await stack.enter_async_context(connect(etcd_cluster.endpoints, namespace=namespace))
            view = await stack.enter_async_context(store.view())
            servers.append(await stack.enter_async_context(GrpcServer(view, port=0, store=store)))
        client = await stack.enter_async_context(dial([server.address for server in servers]))
        yield Api(store, client, servers)


@asynccontextmanager
async def collecting(store: Store) -> AsyncGenerator[None]:
    """A collector that waits for orders."""
    collector = store.collector(id="k", config=CollectorConfig(grace_s=3600))
    running = asyncio.create_task(collector.run())
    try:
        await until(lambda: collector.candidate.is_leader)
        yield
    finally:
        collector.leave()
        await running


# --- sessions ------------------------------------------------------------------------------------------------------


async def test_an_agent_lives_through_the_api(api: Api) -> None:
    """It registers, stores, is seen by others, learns that it is to drain, and leaves."""
    async with api.client.session("w", address="h:1", labels={"zone": "a"}, config=CONFIG) as session:
        assert session.check().incarnation == await api.alive()
        await session.put("task", "x")
        await session.put("binary", b"\xff")
        await session.delete("binary")
        assert await api.stored() == {"task": b"x"}
        assert not session.draining
        assert (await api.client.care.drain("w")).changed
        await until(lambda: session.draining)
        with pytest.raises(AgentExists):
            await api.client.session("w", config=CONFIG).__aenter__()
        with pytest.raises(ConfigError):
            await session.put("task", b"x" * 65537)
        found = (await api.client.agent("w")).value
        assert found is not None
        assert (found[0].state, found[0].address, dict(found[0].labels)) == (AgentState.DRAINING, "h:1", {"zone": "a"})
    assert await api.alive() == 0
    assert await api.stored() == {"task": b"x"}
    async with api.client.session("w", config=AgentConfig(ttl_s=6, keep_state=False)):
        pass
    assert await api.stored() == {}


async def test_a_session_goes_on_when_its_server_shuts_down(api: Api) -> None:
    """At the other one, as the same incarnation; what is written while it does is written."""
    async with api.client.session("w", config=CONFIG) as session:
        first = session.check()
        server = next(each for each in api.servers if each.address == api.client.address)
        ending = asyncio.create_task(server.__aexit__(None, None, None))
        for i in range(50):
            await session.put("n", str(i))
        await ending
        assert session.check() == first
        assert await api.stored() == {"n": b"49"}
        assert api.client.address != server.address
        await asyncio.sleep(CONFIG.ttl_s)
        assert session.check() == first


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=lambda kind: kind.name)
async def test_a_server_that_is_killed_or_hangs_costs_no_life(
    etcd_cluster: EtcdCluster, namespace: str, kind: signal.Signals
) -> None:
    """Another process goes on with the session; writes under way are written, in their order."""
    processes = await asyncio.gather(*(Process.started(etcd_cluster, namespace) for _ in range(2)))
    try:
        async with (
            connect(etcd_cluster.endpoints, namespace=namespace) as store,
            dial([each.address for each in processes]) as client,
            client.session("w", config=CONFIG) as session,
        ):
            first = session.check()
            [victim] = [each for each in processes if each.address == client.address]
            for i in range(200):
                if i == 50:
                    victim.process.send_signal(kind)
                await session.put("n", str(i))
            if kind is signal.SIGSTOP:
                victim.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(CONFIG.ttl_s + 2)
            assert session.check() == first
            found, _ = await store.client.get(store.keyspace.state("w", "n"))
            assert found is not None
            assert found.value == b"199"
    finally:
        await asyncio.gather(*(each.end() for each in processes))


async def test_a_lease_that_has_ended_begins_a_new_incarnation(api: Api) -> None:
    """Whoever waits is told of the loss; what is written in between is refused."""
    async with api.client.session("w", config=CONFIG) as session:
        first = session.check()
        await api.store.client.lease_revoke(first.lease)
        with pytest.raises(AgentLost):
            await session.put("task", "x")
        assert await session.lost is LossReason.KEY_DELETED
        await until(lambda: session.registration is not None)
        assert session.incarnation > first.incarnation
        assert session.incarnation == await api.alive()
        await session.put("task", "y")


async def test_a_takeover_is_said_once(api: Api) -> None:
    """The one that was alive through etcd loses its life to the session, and does not take it back."""
    async with (
        api.store.agent("w", config=AgentConfig(ttl_s=6, register_again=False)) as old,
        api.client.session("w", config=CONFIG, takeover=True) as session,
    ):
        assert session.incarnation > old.incarnation
        assert await old.lost in (LossReason.KEY_DELETED, LossReason.EXPIRED)
        assert session.incarnation == await api.alive()


async def test_without_a_server_entering_says_so(lone_address: str) -> None:
    """Within the time that a call may take."""
    async with Client(lone_address, call_timeout_s=1.0) as client:
        with pytest.raises(ServerUnavailable, match=lone_address):
            await client.session("w").__aenter__()


@pytest.fixture
def lone_address() -> str:
    """Where nothing listens."""
    return "127.0.0.1:1"


# --- care ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["etcd", "api"])
def care(api: Api, request: pytest.FixtureRequest) -> Care:
    """Both ways to take care of agents, which answer the same."""
    return api.client.care if request.param == "api" else EtcdCare(api.store.client, api.store.keyspace, by="me")


async def test_an_agent_is_let_drain_and_take_work_again(api: Api, care: Care) -> None:
    """Who asked is kept, and told to those who ask again."""
    with pytest.raises(AgentUnknown, match="'w' is not known"):
        await care.drain("w")
    async with api.store.agent("w"):
        done = await care.drain("w")
        assert done == Drained("w", True, True, done.mark)
        assert done.mark is not None
        assert done.mark.by == "me" if isinstance(care, EtcdCare) else done.mark.by.startswith("anonymous")
        assert done.mark.at is not None
        again = await care.drain("w")
        assert (again.changed, again.mark and again.mark.by) == (False, done.mark.by)
        undone = await care.undrain("w")
        assert (undone.draining, undone.changed, undone.mark and undone.mark.by) == (False, True, done.mark.by)
        assert await care.undrain("w") == Drained("w", False, False, None)
        assert done.revision <= again.revision < undone.revision


async def test_a_dead_agent_is_reaped_and_put_back(api: Api, care: Care) -> None:
    """What would be collected is told before, and is what comes back."""
    incarnation = await api.leave_behind("w", task="x", more="y")
    found = await care.remains("w")
    assert (found.incarnation, [entry.key for entry in found.entries]) == (incarnation, ["more", REGISTRATION, "task"])
    with pytest.raises(CollectorSilent, match="run `election collect`"):
        await care.reap("w", timeout_s=0.5)
    assert (await api.store.client.get(api.store.keyspace.reap_request("w")))[0] is None
    async with collecting(api.store):
        done = await care.reap("w", timeout_s=15)
        assert done == Reaped("w", incarnation, done.tombstones)
        [tombstone] = done.tombstones
        collected = {entry.key: entry.value for entry in tombstone.collected if entry.key != REGISTRATION}
        assert collected == {"task": b"x", "more": b"y"}
        with pytest.raises(AgentUnknown, match="nothing to reap"):
            await care.reap("w", timeout_s=5)
    await api.store.client.put(api.store.keyspace.state("w", "task"), b"other")
    with pytest.raises(StateExists, match="task") as raised:
        await care.restore("w")
    assert raised.value.keys == ("task",)
    restored = await care.restore("w", incarnation=incarnation, overwrite=True)
    assert restored == Restored("w", incarnation, restored.written, (), False)
    assert set(restored.written) == {"task", "more", REGISTRATION}
    assert await api.stored() == {"task": b"x", "more": b"y"}
    with pytest.raises(AgentUnknown):
        await care.restore("w", incarnation=7)


async def test_nothing_alive_is_reaped(api: Api, care: Care) -> None:
    """Neither for real nor as a rehearsal."""
    async with api.store.agent("w"):
        with pytest.raises(AgentAlive):
            await care.reap("w", timeout_s=5)
        with pytest.raises(AgentAlive):
            await care.remains("w")
    for wrong in ("a/b", ""):
        with pytest.raises(ConfigError):
            await care.remains(wrong)


async def test_a_reap_that_is_given_up_is_withdrawn(api: Api, care: Care) -> None:
    """Also when the caller goes away: nothing is collected later that nobody waits for."""
    await api.leave_behind("w", task="x")
    request = api.store.keyspace.reap_request("w")
    asking = asyncio.create_task(care.reap("w", timeout_s=30))
    async with asyncio.timeout(10):
        while (await api.store.client.get(request))[0] is None:
            await asyncio.sleep(0.02)
        asking.cancel()
        while (await api.store.client.get(request))[0] is not None:
            await asyncio.sleep(0.02)
    assert asking.cancelled() or asking.cancelling()
