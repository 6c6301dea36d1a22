"""Work that blocks its event loop cannot be cancelled, and nothing in the loop can say so: a thread does."""

from __future__ import annotations

import time

import pytest

from election import CandidateConfig, LossReason, NotLeader, Term, connect
from election.dev.etcd import EtcdCluster

pytestmark = pytest.mark.etcd

QUICK = CandidateConfig(ttl_s=3)


def compute(duration_s: float) -> None:
    """Holds up the event loop."""
    time.sleep(duration_s)


@pytest.mark.parametrize(("blocked_s", "reports"), [(QUICK.ttl_s + 2.0, 1), (1.0, 0)])
async def test_work_that_blocks_the_event_loop_is_reported_with_its_line(
    etcd_cluster: EtcdCluster, namespace: str, caplog: pytest.LogCaptureFixture, blocked_s: float, reports: int
) -> None:
    """Once, while it still blocks, if the term has ended meanwhile; the first check after it raises."""
    checks: list[LossReason | None] = []

    async def work(term: Term) -> None:
        compute(blocked_s)
        assert len([record for record in caplog.records if record.levelname == "CRITICAL"]) == reports
        try:
            term.check()
            checks.append(None)
        except NotLeader as error:
            checks.append(error.reason)

    async with connect(etcd_cluster.endpoints, namespace=namespace) as store:
        loss = await store.candidate("demo", config=QUICK).lead(work, once=True)
    assert loss is not None
    assert checks == [LossReason.EXPIRED if reports else None]
    for record in (record for record in caplog.records if record.levelname == "CRITICAL"):
        assert "its event loop has not noticed" in record.message
        assert f"compute ({__file__}:" in record.message
