"""etcd with users: who may use one prefix and no more stands, works and watches over many short-lived tokens."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from election import AccessDenied, AgentConfig, Candidate, CandidateConfig, CollectorConfig, Store, Term, fenced_txn
from election.collector import Collector
from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, find_binary
from election.etcd import methods, txn
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import GrpcTransport, Metadata, RpcFailed, Stream
from election.etcd.watch import Changes, Heard, watch
from election.leadership import Leading
from election.reader import LeaderEvent, LeaderEventKind
from election.views import View
from tests.integration.ran import CLOCK, ELECTION, Ran, leading, leads, standing, until, until_true
from tests.integration.test_etcd_client import backoff

pytestmark = pytest.mark.etcd

T = TypeVar("T")
BRIEF = CandidateConfig(ttl_s=5)
SIMPLE_TOKEN_S, JWT_S = 1, 2
"""How long a token lives here: one of etcd's own after its last use, a JWT after it was made."""

QUIET_S = 3.2
"""Nothing is asked for so long that a token is over: etcd looks every second, and a JWT counts whole ones."""


class Watched:
    """The way to etcd, and what it refused on it."""

    def __init__(self, transport: GrpcTransport) -> None:
        self._transport = transport
        self.refused: list[tuple[str, str]] = []
        self.authenticated = 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        """As the real one."""
        return self._transport.endpoints

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        """Notes a refusal and passes it on."""
        self.authenticated += method.path == methods.AUTHENTICATE.path
        try:
            return await self._transport.unary(member, method, request, timeout_s=timeout_s, metadata=metadata)
        except RpcFailed as failure:
            self.refused.append((method.path, failure.details))
            raise

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        """As the real one."""
        return self._transport.stream(member, method, metadata=metadata)

    async def close(self) -> None:
        """As the real one."""
        await self._transport.close()


@asynccontextmanager
async def store_of(user: str, cluster: EtcdCluster, namespace: str) -> AsyncIterator[tuple[Store, Watched]]:
    """A connection of a user."""
    config = EtcdConfig(cluster.endpoints, user=user, password="secret")
    watched = Watched(GrpcTransport(config))
    async with Store(config, namespace, transport=watched) as store:
        yield store, watched


@asynccontextmanager
async def guarded(tokens: str = "simple") -> AsyncIterator[EtcdCluster]:
    """One member with the user root, and with tokens that do not live long."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as name:
        folder = Path(name)
        arguments = ["--bcrypt-cost=4", f"--auth-token-ttl={SIMPLE_TOKEN_S}"]
        if tokens == "jwt":
            private, public = folder / "jwt.key", folder / "jwt.pub"
            openssl("genrsa", "-out", str(private), "2048")
            openssl("rsa", "-in", str(private), "-pubout", "-out", str(public))
            keys = f"pub-key={public},priv-key={private}"
            arguments.append(f"--auth-token=jwt,{keys},sign-method=RS256,ttl={JWT_S}s")
        started = await EtcdCluster.start(data_dir=folder / "data", members=1, extra_args=arguments)
        async with started as cluster:
            await etcdctl(cluster, "user add root:secret", "role add root", "user grant-role root root", "auth enable")
            cluster.credentials = ("root", "secret")
            yield cluster


def openssl(*arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the keys of this test")
    subprocess.run(["openssl", *arguments], capture_output=True, check=True)


async def etcdctl(cluster: EtcdCluster, *commands: str, says: str = "") -> None:
    program = [str(find_binary("etcdctl")), f"--endpoints={cluster.endpoints[0]}"]
    if cluster.credentials:
        program.append("--user=" + ":".join(cluster.credentials))
    for command in commands:
        ran = await asyncio.to_thread(
            subprocess.run,
            [*program, *command.split()],
            input=says, capture_output=True, text=True, check=False, env={"ETCDCTL_API": "3"},
        )  # fmt: skip
        assert ran.returncode == 0, f"etcdctl {command}: {ran.stderr}"


async def permit(cluster: EtcdCluster, namespace: str, *users: str, what: str = "readwrite") -> None:
    """Makes users who may use one namespace and nothing else."""
    for user in users:
        await etcdctl(
            cluster,
            *(f"role add {user}", f"user add {user}:secret", f"user grant-role {user} {user}"),
            f"role grant-permission --prefix=true {user} {what} /election/{namespace}/",
        )


async def queue(store: Store) -> list[int]:
    """The create revisions of the candidates' keys, oldest first."""
    listed = await store.client.list(store.keyspace.campaign(ELECTION))
    return [each.create_revision for each in listed.kvs]


async def renewed(candidate: Candidate) -> None:
    """Waits until a renewal that was sent from now on has been confirmed."""
    deadline_s = CLOCK.now_s() + BRIEF.ttl_s - BRIEF.margin_s
    await until(lambda: leading(candidate).deadline_s > deadline_s)


# --- tokens that end -----------------------------------------------------------------------------------------


@dataclass
class Busy(Ran):
    """Work that writes with its token of leadership, each time when the connection's token of etcd is over."""

    stores: dict[str, Store] = field(default_factory=dict)
    written: list[bytes] = field(default_factory=list)

    async def work(self, term: Term) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(super().work(term))
            group.create_task(self._write(term))

    async def _write(self, term: Term) -> None:
        store = self.stores[term.id]
        for number in itertools.count():
            value = f"{term.id} {number}".encode()
            assert await fenced_txn(store.client, term, [], [txn.put(store.keyspace.root + b"written", value)])
            self.written.append(value)
            await asyncio.sleep(QUIET_S)


@asynccontextmanager
async def reading(items: AsyncGenerator[T]) -> AsyncIterator[list[T]]:
    """What a stream tells while the test does something else."""
    told: list[T] = []

    async def read() -> None:
        async with aclosing(items):
            async for item in items:
                told.append(item)  # noqa: PERF401 - at once, and not at the end

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        yield told
        task.cancel()


@asynccontextmanager
async def collecting(collector: Collector) -> AsyncIterator[None]:
    """Lets a collector run, and leave."""
    async with asyncio.TaskGroup() as group:
        group.create_task(collector.run())
        try:
            yield
        finally:
            collector.leave()


def values(told: list[Changes | Heard]) -> list[bytes]:
    """What was written, as a watch has told it."""
    return [event.kv.value for item in told if isinstance(item, Changes) for event in item.events]


def elected(told: list[LeaderEvent]) -> list[str]:
    """Who was elected, as a view has told it."""
    return [event.leader.id for event in told if event.leader and event.kind is LeaderEventKind.ELECTED]


@pytest.mark.parametrize("tokens", ["simple", "jwt"])
async def test_all_go_on_over_many_tokens(namespace: str, tokens: str) -> None:
    """Term, queue, watches, agents and the collector know nothing of it; who waits takes over with the key it had."""
    async with guarded(tokens) as cluster, AsyncExitStack() as stack:
        await permit(cluster, namespace, "alice")
        opened = [await stack.enter_async_context(store_of("alice", cluster, namespace)) for _ in range(5)]
        (*stores, looking, living), ways = [store for store, _ in opened], [way for _, way in opened]
        ran = Busy(stores=dict(zip("abc", stores, strict=True)))
        a, b, c = candidates = [store.candidate(ELECTION, id=name, config=BRIEF) for name, store in ran.stores.items()]
        agent = await stack.enter_async_context(living.agent("worker", config=AgentConfig(ttl_s=5)))
        incarnation = agent.incarnation
        view = await stack.enter_async_context(looking.view())
        leaders = await stack.enter_async_context(reading(view.watch_leader(ELECTION)))
        changes = watch(looking.client, looking.keyspace.root + b"written", 1, backoff())
        told = await stack.enter_async_context(reading(changes))
        collector = living.collector(id="c", config=CollectorConfig(grace_s=1), candidate_config=BRIEF)
        await stack.enter_async_context(collecting(collector))
        async with standing(ran, *candidates):
            await leads(ran, a)
            waiting, authenticated = await queue(looking), ways[0].authenticated
            await until(lambda: len(ran.written) == 3)
            if tokens == "jwt":  # renewals prolong etcd's own tokens, in newer versions
                assert ways[0].authenticated >= authenticated + 2
            await renewed(a)
            await agent.put("k", "v")
            assert await queue(looking) == waiting
            assert ran.ids == ["a"]

            await etcdctl(cluster, f"lease revoke {leading(a).lease:x}")
            await leads(ran, b)
            assert (await queue(looking))[:2] == waiting[1:]
            if tokens == "jwt":
                refusal = (methods.CAMPAIGN.path, "etcdserver: invalid auth token")
                await until(lambda: refusal in ways[1].refused)
            await asyncio.sleep(QUIET_S)
            b.leave()
            await leads(ran, c)
            assert (await queue(looking))[0] == waiting[2]
            async with living.agent("gone", config=AgentConfig(ttl_s=5)) as gone:
                await gone.put("k", "v")
            await until_true(lambda: is_reaped(looking, "gone"))
            assert agent.incarnation == incarnation
            assert elected(leaders) == ["a", "b", "c"]
        # A write that was cancelled with its work may have happened, and is told then, too.
        await until(lambda: [value for value in values(told) if value in ran.written] == ran.written)
    ran.check_tokens()


async def is_reaped(store: Store, agent: str) -> bool:
    return bool((await store.client.list(store.keyspace.tombstones(agent))).kvs)


async def test_all_go_on_when_etcd_has_forgotten_all_tokens(namespace: str) -> None:
    """A member that was restarted knows no token: the term, the queue, the agent and the view get over it."""
    patient = CandidateConfig(ttl_s=10, renew_s=0.5)
    async with guarded() as cluster, AsyncExitStack() as stack:
        await permit(cluster, namespace, "alice")
        stores = [(await stack.enter_async_context(store_of("alice", cluster, namespace)))[0] for _ in range(3)]
        agent = await stack.enter_async_context(stores[2].agent("worker"))
        incarnation = agent.incarnation
        view = await stack.enter_async_context(stores[2].view())
        ran = Ran()
        a, b = (stores[number].candidate(ELECTION, id="ab"[number], config=patient) for number in range(2))
        async with standing(ran, a, b):
            await leads(ran, a)
            waiting = await queue(stores[2])
            await cluster.members[0].restart()
            await cluster.wait_healthy()
            deadline_s = CLOCK.now_s() + patient.ttl_s - patient.margin_s
            await until(lambda: leading(a).deadline_s > deadline_s)
            await agent.put("k", "v")
            assert agent.incarnation == incarnation
            assert await queue(stores[2]) == waiting
            a.leave()
            await leads(ran, b)
            assert await queue(stores[2]) == waiting[1:]
            await until_true(lambda: is_led_by(view, "b"))
        assert ran.ids == ["a", "b"]
        ran.check()


async def is_led_by(view: View, candidate: str) -> bool:
    leader = (await view.leader(ELECTION)).value
    return leader is not None and leader.id == candidate


# --- rights that end -----------------------------------------------------------------------------------------

TAKEN_AWAY = {
    "password": (["user passwd --interactive=false alice"], ["user passwd --interactive=false alice"]),
    "user": (["user delete alice"], ["user add alice:secret", "user grant-role alice alice"]),
    "role": (["user revoke-role alice alice"], ["user grant-role alice alice"]),
}
"""How a right is taken from alice, and given back to her."""


@pytest.mark.parametrize("right", TAKEN_AWAY)
async def test_a_leader_whose_rights_are_taken_away_is_told_and_loses_by_its_deadline(
    namespace: str, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An etcd that lets anybody renew any lease, as older ones do, lets it lead on. With its rights it stands again."""
    taken, given = TAKEN_AWAY[right]
    async with guarded() as cluster, AsyncExitStack() as stack:
        await permit(cluster, namespace, "alice", "bob")
        alices, _ = await stack.enter_async_context(store_of("alice", cluster, namespace))
        bobs, _ = await stack.enter_async_context(store_of("bob", cluster, namespace))
        alice = alices.candidate(ELECTION, id="alice", config=BRIEF)
        bob = bobs.candidate(ELECTION, id="bob", config=BRIEF)
        ran = Ran()
        async with standing(ran, alice, bob):
            await leads(ran, alice)
            await etcdctl(cluster, *taken, says="other\n")
            await cluster.members[0].restart()  # what is open already may go on
            await cluster.wait_healthy()
            refused_s = CLOCK.now_s()

            def decided() -> bool:
                """Somebody leads by a renewal that etcd has answered since then, or by a new term."""
                state = alice.state
                renewed_s = state.deadline_s - (BRIEF.ttl_s - BRIEF.margin_s) if isinstance(state, Leading) else 0
                return bob.is_leader or renewed_s > refused_s + BRIEF.ttl_s

            await until(decided)
            assert alice.is_leader != bob.is_leader
            if tuple(map(int, cluster.version.split("."))) >= (3, 5, 30):
                assert bob.is_leader
            await until(lambda: is_told(caplog, right))
            await etcdctl(cluster, *given, says="secret\n")
            await until_true(lambda: is_queued(bobs, 2))
        ran.check()


def is_told(caplog: pytest.LogCaptureFixture, right: str) -> bool:
    """Whether a line of the log says who lacks what."""
    texts = [record.getMessage() for record in caplog.records]
    what = "has no permission for" if right == "role" else "does not exist there, or the password is wrong"
    assert not any("\n" in text for text in texts)
    return any(f"refused access: user 'alice' {what}" in text for text in texts)


async def is_queued(store: Store, candidates: int) -> bool:
    return len(await queue(store)) == candidates


@pytest.mark.parametrize("what", ["read", "nothing"])
async def test_who_may_not_stand_is_told_what_to_grant(
    namespace: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line with the user, the keys and the command; also for an agent, and for a view that may not read."""
    grant = f"(etcdctl role grant-permission --prefix=true ROLE readwrite /election/{namespace}/)"
    async with guarded() as cluster, AsyncExitStack() as stack:
        await permit(cluster, namespace if what == "read" else f"{namespace}-other", "alice", what="read")
        store, _ = await stack.enter_async_context(store_of("alice", cluster, namespace))
        ran, candidate = Ran(), store.candidate(ELECTION, id="alice", config=BRIEF)
        leading = asyncio.create_task(candidate.lead(ran.work))
        root = f"/election/{namespace}/"
        refused = f"{root}campaigns/{ELECTION}/" if what == "read" else f"{root}epoch, {root}highest/{ELECTION}"
        line = f"refused access: user 'alice' has no permission for {refused}: "

        def told() -> bool:
            raised = [str(leading.exception())] if leading.done() else []
            texts = [*raised, *(record.getMessage() for record in caplog.records)]
            return any(line in text and text.endswith(grant) and "\n" not in text for text in texts)

        await until(told)
        with pytest.raises(AccessDenied):
            await leading
        with pytest.raises(AccessDenied, match=f"'alice' has no permission for /election/{namespace}/agents/alive/x"):
            await stack.enter_async_context(store.agent("x"))
        if what == "nothing":
            with pytest.raises(AccessDenied, match=f"'alice' has no permission for /election/{namespace}/: grant"):
                await stack.enter_async_context(store.view())
        assert not ran.spans
        candidate.leave()
        await asyncio.wait({leading})
