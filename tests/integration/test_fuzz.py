"""A server of the API bears what nobody should send; `make fuzz` sends fifty times as much."""

from __future__ import annotations

import random

from election.dev.etcd import EtcdCluster
from tests.fuzz.__main__ import fuzz


async def test_a_server_bears_bad_requests(fresh_cluster: EtcdCluster) -> None:
    """It stays alive and correct, and its memory level; a failure names the seed."""
    assert "alive and correct" in await fuzz(tuple(fresh_cluster.endpoints), 2_000, random.randrange(2**32))
