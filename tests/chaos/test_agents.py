"""A short drill: agents, collectors and etcd are hurt at random, and no promise is broken."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.agents import GRACE_S, RECONCILE_S, TTL_S, drill
from tests.chaos.history import Settings

pytestmark = pytest.mark.etcd


async def test_forty_faults_break_no_promise(tmp_path: Path) -> None:
    """What the dead leave is collected in time, and what the living have is not: by the history of a seeded drill."""
    seed = random.SystemRandom().randrange(2**32)
    settings = Settings("drill", seed, TTL_S, GRACE_S, RECONCILE_S)
    report = await drill(tmp_path, settings, rounds=40, agents=10, quiet_every=40)
    assert [str(violation) for violation in report.violations] == [], f"seed {seed}; its history: {tmp_path}"
    assert report.faults.total() == 40
    assert report.collected.values_ms
