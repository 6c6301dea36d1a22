"""Certificates that are replaced while everything runs: what begins afterwards has the new one, and nothing ends."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from election import AccessDenied, Candidate, CandidateConfig, EtcdError, Store
from election.channels import Channels
from election.config import EtcdConfig, TlsConfig
from election.dev.etcd import EtcdCluster, find_binary
from election.etcd import methods
from election.pb.etcd import rpc_pb2 as rpc
from tests.integration.ran import CLOCK, ELECTION, Ran, leading, leads, standing, until, until_true
from tests.integration.test_etcd_client import Authority

pytestmark = pytest.mark.etcd

PATIENT = CandidateConfig(ttl_s=10, renew_s=0.5)
LOOKED_S = 1.1
"""The files are looked at once a second at most."""


class Mounted:
    """TLS files as Kubernetes mounts a secret: links through one link, which is swapped for new content."""

    def __init__(self, folder: Path, content: TlsConfig) -> None:
        folder.mkdir()
        self._folder = folder
        self.tls = TlsConfig(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
        self.swap(content)
        for file in files(self.tls):
            file.symlink_to(Path("..data") / file.name)

    def swap(self, content: TlsConfig) -> None:
        """All files at once."""
        version = Path(tempfile.mkdtemp(prefix="..", dir=self._folder))
        for source, file in zip(files(content), files(self.tls), strict=True):
            shutil.copyfile(source, version / file.name)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")


def files(tls: TlsConfig) -> list[Path]:
    assert tls.cacert
    assert tls.cert
    assert tls.key
    return [tls.cacert, tls.cert, tls.key]


@pytest.fixture
def authority() -> Iterator[Authority]:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates of this test")
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        yield Authority.make(Path(folder), "authority")


@asynccontextmanager
async def tls_cluster(authority: Authority) -> AsyncIterator[tuple[EtcdCluster, Mounted]]:
    """One member that demands a certificate, and the files that it reads."""
    server = Mounted(authority.folder / "server", authority.sign("etcd-1"))
    started = await EtcdCluster.start(data_dir=authority.folder / "data", members=1, tls=server.tls)
    async with started as cluster:
        yield cluster, server


async def etcdctl(cluster: EtcdCluster, *commands: str) -> None:
    assert cluster.tls
    cacert, cert, key = files(cluster.tls)
    program = [str(find_binary("etcdctl")), f"--endpoints={cluster.endpoints[0]}"]
    program += [f"--cacert={cacert}", f"--cert={cert}", f"--key={key}"]
    for command in commands:
        ran = await asyncio.to_thread(
            subprocess.run,
            [*program, *command.split()],
            capture_output=True, text=True, check=False, env={"ETCDCTL_API": "3"},
        )  # fmt: skip
        assert ran.returncode == 0, f"etcdctl {command}: {ran.stderr}"


@asynccontextmanager
async def a_leader_and_one_who_waits(
    cluster: EtcdCluster, tls: TlsConfig, namespace: str
) -> AsyncIterator[tuple[Ran, Store, Candidate, Candidate]]:
    """Two candidates with connections of their own; at the end the second one leads with the key that it had."""
    async with AsyncExitStack() as stack:
        stores, candidates = [], []
        for name in "ab":
            config = EtcdConfig(cluster.endpoints, tls=tls, call_timeout_s=2)
            store = await stack.enter_async_context(Store(config, namespace))
            stores.append(store)
            candidates.append(store.candidate(ELECTION, id=name, config=PATIENT))
        first, second = candidates
        ran = Ran()
        async with standing(ran, first, second):
            await leads(ran, first)
            queue = await created(stores[0])
            yield ran, stores[0], first, second
            assert await created(stores[0]) == queue
            assert ran.ids == ["a"]
            for store in stores:
                await store.client.get(b"/election/")
            first.leave()
            await leads(ran, second)
            assert await created(stores[1]) == queue[1:]
        assert ran.ids == ["a", "b"]
        ran.check()


async def created(store: Store) -> list[int]:
    """The create revisions of the candidates' keys, oldest first."""
    listed = await store.client.list(store.keyspace.campaign(ELECTION))
    return [each.create_revision for each in listed.kvs]


async def renewed(candidate: Candidate) -> None:
    """Waits until a renewal that was sent from now on has been confirmed."""
    deadline_s = CLOCK.now_s() + PATIENT.ttl_s - PATIENT.margin_s
    await until(lambda: leading(candidate).deadline_s > deadline_s)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about the files."""
    return [text for text in (record.getMessage() for record in caplog.records) if "those before stay in use" in text]


async def works(call: Callable[[], Awaitable[object]]) -> bool:
    try:
        await call()
    except EtcdError:
        return False
    return True


async def test_a_certificate_of_another_name_is_who_etcd_sees_from_then_on(
    authority: Authority, namespace: str
) -> None:
    """New calls are those of the new user; the leader's term and the waiting candidate's key stay as they are."""
    async with tls_cluster(authority) as (cluster, _):
        prefix = f"/election/{namespace}/"
        await etcdctl(
            cluster,
            *("user add root:secret", "role add root", "user grant-role root root"),
            *("role add stands", f"role grant-permission --prefix=true stands readwrite {prefix}"),
            *("role add writes", "role grant-permission --prefix=true writes readwrite /bob/"),
            *("user add alice --no-password", "user grant-role alice stands"),
            *("user add bob --no-password", "user grant-role bob stands", "user grant-role bob writes"),
            "role grant-permission stands read /election/",
            "auth enable",
        )
        client = Mounted(authority.folder / "client", authority.sign("alice", days=1))
        async with a_leader_and_one_who_waits(cluster, client.tls, namespace) as (_, store, first, _):
            with pytest.raises(AccessDenied, match="the user of the client certificate has no permission for /bob/"):
                await store.client.put(b"/bob/key", b"v")
            client.swap(authority.sign("bob", days=1))
            await asyncio.sleep(LOOKED_S)
            await store.client.put(b"/bob/key", b"v")
            await renewed(first)


@pytest.mark.parametrize("first", ["etcd", "client"])
async def test_a_new_authority_needs_no_restart_of_candidates(
    authority: Authority, namespace: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether etcd has its new certificates before its clients have theirs, or after them."""
    successor = Authority.make(authority.folder, "successor")
    async with tls_cluster(authority) as (cluster, server):
        client = Mounted(authority.folder / "client", authority.sign("client-1"))
        async with a_leader_and_one_who_waits(cluster, client.tls, namespace) as (_, store, leader, _):
            if first == "client":
                client.swap(successor.sign("client-2"))
                await asyncio.sleep(LOOKED_S)
                assert not await works(lambda: store.client.get(b"k"))  # etcd is still that of the old authority
                await renewed(leader)  # on the connection that it has
            server.swap(successor.sign("etcd-2"))
            await cluster.members[0].restart()
            await cluster.wait_healthy()
            if first == "etcd":
                with pytest.raises(EtcdError, match="certificate"):
                    await store.client.get(b"k")
                client.swap(successor.sign("client-2"))
            await until_true(lambda: works(lambda: store.client.get(b"k")))
            await renewed(leader)
    assert not warnings(caplog)


async def test_an_expired_certificate_is_replaced_without_a_restart(authority: Authority, namespace: str) -> None:
    """Who runs on an old connection goes on; when that breaks all calls fail, until there is a certificate."""
    async with tls_cluster(authority) as (cluster, _):
        client = Mounted(authority.folder / "client", authority.sign("client-1"))
        async with a_leader_and_one_who_waits(cluster, client.tls, namespace) as (_, store, leader, _):
            client.swap(authority.sign("client-2", days=-1))
            await asyncio.sleep(LOOKED_S)
            with pytest.raises(EtcdError, match="client certificate"):
                await store.client.get(b"k")
            await renewed(leader)
            await cluster.members[0].restart()
            await cluster.wait_healthy()
            with pytest.raises(EtcdError, match="client certificate"):
                await store.client.get(b"k")
            client.swap(authority.sign("client-3"))
            await until_true(lambda: works(lambda: store.client.get(b"k")))
            await renewed(leader)


async def test_files_that_are_half_written_hurt_nobody(
    authority: Authority, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate before stays in use through all of it, and each fault is one line in the log."""
    async with tls_cluster(authority) as (cluster, _):
        folder = authority.folder / "client"
        folder.mkdir()
        tls = TlsConfig(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        one, two = authority.sign("one"), authority.sign("two")
        for source, file in zip(files(one), files(tls), strict=True):
            shutil.copyfile(source, file)
        cacert, cert, key = (file.read_bytes() for file in files(two))
        steps = [(1, cert[: len(cert) // 2]), (1, b""), (1, cert), (2, key[:-40]), (0, cacert[:100]), (0, cacert)]
        async with a_leader_and_one_who_waits(cluster, tls, namespace) as (_, store, leader, _):
            for place, content in steps:
                files(tls)[place].write_bytes(content)
                await asyncio.sleep(LOOKED_S)
                await store.client.put(store.keyspace.root + b"other", b"v")
            files(tls)[2].unlink()
            await asyncio.sleep(LOOKED_S)
            await store.client.put(store.keyspace.root + b"other", b"v")
            said = warnings(caplog)
            pair = f"the certificate {tls.cert} with the key {tls.key} cannot be used: "
            expected = [
                f"{pair}it is not in PEM form, or not whole",
                f"{pair}KEY_VALUES_MISMATCH",
                f"the certificate {tls.cacert} cannot be used: it is not in PEM form, or not whole",
                f"cannot read {tls.key}: No such file or directory",
            ]
            told = [text.partition("stay in use: ")[2] for text in said]
            assert sorted(set(told)) == sorted(expected)

            assert tls.key
            tls.key.write_bytes(key)
            await asyncio.sleep(LOOKED_S)
            await store.client.put(store.keyspace.root + b"other", b"v")
            await renewed(leader)
            assert warnings(caplog) == said


async def test_a_replaced_connection_ends_with_the_last_stream_on_it(authority: Authority) -> None:
    """A call that is made afterwards has a connection of its own, and the old one ends by itself."""
    key = secrets.token_bytes(8)
    async with tls_cluster(authority) as (cluster, _):
        client = Mounted(authority.folder / "client", authority.sign("client-1"))
        channels = Channels(cluster.endpoints, client.tls, ())
        try:
            old = channels[0]
            watch = old.channel.stream_stream(
                methods.WATCH.path,
                request_serializer=rpc.WatchRequest.SerializeToString,
                response_deserializer=rpc.WatchResponse.FromString,
            )()
            old.carry(watch)
            await watch.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key)))
            await watch.read()
            client.swap(authority.sign("client-2"))
            await asyncio.sleep(LOOKED_S)
            new = channels[0]
            assert new is not old
            put = new.channel.unary_unary(
                methods.PUT.path,
                request_serializer=rpc.PutRequest.SerializeToString,
                response_deserializer=rpc.PutResponse.FromString,
            )(rpc.PutRequest(key=key, value=b"v"))
            new.carry(put)
            await put
            seen = await watch.read()
            assert isinstance(seen, rpc.WatchResponse)
            assert [event.kv.key for event in seen.events] == [key]
            assert not old.is_closed
            watch.cancel()
            await until(lambda: old.is_closed)
            assert not new.is_closed
        finally:
            await channels.close()
