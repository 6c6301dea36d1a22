"""What happens in one run of the explorer: drawn from its seed alone, and made of steps that can be left out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.weather import Moment

LASTS_S = 10.0
"""For how long there are faults."""

_FEWEST, _MOST = 5, 16
_SHORT_S, _LONG_S = (0.1, 2.0), (2.0, 5.5)
_RATES = ((0.76, 0.8), (0.76, 1.24), (1.0, 1.0))
"""How far a clock may drift: what the margin covers is a third of the TTL."""
LEADER, COLLECTOR = -1, -2
"""In place of a number: the node that leads one of the elections when the step comes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: what, when, to whom, and for how long. `rank` chooses among what there is when it happens."""

    at_s: float
    kind: str
    node: int = 0
    for_s: float = 0.0
    rank: int = 0
    moment: Moment = Moment.NOW

    def __str__(self) -> str:
        when = "" if self.moment is Moment.NOW else f" {self.moment.value}"
        whom = {LEADER: "the leader", COLLECTOR: "the collector that leads"}.get(self.node, f"n{self.node}")
        return f"{self.at_s:6.2f} s  {self.kind}{when}; {whom}; for {self.for_s:.2f} s; rank {self.rank}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: who takes part, how fast their clocks and links are, and what is done to them."""

    seed: int
    candidates: int
    collectors: int
    agents: int
    rates: tuple[float, ...]
    latencies_s: tuple[float, ...]
    grace_s: float
    breaker: bool
    reports_ahead: bool
    steps: tuple[Step, ...]

    @property
    def nodes(self) -> int:
        """How many machines there are; the last one is the observer's."""
        return self.candidates + self.collectors + self.agents + 1


_KINDS = {
    "cut": 8,
    "cut off": 8,
    "answers lost": 4,
    "requests lost": 2,
    "errors": 8,
    "slow": 6,
    "slow watch": 14,
    "breaking": 4,
    "stop": 14,
    "stop and cut off": 8,
    "suspend": 4,
    "skip": 3,
    "kill": 5,
    "kill an agent": 10,
    "hand over": 8,
    "delete the leader's key": 5,
    "revoke the leader's lease": 2,
    "stray state": 5,
    "raise the epoch": 3,
    "move": 6,
    "kill a member": 6,
    "pause a member": 7,
    "isolate a member": 4,
    "fall behind": 8,
    "fall behind and die": 5,
    "compact": 5,
    "restore": 1,
    "restore and bump": 1,
    "restore and bump, unmarked": 1,
}
_NAMES, _WEIGHTS = list(_KINDS), list(_KINDS.values())
_STOPS = ("stop", "stop and cut off")


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    candidates, collectors, agents = rng.choice((2, 2, 3, 3, 4)), rng.randint(1, 2), rng.randint(1, 3)
    nodes = candidates + collectors + agents + 1
    steps = [_step(rng, nodes) for _ in range(rng.randint(_FEWEST, _MOST))]
    return Plan(
        seed,
        candidates,
        collectors,
        agents,
        tuple(rng.uniform(*rng.choice(_RATES)) for _ in range(nodes)),
        tuple(rng.choice((0.001, 0.003, 0.02)) for _ in range(nodes)),
        grace_s=rng.choice((0.0, 0.5, 1.5)),
        breaker=rng.random() < 0.3,
        reports_ahead=rng.random() < 0.5,
        steps=tuple(sorted(steps, key=lambda step: step.at_s)),
    )


def _step(rng: random.Random, nodes: int) -> Step:
    kind = rng.choices(_NAMES, _WEIGHTS)[0]
    moment = rng.choice(list(Moment)) if kind in _STOPS else Moment.NOW
    whom = (rng.randrange(nodes), LEADER, COLLECTOR, *((COLLECTOR, COLLECTOR) if kind == "slow watch" else ()))
    return Step(
        at_s=round(rng.uniform(0.5, LASTS_S), 2),
        kind=kind,
        node=rng.choice(whom),
        for_s=round(rng.uniform(*rng.choice((_SHORT_S, _LONG_S))), 2),
        rank=rng.randrange(1 << 16),
        moment=moment,
    )


def shown(steps: Sequence[Step]) -> str:
    """The steps as lines."""
    return "\n".join(str(step) for step in steps) or "  no fault at all"
