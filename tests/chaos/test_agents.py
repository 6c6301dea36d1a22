"""Short drills: what is hurt at random, and what is seen when half of all agents vanish."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from election.drill import rounds
from election.drill.history import Settings
from tests.chaos import breaker

pytestmark = pytest.mark.etcd


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


async def test_forty_faults_break_no_promise(tmp_path: Path) -> None:
    """What the dead leave is collected in time, and what the living have is not; ELECTION_TEST_SEED repeats a plan."""
    seed = int(os.environ.get("ELECTION_TEST_SEED") or random.SystemRandom().getrandbits(32))
    tell(f"seed {seed}, history in {tmp_path}")
    settings = Settings("drill", seed, ttl_s=3, grace_s=2, reconcile_s=5)
    report = await rounds.drill(tmp_path, settings, rounds=40, agents=10, quiet_every=40, tell=tell)
    assert [str(violation) for violation in report.violations] == []
    assert report.faults.total() == 40
    assert report.lay.values_ms


async def test_when_half_vanish_nothing_is_reaped_until_it_is_known_why(tmp_path: Path) -> None:
    """They come back, then an operator gives them up, then the hold ends; and the history breaks no promise."""
    settings = Settings("drill", seed=0, ttl_s=3, grace_s=3, reconcile_s=5)
    report = await breaker.drill(tmp_path, settings, agents=20, hold_s=12, tell=tell)
    assert [str(violation) for violation in report.violations] == []
    assert len([line for line in report.seen if "and nobody else" in line]) == 2
