"""What the tests of commands share: a command line, and a look at the etcd behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from tests.integration.test_cli import NOWHERE, Cli


@pytest.fixture
def cli(single_etcd: EtcdCluster, namespace: str, tmp_path: Path) -> Iterator[Cli]:
    """Commands for the shared etcd and this test's namespace."""
    with Cli(tmp_path, ELECTION_ENDPOINTS=single_etcd.endpoints[0], ELECTION_NAMESPACE=namespace) as made:
        yield made


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Cli]:
    """Commands without an etcd."""
    with Cli(tmp_path, ELECTION_ENDPOINTS=NOWHERE) as made:
        yield made


@pytest.fixture
async def etcd(single_etcd: EtcdCluster) -> AsyncIterator[EtcdClient]:
    """A client of the shared etcd, to see what the commands have done."""
    async with EtcdClient(EtcdConfig(single_etcd.endpoints)) as client:
        yield client


@pytest.fixture
def keys(namespace: str) -> Keyspace:
    """The keys of this test's namespace."""
    return Keyspace(namespace)
