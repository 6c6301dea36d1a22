"""Clusters of real etcd processes for the tests that need them; each xdist worker has its own."""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, binary_version, find_binary
from election.errors import ConfigError
from election.etcd.client import EtcdClient
from tests.postgres import Postgres

_ETCD_FIXTURES = {"etcd_cluster", "single_etcd", "fresh_cluster"}


def pytest_report_header() -> str:
    """Says which etcd the tests run against."""
    try:
        binary = find_binary()
        return f"etcd: {binary_version(binary)} ({binary})"
    except ConfigError as error:
        return f"etcd: none ({error})"


def pytest_configure() -> None:
    """Lets Ctrl-C end what tests start: a shell lets what runs in its background ignore it, and that is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that uses a cluster with `etcd`."""
    for item in items:
        if _ETCD_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.etcd)


@pytest.fixture(scope="session")
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three members, for tests that do them no harm; a test keeps to its `namespace`."""
    with _cluster(members=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def single_etcd() -> Iterator[EtcdCluster]:
    """One member, for tests that do it no harm."""
    with _cluster(members=1) as cluster:
        yield cluster


@pytest.fixture
def fresh_cluster() -> Iterator[EtcdCluster]:
    """Three members for one test, which may kill or pause them."""
    with _cluster(members=3) as cluster:
        yield cluster


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test has."""
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
async def client(etcd_cluster: EtcdCluster) -> AsyncIterator[EtcdClient]:
    """A client of the shared cluster."""
    async with EtcdClient(EtcdConfig(etcd_cluster.endpoints)) as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; a test keeps to a `new_database` of it."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        server = Postgres(Path(folder))
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


@contextmanager
def _cluster(members: int) -> Iterator[EtcdCluster]:
    """Synchronous, because a fixture of a session must not hold on to the event loop of one test."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), members=members))
        try:
            yield cluster
        finally:
            cluster.kill()
