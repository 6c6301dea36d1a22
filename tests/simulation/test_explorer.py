"""The explorer: no promise is broken in some hundred runs, and known mistakes are found."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.simulation.explorer import explore
from tests.simulation.mistakes import MISTAKES
from tests.simulation.plan import Step, draw
from tests.simulation.regressions import KEPT
from tests.simulation.shrink import shrink

SEEDS, PARTS = 100, 10
FOUND_WITHIN = {"robbed-not-waited-for": 40, "no-margin": 20, "no-proof": 5, "work-not-joined": 40, "no-reconcile": 60}


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """A run leaves its garbage to whoever called it."""
    yield
    gc.collect()


@pytest.mark.parametrize("part", range(PARTS))
def test_no_promise_is_broken(part: int) -> None:
    """In any of these runs; `make simulate` does more."""
    for seed in range(part + 1, SEEDS + 1, PARTS):
        outcome = explore(draw(seed))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


@pytest.mark.parametrize("name", KEPT)
def test_what_was_broken_once_is_not_broken_again(name: str) -> None:
    """With the plans that have found it."""
    assert explore(KEPT[name]).violation is None


@pytest.mark.parametrize(("name", "within"), FOUND_WITHIN.items())
def test_a_known_mistake_is_found(name: str, within: int) -> None:
    """In a few runs; `python -m tests.simulation --mistakes` tries all of them."""
    with MISTAKES[name].made():
        assert any(explore(draw(seed)).violation for seed in range(1, within + 1))


def test_a_run_can_be_repeated() -> None:
    """Its seed decides everything that happens in it."""
    for seed in range(1, 6):
        assert explore(draw(seed)).trace == explore(draw(seed)).trace, f"seed {seed}"


def test_a_plan_is_shrunk_to_what_it_takes() -> None:
    """Whichever steps these are, and in whichever order they come."""
    plan = draw(3)
    needed = {plan.steps[0], plan.steps[-1], plan.steps[len(plan.steps) // 2]}

    def fails(steps: tuple[Step, ...]) -> bool:
        return needed <= set(steps)

    least = shrink(plan, lambda fewer: fails(fewer.steps))
    assert set(least.steps) == needed
    assert list(least.steps) == sorted(least.steps, key=lambda step: step.at_s)
