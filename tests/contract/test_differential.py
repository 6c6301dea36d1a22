"""The fake and the real etcd give the same answers to the same random programs."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.etcd.transport import GrpcTransport
from tests.contract.programs import PROGRAMS, Outcome, Program, Run
from tests.fake.clock import VirtualClock, run_virtual
from tests.fake.etcd import FakeEtcd
from tests.fake.transport import FakeTransport

PROGRAMS_AT_MOST = 400
SECONDS_AT_MOST = 8.0


@pytest.fixture
def quiet_etcd() -> Iterator[EtcdCluster]:
    """One member that nobody else writes to, since every revision counts."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), members=1))
        try:
            yield cluster
        finally:
            cluster.kill()


@pytest.mark.etcd
def test_the_fake_answers_as_etcd_does(quiet_etcd: EtcdCluster) -> None:
    """Set ELECTION_TEST_SEED to the seed that a failure shows to run the same programs again."""
    chosen = int(os.environ.get("ELECTION_TEST_SEED", secrets.randbelow(2**32)))
    print(f"ELECTION_TEST_SEED={chosen}")  # noqa: T201 - pytest shows it with a failure
    stop_at_s = time.monotonic() + SECONDS_AT_MOST
    differs = False

    with asyncio.Runner() as runner:
        transport = runner.run(_connect(quiet_etcd))

        @seed(chosen)
        @settings(
            max_examples=PROGRAMS_AT_MOST,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(PROGRAMS)
        def agree(program: Program) -> None:
            nonlocal differs
            if time.monotonic() > stop_at_s and not differs:
                return
            real = runner.run(Run(transport, secrets.randbelow(2**61)).outcome(program))
            fake = run_virtual(_on_fake(program))
            for call, theirs, ours in zip([*program, *[None] * 5], real, fake, strict=True):
                note(f"{call}\n    real {theirs}\n    fake {ours}")
                differs = differs or theirs != ours
                assert theirs == ours

        agree()
        runner.run(transport.close())


async def _connect(cluster: EtcdCluster) -> GrpcTransport:
    return GrpcTransport(EtcdConfig(cluster.endpoints))


async def _on_fake(program: Program) -> Outcome:
    return await Run(FakeTransport(FakeEtcd(VirtualClock(), members=1)), 4_000_000).outcome(program)
