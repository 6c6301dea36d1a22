"""Many runs, one after the other or in several processes."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from tests.simulation.explorer import Outcome, explore
from tests.simulation.mistakes import MISTAKES
from tests.simulation.plan import draw

_AT_ONCE = 20
"""How many runs a process does before their garbage is collected, and before it tells of them."""


def outcomes(seeds: range, workers: int, name: str | None) -> Iterator[Outcome]:
    """What became of each run, in the order of the seeds."""
    parts = [(seeds[begin : begin + _AT_ONCE], name) for begin in range(0, len(seeds), _AT_ONCE)]
    if workers == 1:
        yield from itertools.chain.from_iterable(map(_explore_some, parts))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from itertools.chain.from_iterable(pool.imap(_explore_some, parts))


def _explore_some(part: tuple[range, str | None]) -> list[Outcome]:
    seeds, name = part
    done = []
    with made(name):
        for seed in seeds:
            done.append(explore(draw(seed)))
            if done[-1].violation is not None:
                break
    gc.collect()
    return done


def made(name: str | None) -> AbstractContextManager[None]:
    """A known mistake while it is made; nothing where none is named."""
    return nullcontext() if name is None else MISTAKES[name].made()
