"""When the drill hurt the system, and when its processes stood still or were gone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from election.drill.history import Fact, History
from election.drill.vocabulary import Done

_NEVER_S = float("inf")
_WORD, _MEMBER = re.compile(r"[\w.-]*\w"), re.compile(r"m\d+")


@dataclass(frozen=True, slots=True)
class Harm:
    """One fault, from when it was injected until it was healed: infinity where that is not told."""

    number: int
    fault: str
    on: str
    began_at_s: float
    healing_at_s: float = _NEVER_S
    healed_at_s: float = _NEVER_S

    @property
    def words(self) -> frozenset[str]:
        """What its description of whom it hurts consists of: names of processes, of members of etcd, and others."""
        return frozenset(_WORD.findall(self.on))

    @property
    def is_of_etcd(self) -> bool:
        """Whether it hurts members of etcd, or what lies before it for everybody."""
        return "all" in self.words or any(_MEMBER.fullmatch(word) for word in self.words)

    def overlaps(self, from_s: float, until_s: float) -> bool:
        """Whether it was in effect at some time from the one moment to the other."""
        return self.began_at_s <= until_s and from_s <= self.healed_at_s


def harms(history: History) -> list[Harm]:
    """All faults, in the order in which they were injected."""
    ends = {
        (fact.what, fact.more["number"]): fact.at_s
        for fact in history.facts
        if fact.what in (Done.HEALING, Done.HEALED)
    }
    return [
        Harm(
            number := fact.more["number"],
            fact.more["fault"],
            _text(fact.more.get("on") or fact.who),
            fact.at_s,
            ends.get((Done.HEALING, number), _NEVER_S),
            ends.get((Done.HEALED, number), _NEVER_S),
        )
        for fact in history.facts
        if fact.what == Done.INJECTED
    ]


def pauses(history: History) -> list[tuple[str, float, float]]:
    """Every process that stood still, from when and until when; a pause that was not ended lasts for ever."""
    paused: dict[str, float] = {}
    found = []
    for fact in history.facts:
        if fact.what == Done.PAUSED:
            paused.setdefault(fact.who, fact.at_s)
        elif fact.what in (Done.RESUMED, Done.KILLED) and fact.who in paused:
            found.append((fact.who, paused.pop(fact.who), fact.at_s))
    return sorted([*found, *((who, at_s, _NEVER_S) for who, at_s in paused.items())], key=lambda each: each[1])


def slots(history: History) -> dict[str, str]:
    """The name that each process shares with its predecessors, which is also a candidate's or an agent's id."""
    return {fact.who: fact.more.get("slot", fact.who) for fact in history.facts if fact.what == Done.STARTED}


def times(facts: Iterable[Fact], what: str) -> list[float]:
    """When it was done."""
    return [fact.at_s for fact in facts if fact.what == what]


def _text(on: object) -> str:
    return ", ".join(map(str, on)) if isinstance(on, list | tuple) else str(on)
