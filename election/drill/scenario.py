"""What is done in a drill, and when: from a file, or drawn from a seed before it begins."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from election.drill.faults.fault import Fault, Lane
from election.errors import ConfigError

_PHASE_S = 22.0
_GAP_S = (0.3, 1.5)
_HEALING_S = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: so long after the beginning of its phase, for so long; `draw` decides the rest."""

    at_s: float
    fault: str
    hold_s: float
    draw: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A drill. After each phase everything is healed, and the system has to get well before the next one."""

    seed: int
    members: int = 3
    auth: bool = False
    orchestrators: int = 2
    blocking: int = 1
    agents: int = 5
    collectors: int = 2
    servers: int = 2
    phases: tuple[tuple[Step, ...], ...] = ()

    @property
    def faults(self) -> list[str]:
        """The names of all faults in it."""
        return [step.fault for phase in self.phases for step in phase]

    def write(self, file: Path) -> None:
        """Writes it as TOML, to be read again by `read`."""
        plain = asdict(self)
        phases = plain.pop("phases")
        lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
        for phase in phases:
            lines += ["", "[[phase]]", "steps = ["]
            lines += [f"  {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in step.items())} }}," for step in phase]
            lines += ["]"]
        file.write_text("\n".join(lines) + "\n")


def draw(seed: int, faults: Sequence[Fault[Any]], duration_s: float, **settings: Any) -> Scenario:
    """A drill of about this duration. Of each lane every fault comes once before any comes again.

    One of those that end a drill is done after the others, where there are any.
    """
    rng = random.Random(seed)
    decks = [_shuffled(rng, [each for each in faults if each.lane is lane and not each.ends_drill]) for lane in Lane]
    phases = []
    left_s = duration_s
    while left_s > 0:
        length_s = min(left_s, _PHASE_S)
        left_s -= length_s
        steps = [step for deck in decks for step in _lane(rng, deck, length_s)]
        phases.append(tuple(sorted(steps, key=lambda step: step.at_s)))
    last = [fault for fault in faults if fault.ends_drill]
    if last:
        phases.append((_step(rng, rng.choice(last), 0.5),))
    return Scenario(seed, phases=tuple(phases), **settings)


def _shuffled(rng: random.Random, faults: Sequence[Fault[Any]]) -> Iterator[Fault[Any]]:
    while faults:
        yield from rng.sample(faults, len(faults))


def _lane(rng: random.Random, deck: Iterator[Fault[Any]], length_s: float) -> Iterator[Step]:
    at_s = rng.uniform(*_GAP_S)
    while at_s < length_s and (fault := next(deck, None)) is not None:
        yield (step := _step(rng, fault, at_s))
        at_s += step.hold_s + _HEALING_S + rng.uniform(*_GAP_S)


def _step(rng: random.Random, fault: Fault[Any], at_s: float) -> Step:
    return Step(round(at_s, 2), fault.name, round(rng.uniform(*fault.hold_s), 2), rng.getrandbits(32))


def read(file: Path, known: Mapping[str, Fault[Any]]) -> Scenario:
    """Reads a scenario that `Scenario.write` has written, or somebody by hand.

    Raises:
        ConfigError: it cannot be read, or is not one, or has a fault that is not known.
    """
    try:
        found = tomllib.loads(file.read_text())
        phases = tuple(tuple(Step(**step) for step in phase["steps"]) for phase in found.pop("phase", ()))
        scenario = Scenario(**found, phases=phases)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is not a scenario: {error}") from None
    for name in scenario.faults:
        if name not in known:
            raise ConfigError(f"{file} has a fault {name!r}, which is not known: see --list")
    return scenario
