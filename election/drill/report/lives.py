"""When each process of a drill was there, and which of them share a lane of the picture."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from election.drill.history import History
from election.drill.vocabulary import Done

_NUMBERED = re.compile(r"(.+)-\d+")
_ENDS = {Done.KILLED: "killed", Done.GONE: "gone", Done.LEAVES: "left"}


@dataclass(frozen=True, slots=True)
class Life:
    """One process from its start to its end, which is that of the drill where nothing ended it."""

    process: str
    role: str
    began_at_s: float
    ended_at_s: float
    end: str = ""


def lives(history: History, until_s: float) -> list[Life]:
    """All processes that the drill has started, in order; a name that was used again has several lives."""
    begun: dict[str, Life] = {}
    found = []
    for fact in history.facts:
        if fact.what == Done.STARTED:
            begun[fact.who] = Life(fact.who, fact.more["role"], fact.at_s, until_s)
        elif fact.what in _ENDS and fact.who in begun:
            life = begun.pop(fact.who)
            found.append(Life(life.process, life.role, life.began_at_s, fact.at_s, _ENDS[Done(fact.what)]))
    return sorted([*found, *begun.values()], key=lambda life: life.began_at_s)


def lane_names(found: list[Life]) -> dict[str, str]:
    """The lane of each process: its own, or one for all of a name like `o1-1`, `o1-2`, that lived one by one."""
    families: dict[str, list[Life]] = defaultdict(list)
    for life in found:
        match = _NUMBERED.fullmatch(life.process)
        families[match[1] if match else life.process].append(life)
    lanes = {}
    for family, members in families.items():
        one_by_one = all(before.ended_at_s <= after.began_at_s for before, after in pairwise(members))
        for life in members:
            lanes[life.process] = family if one_by_one else life.process
    return lanes
