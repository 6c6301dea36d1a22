"""Finds out which steps of a plan it takes to break a promise: the others are left out, as long as it still breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan, Step


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The plan with as few steps as it takes: no single one of them can be left out.

    Steps have times of their own and draw nothing from what others draw from, so that leaving one out does not move
    the rest. First halves are left out, then smaller parts.
    """
    steps = plan.steps
    size = max(len(steps) // 2, 1)
    while True:
        fewer = _without_one_part(plan, steps, size, fails)
        if fewer is not None:
            steps = fewer
        elif size == 1:
            return replace(plan, steps=steps)
        else:
            size = (size + 1) // 2 if size > 2 else 1
        size = min(size, max(len(steps), 1))


def _without_one_part(
    plan: Plan, steps: tuple[Step, ...], size: int, fails: Callable[[Plan], bool]
) -> tuple[Step, ...] | None:
    for begin in range(0, len(steps), size):
        fewer = steps[:begin] + steps[begin + size :]
        if fails(replace(plan, steps=fewer)):
            return fewer
    return None
