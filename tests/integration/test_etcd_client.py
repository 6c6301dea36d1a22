"""How the client of etcd, its leases and its watches stand the loss of members, on a real cluster."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from election.backoff import Backoff
from election.config import EtcdConfig, TlsConfig
from election.dev.etcd import EtcdCluster, Member, find_binary
from election.errors import AccessDenied, Compacted, EtcdError, EtcdUnavailable, LeaseNotFound
from election.etcd import lease as leases
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.etcd.watch import Changes, Heard, Snapshot, follow, watch
from election.pb.etcd import kv_pb2 as kv

T = TypeVar("T")
ATTEMPT_S = 0.4


def config(cluster: EtcdCluster, *, call_timeout_s: float = 5.0, user: str | None = None) -> EtcdConfig:
    return EtcdConfig(
        cluster.endpoints,
        attempt_timeout_s=ATTEMPT_S,
        call_timeout_s=call_timeout_s,
        user=user,
        password="secret" if user else None,
    )


def backoff() -> Backoff:
    return Backoff(0.05, 0.5, random.Random(1))


def use(client: EtcdClient, member: Member) -> None:
    """Lets the client's next call go to this member."""
    while client.member != member.index:
        client.avoid(client.member)


async def followers(cluster: EtcdCluster) -> list[Member]:
    leader = await cluster.leader()
    return [member for member in cluster.members if member is not leader]


async def next_item(items: AsyncGenerator[T], timeout_s: float = 10.0) -> T:
    async with asyncio.timeout(timeout_s):
        return await anext(items)


@asynccontextmanager
async def reading(items: AsyncGenerator[T]) -> AsyncIterator[asyncio.Queue[T]]:
    """Reads a stream in the background, so that it goes on while the test does something else."""
    queue: asyncio.Queue[T] = asyncio.Queue()

    async def read() -> None:
        async with aclosing(items):
            async for item in items:
                await queue.put(item)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        yield queue
        task.cancel()


async def events_until(queue: asyncio.Queue[Changes | Heard], revision: int, timeout_s: float = 15.0) -> list[kv.Event]:
    """All events that a watch delivers up to a revision."""
    events: list[kv.Event] = []
    async with asyncio.timeout(timeout_s):
        while not events or events[-1].kv.mod_revision < revision:
            item = await queue.get()
            if isinstance(item, Changes):
                assert item.revision == item.events[-1].kv.mod_revision
                events += item.events
    return events


@pytest.fixture
def prefix(namespace: str) -> bytes:
    return f"/client/{namespace}/".encode()


# --- calls ---------------------------------------------------------------------------------------------------


async def test_a_dead_member_costs_less_than_an_attempt(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A read or write that meets a dead member goes on to the next at once: the write surely did not begin."""
    dead, _ = await followers(fresh_cluster)
    dead.kill()
    async with EtcdClient(config(fresh_cluster)) as client:
        for call in (client.put(prefix, b"v"), client.get(prefix)):
            use(client, dead)
            began_at_s = time.monotonic()
            await call
            assert time.monotonic() - began_at_s < ATTEMPT_S


async def test_a_hung_member_costs_one_attempt_and_is_left(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A read that meets a paused member goes on after one attempt, and the next one does not ask it again."""
    hung, _ = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster)) as client:
        use(client, hung)
        await client.get(prefix)
        hung.pause()
        began_at_s = time.monotonic()
        await client.get(prefix)
        first_s, began_at_s = time.monotonic() - began_at_s, time.monotonic()
        await client.get(prefix)
        assert ATTEMPT_S <= first_s < 2 * ATTEMPT_S
        assert time.monotonic() - began_at_s < ATTEMPT_S


async def test_the_loss_of_etcds_leader_is_ridden_out(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A read waits within its deadline until etcd has elected another leader."""
    async with EtcdClient(config(fresh_cluster, call_timeout_s=10)) as client:
        await client.put(prefix, b"v")
        (await fresh_cluster.leader()).kill()
        value, _ = await client.get(prefix)
        assert value is not None
        assert value.value == b"v"


async def test_a_write_on_a_hung_member_is_indefinite(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A write that must not be repeated is not tried elsewhere, and its failure says that it may have happened."""
    hung, other = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster, call_timeout_s=ATTEMPT_S)) as client:
        use(client, hung)
        hung.pause()
        with pytest.raises(EtcdUnavailable, match="may have written all the same") as lost:
            await client.put(prefix, b"v")
        assert lost.value.indefinite
        assert client.member != hung.index
        use(client, other)
        assert (await client.get(prefix))[0] is None


async def test_an_indefinite_write_can_happen_afterwards(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A write that the leader could not commit in time is committed when its followers are back, and not at once."""
    leader, rest = await fresh_cluster.leader(), await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster, call_timeout_s=ATTEMPT_S)) as client:
        use(client, leader)
        await client.get(prefix)
        for member in rest:
            member.pause()
        with pytest.raises(EtcdUnavailable) as lost:
            await client.put(prefix, b"v")
        for member in rest:
            member.resume()
        assert lost.value.indefinite
    async with EtcdClient(config(fresh_cluster)) as client, asyncio.timeout(5):
        while True:
            if (await client.get(prefix))[0] is not None:
                break
            await asyncio.sleep(0.01)


async def test_without_any_member_a_call_fails_in_time(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """When all members are down, reads and writes fail by the deadline, definitely, and say where they tried."""
    fresh_cluster.kill()
    async with EtcdClient(config(fresh_cluster, call_timeout_s=1)) as client:
        for call in (client.get(prefix), client.put(prefix, b"v"), client.lease_grant(5)):
            began_at_s = time.monotonic()
            with pytest.raises(EtcdUnavailable, match=r"^etcd at 127\.0\.0\.1:\d+ cannot be reached") as lost:
                await call
            assert time.monotonic() - began_at_s < 1.6
            assert not lost.value.indefinite
            assert "\n" not in str(lost.value)


async def test_without_a_quorum_a_write_is_indefinite(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A member that is alone takes a write, but cannot say what becomes of it."""
    alone, other = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster, call_timeout_s=1)) as client:
        use(client, alone)
        await client.get(prefix)
        (await fresh_cluster.leader()).kill()
        other.kill()
        with pytest.raises(EtcdUnavailable) as lost:
            await client.put(prefix, b"v")
        assert lost.value.indefinite
        with pytest.raises(EtcdUnavailable) as unread:
            await client.get(prefix)
        assert not unread.value.indefinite


async def test_the_raft_term_of_answers_never_falls(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """The client remembers the highest raft term, by which answers of a deposed leader can be told."""
    async with EtcdClient(config(fresh_cluster, call_timeout_s=10)) as client:
        await client.get(prefix)
        before = client.raft_term
        (await fresh_cluster.leader()).kill()
        await fresh_cluster.leader()
        await client.get(prefix)
        assert client.raft_term > before


async def test_an_election_without_candidates_has_no_leader(client: EtcdClient, prefix: bytes) -> None:
    """That nobody leads is an answer, and given at once."""
    began_at_s = time.monotonic()
    with pytest.raises(EtcdError, match="no leader") as nobody:
        await client.leader(prefix + b"election")
    assert not isinstance(nobody.value, EtcdUnavailable)
    assert time.monotonic() - began_at_s < 1


async def test_a_lease_has_its_keys_and_its_ttl(client: EtcdClient, prefix: bytes) -> None:
    """A lease that was granted can be looked at, renewed and revoked, and its keys go with it."""
    granted = await client.lease_grant(30)
    await client.put(prefix + b"a", b"v", lease=granted.ID)
    found = await client.lease_time_to_live(granted.ID, keys=True)
    assert (found.grantedTTL, list(found.keys)) == (30, [prefix + b"a"])
    assert granted.ID in [each.ID for each in (await client.leases()).leases]
    await client.lease_revoke(granted.ID)
    assert not (await client.list(prefix)).kvs


# --- watches -------------------------------------------------------------------------------------------------


async def write(client: EtcdClient, key: bytes) -> None:
    """Writes one key; a failure that may have written is repeated, as a second revision does no harm here."""
    while True:
        try:
            await client.put(key, b"v")
        except EtcdUnavailable:
            continue
        return


@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_a_watch_misses_nothing_when_its_member_is_killed(
    fresh_cluster: EtcdCluster, prefix: bytes, role: str
) -> None:
    """Of 200 writes around the death of the watched member every one is delivered, once and in order."""
    leader, rest = await fresh_cluster.leader(), await followers(fresh_cluster)
    killed, other = (leader, rest[0]) if role == "leader" else (rest[0], rest[1])
    async with EtcdClient(config(fresh_cluster)) as watcher, EtcdClient(config(fresh_cluster)) as writer:
        use(writer, other)
        start = (await writer.get(prefix))[1].revision + 1
        use(watcher, killed)
        async with reading(watch(watcher, prefix, start, backoff())) as queue:
            for number in range(200):
                await write(writer, prefix + b"%03d" % number)
                if number == 100:
                    killed.kill()
            end = (await writer.list(prefix)).kvs[-1].mod_revision
            events = await events_until(queue, end)
    revisions = [event.kv.mod_revision for event in events]
    assert revisions == sorted(set(revisions))
    keys = list(dict.fromkeys(event.kv.key for event in events))
    assert keys == [prefix + b"%03d" % number for number in range(200)]
    if role == "follower":
        assert len(events) == 200


async def test_a_watch_leaves_a_member_that_hangs(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A watch whose member is paused asks for a sign of life, and goes on elsewhere when none comes."""
    hung, other = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster)) as watcher, EtcdClient(config(fresh_cluster)) as writer:
        use(writer, other)
        use(watcher, hung)
        start = (await watcher.get(prefix))[1].revision + 1
        async with aclosing(watch(watcher, prefix, start, backoff())) as items:
            assert isinstance(await next_item(items), Heard)
            hung.pause()
            put = await writer.put(prefix, b"v")
            began_at_s = time.monotonic()
            changes = await next_item(items)
            while isinstance(changes, Heard):  # by a read of etcd, from before the pause
                changes = await next_item(items)
            assert changes.revision == put.header.revision
            assert time.monotonic() - began_at_s < 5 * ATTEMPT_S


async def test_a_watch_that_begins_on_a_hung_member_goes_on_elsewhere(
    fresh_cluster: EtcdCluster, prefix: bytes
) -> None:
    """A new watch without a connection to its member does not wait for one longer than for a sign of life."""
    hung, _ = await followers(fresh_cluster)
    hung.pause()
    async with EtcdClient(config(fresh_cluster)) as client:
        use(client, hung)
        began_at_s = time.monotonic()
        async with aclosing(watch(client, prefix, 1, backoff())) as items:
            await next_item(items)
        assert time.monotonic() - began_at_s < 5 * ATTEMPT_S


async def test_a_watch_from_a_compacted_revision_says_so(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A watch cannot begin in history that is gone: the reader has to list."""
    async with EtcdClient(config(fresh_cluster)) as client:
        for _ in range(3):
            put = await client.put(prefix, b"v")
        await client.compact(put.header.revision)
        async with aclosing(watch(client, prefix, 2, backoff())) as items:
            with pytest.raises(Compacted) as gone:
                await next_item(items)
        assert gone.value.compact_revision == put.header.revision


async def test_follow_lists_again_when_history_was_compacted(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A reader that was cut off during a compaction gets a new snapshot with all that it missed."""
    hung, other = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster)) as reader, EtcdClient(config(fresh_cluster)) as writer:
        use(writer, other)
        await writer.put(prefix + b"old", b"v")
        use(reader, hung)
        async with aclosing(follow(reader, prefix, backoff())) as items:
            first = await next_item(items)
            assert isinstance(first, Snapshot)
            assert [each.key for each in first.kvs] == [prefix + b"old"]
            assert isinstance(await next_item(items), Heard)
            hung.pause()
            await writer.delete(prefix + b"old")
            await writer.put(prefix + b"new", b"v")
            put = await writer.put(prefix + b"new", b"w")
            await writer.compact(put.header.revision)
            second = await next_item(items)
            while isinstance(second, Heard):  # by a read of etcd, from before the pause
                second = await next_item(items)
            assert isinstance(second, Snapshot)
            assert second.revision >= put.header.revision
            assert [(each.key, each.value) for each in second.kvs] == [(prefix + b"new", b"w")]
            put = await writer.put(prefix + b"newer", b"v")
            changes = await next_item(items)
            while isinstance(changes, Heard):
                changes = await next_item(items)
            assert isinstance(changes, Changes)
            assert changes.revision == put.header.revision


# --- leases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_renewals_survive_the_loss_of_their_member(fresh_cluster: EtcdCluster, role: str) -> None:
    """Renewals go on elsewhere before the deadline when their member is killed, also when it was etcd's leader."""
    leader, rest = await fresh_cluster.leader(), await followers(fresh_cluster)
    killed = leader if role == "leader" else rest[0]
    async with EtcdClient(config(fresh_cluster)) as client:
        use(client, killed)
        lease = await leases.grant(client, ttl_s=6, margin_s=1, renew_s=0.3)
        async with aclosing(leases.renewals(client, lease, backoff())) as renewals:
            last = await next_item(renewals)
            assert client.member == killed.index
            killed.kill()
            renewed = await next_item(renewals)
            assert client.clock.now_s() < last.deadline_s
            assert renewed.deadline_s > last.deadline_s
        assert (await client.lease_time_to_live(lease.id)).TTL > 0


async def test_renewals_leave_a_member_that_hangs(fresh_cluster: EtcdCluster) -> None:
    """A paused member costs renewals one attempt."""
    hung, _ = await followers(fresh_cluster)
    async with EtcdClient(config(fresh_cluster)) as client:
        use(client, hung)
        lease = await leases.grant(client, ttl_s=6, margin_s=1, renew_s=0.3)
        async with aclosing(leases.renewals(client, lease, backoff())) as renewals:
            await next_item(renewals)
            hung.pause()
            began_at_s = time.monotonic()
            await next_item(renewals)
            assert time.monotonic() - began_at_s < 3 * ATTEMPT_S
            assert client.member != hung.index


async def test_renewals_of_a_revoked_lease_end(client: EtcdClient) -> None:
    """When the lease is gone, the next renewal says so."""
    lease = await leases.grant(client, ttl_s=6, margin_s=1, renew_s=0.1)
    async with aclosing(leases.renewals(client, lease, backoff())) as renewals:
        await next_item(renewals)
        await client.lease_revoke(lease.id)
        with pytest.raises(LeaseNotFound):
            await next_item(renewals)
    with pytest.raises(LeaseNotFound):
        await client.lease_revoke(lease.id)


async def test_a_ttl_that_etcd_raises_is_the_one_that_counts(client: EtcdClient) -> None:
    """The granted TTL, not the one asked for, decides the deadline, which the request's moment begins."""
    before_s = client.clock.now_s()
    lease = await leases.grant(client, ttl_s=3, margin_s=1, renew_s=1)
    assert lease.ttl_s == 3
    assert before_s + 2 <= lease.deadline_s <= client.clock.now_s() + 2


# --- users ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded_cluster() -> Iterator[EtcdCluster]:
    """Three members that demand a user; root's password is `secret`, and a token lives for 1 s after its last use."""
    arguments = ["--bcrypt-cost=4", "--auth-token-ttl=1"]
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), extra_args=arguments))
        try:
            control = [str(find_binary("etcdctl")), f"--endpoints={cluster.endpoints[0]}"]
            for command in ("role add root", "user add root:secret", "user grant-role root root", "auth enable"):
                ran = subprocess.run([*control, *command.split()], capture_output=True, text=True, check=False)
                assert ran.returncode == 0, f"etcdctl {command}: {ran.stderr}"
            cluster.credentials = ("root", "secret")
            yield cluster
        finally:
            cluster.kill()


async def test_a_wrong_password_and_no_user_are_access_denied(guarded_cluster: EtcdCluster, prefix: bytes) -> None:
    """Without a user, or with a wrong password, the first call is refused at once and for good."""
    wrong = EtcdConfig(guarded_cluster.endpoints, user="root", password="mistaken")
    for refused in (wrong, config(guarded_cluster)):
        async with EtcdClient(refused) as client:
            began_at_s = time.monotonic()
            with pytest.raises(AccessDenied):
                await client.get(prefix)
            with pytest.raises(AccessDenied):
                await client.put(prefix, b"v")
            assert time.monotonic() - began_at_s < 1


async def test_calls_renewals_and_watches_get_a_new_token(guarded_cluster: EtcdCluster, prefix: bytes) -> None:
    """Whatever meets a member that does not know the token any more authenticates again, streams included."""
    killed, other = await followers(guarded_cluster)
    settings = config(guarded_cluster, user="root", call_timeout_s=10)
    async with EtcdClient(settings) as caller, EtcdClient(settings) as holder, EtcdClient(settings) as watcher:
        for client in (holder, watcher):
            use(client, killed)
        use(caller, other)
        start = (await caller.put(prefix, b"v")).header.revision + 1
        lease = await leases.grant(holder, ttl_s=30, margin_s=1, renew_s=0.3)
        async with (
            aclosing(leases.renewals(holder, lease, backoff())) as renewals,
            reading(watch(watcher, prefix, start, backoff())) as queue,
        ):
            last = await next_item(renewals)
            await asyncio.sleep(2.2)  # etcd looks every second whether a token's time is over
            killed.kill()
            put = await caller.put(prefix, b"w")
            while last.deadline_s < holder.clock.now_s() + 28.5:
                last = await next_item(renewals)
            assert len(await events_until(queue, put.header.revision)) == 1


# --- TLS -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives in a folder and signs with the openssl command."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        made = cls(folder, name)
        made._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
        return made

    def sign(self, name: str, *, days: int = 2) -> TlsConfig:
        """A certificate for 127.0.0.1, good for both ends of a connection; with days below 0 it has expired."""
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key"),
            *("-CAcreateserial", "-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
        return TlsConfig(self.certificate, self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        ran = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"openssl {arguments[0]}: {ran.stderr}"


@pytest.fixture
def authority() -> Iterator[Authority]:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates of this test")
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        yield Authority.make(Path(folder), "authority")


@pytest.fixture
def tls_cluster(authority: Authority) -> Iterator[EtcdCluster]:
    """One member that demands a certificate of the authority."""
    cluster = asyncio.run(
        EtcdCluster.start(data_dir=authority.folder / "data", members=1, tls=authority.sign("server"))
    )
    try:
        yield cluster
    finally:
        cluster.kill()


async def test_tls_works_with_the_right_certificates_only(
    tls_cluster: EtcdCluster, authority: Authority, prefix: bytes
) -> None:
    """A wrong authority, a missing certificate or no TLS at all give one clear error within the deadline."""
    good = authority.sign("client")
    async with EtcdClient(EtcdConfig(tls_cluster.endpoints, tls=good)) as client:
        await client.put(prefix, b"v")
    stranger = Authority.make(authority.folder, "stranger")
    for tls in (TlsConfig(stranger.certificate, good.cert, good.key), TlsConfig(authority.certificate), None):
        refused = EtcdConfig(tls_cluster.endpoints, tls=tls, call_timeout_s=0.5, attempt_timeout_s=0.5)
        async with EtcdClient(refused) as client:
            began_at_s = time.monotonic()
            with pytest.raises(EtcdError, match=r"(?i)tls|handshake|certificate|unwrap|closed|deadline") as failed:
                await client.put(prefix, b"v")
            assert time.monotonic() - began_at_s < 1
            assert tls_cluster.endpoints[0] in str(failed.value)
            assert "\n" not in str(failed.value)
            assert not isinstance(failed.value, AccessDenied)


async def test_a_read_that_its_caller_gives_up_is_not_broken_off(fresh_cluster: EtcdCluster, prefix: bytes) -> None:
    """A transaction that only reads and is cancelled ends a member of etcd before 3.5.5 with a panic (#14110)."""
    async with EtcdClient(EtcdConfig(fresh_cluster.endpoints[:1])) as client:
        for number in range(40):
            await client.put(prefix + b"%d" % number, bytes(2_000))
        rng = random.Random(1)
        for _ in range(300):
            reading = [asyncio.create_task(client.txn([], [txn.get_prefix(prefix)])) for _ in range(4)]
            await asyncio.sleep(rng.uniform(0, 0.003))
            for read in reading:
                read.cancel()
            await asyncio.wait(reading)
        assert (await client.get(prefix + b"1"))[0] is not None
