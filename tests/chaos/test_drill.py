"""Short drills: every fault is done once, and no promise is broken."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from election.config import CandidateConfig, EtcdConfig
from election.dev.etcd import EtcdCluster
from election.drill.checker import State, check
from election.drill.faults.catalog import FAULTS
from election.drill.faults.fault import Lane
from election.drill.faults.strangers import STRANGERS
from election.drill.history import History
from election.drill.runner import Target, run
from election.drill.scenario import Scenario, Step, draw, read
from election.drill.vocabulary import Done
from election.store import connect

pytestmark = pytest.mark.etcd

ONCE_S = 130.0
"""In so long, every fault of every lane comes once."""


def seed() -> int:
    """ELECTION_TEST_SEED repeats a drill."""
    return int(os.environ.get("ELECTION_TEST_SEED") or random.SystemRandom().getrandbits(32))


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@pytest.mark.parametrize(("duration_s", "auth"), [(ONCE_S, False), (30.0, True)])
async def test_every_fault_is_survived(tmp_path: Path, duration_s: float, auth: bool) -> None:
    """Without users in etcd every fault comes once; with them, those that concern users."""
    can_be_done = [fault for fault in FAULTS.values() if not fault.unavailable()]
    able = [fault for fault in can_be_done if fault.needs_users <= auth and (not auth or fault.lane is not Lane.FLEET)]
    scenario = draw(seed(), able, duration_s, auth=auth)
    tell(f"seed {scenario.seed}, history in {tmp_path}")
    await run(tmp_path, scenario, FAULTS, tell)
    history = History.load(tmp_path)
    assert [verdict for verdict in check(history) if verdict.state is not State.HELD] == []
    done = {fact.more["fault"] for fact in history.facts if fact.what == Done.INJECTED}
    skipped = {fact.more["fault"] for fact in history.facts if fact.what == Done.SKIPPED}
    if not auth:
        assert done | skipped >= {fault.name for fault in able if not fault.ends_drill}
        assert len(skipped) < len(done) / 4


def test_a_seed_decides_a_scenario_and_a_file_keeps_it(tmp_path: Path) -> None:
    """Two drawn from one seed are equal, those of two seeds are not, and what is written is what is read."""
    faults = list(FAULTS.values())
    scenario = draw(7, faults, ONCE_S)
    assert scenario == draw(7, faults, ONCE_S) != draw(8, faults, ONCE_S)
    scenario.write(tmp_path / "scenario.toml")
    assert read(tmp_path / "scenario.toml", FAULTS) == scenario


@pytest.mark.parametrize("number", range(20))
def test_every_fault_comes_once_before_any_comes_again(number: int) -> None:
    """And one of those that end a drill comes last."""
    names = draw(number, list(FAULTS.values()), ONCE_S).faults
    assert {*names[:-1]} == {fault.name for fault in FAULTS.values() if not fault.ends_drill}
    assert FAULTS[names[-1]].ends_drill
    assert not any(FAULTS[name].ends_drill for name in names[:-1])


async def test_an_etcd_that_runs_is_not_hurt(single_etcd: EtcdCluster, tmp_path: Path) -> None:
    """What lies before it is, in every way; and nothing is left in its namespace but tombstones."""
    rng = random.Random(drawn := seed())
    able = [fault for fault in FAULTS.values() if fault.lane is Lane.CLIENTS]
    steps = (Step(1.5 * number, fault.name, 0.5, rng.getrandbits(32)) for number, fault in enumerate(able))
    scenario = Scenario(drawn, phases=(tuple(steps),))
    tell(f"seed {scenario.seed}, history in {tmp_path}")
    target = Target(EtcdConfig(single_etcd.endpoints), f"drill-{scenario.seed}")
    await run(tmp_path, scenario, FAULTS, tell, target=target)
    assert [verdict for verdict in check(History.load(tmp_path)) if verdict.state is not State.HELD] == []


async def test_those_who_stand_already_are_robbed_and_lead_again(
    single_etcd: EtcdCluster, namespace: str, tmp_path: Path
) -> None:
    """None of our own stand beside them; what is judged is what etcd and a reader tell."""
    async with connect(single_etcd.endpoints, namespace=namespace) as store, asyncio.TaskGroup() as group:
        standing = [store.candidate("theirs", id=name, config=CandidateConfig(ttl_s=3)) for name in ("x", "y")]
        for candidate in standing:
            group.create_task(candidate.lead(lambda term: asyncio.sleep(3600)))
        scenario = draw(seed(), STRANGERS, 12.0, orchestrators=0, blocking=0, agents=0, collectors=0, servers=1)
        target = Target(EtcdConfig(single_etcd.endpoints), namespace, "theirs")
        await run(tmp_path, scenario, FAULTS, tell, target=target)
        for candidate in standing:
            candidate.leave()
    history = History.load(tmp_path)
    verdicts = {verdict.invariant: verdict for verdict in check(history)}
    assert [verdict for verdict in verdicts.values() if verdict.state is not State.HELD] == []
    assert verdicts["tokens grow"].examined > 1
    assert any(fact.what == Done.ROBBED for fact in history.facts)
