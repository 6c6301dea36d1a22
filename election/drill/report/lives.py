"""When each process of a drill was there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from election.drill.history import History
from election.drill.vocabulary import Done

_ENDS = {Done.KILLED: "killed", Done.ENDED: "ended by itself", Done.LEAVES: "left"}


@dataclass(frozen=True, slots=True)
class Life:
    """One process from its start to its end, which is that of the drill where nothing ended it.

    `slot` is the name that it shares with those that came before it in its place.
    """

    process: str
    slot: str
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
            slot = fact.more.get("slot", fact.who)
            begun[fact.who] = Life(fact.who, slot, fact.more["role"], fact.at_s, until_s)
        elif fact.what in _ENDS and fact.who in begun:
            life = begun.pop(fact.who)
            found.append(replace(life, ended_at_s=fact.at_s, end=_ENDS[Done(fact.what)]))
    return sorted([*found, *begun.values()], key=lambda life: life.began_at_s)
