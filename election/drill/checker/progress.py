"""After every fault the system gets well by itself: somebody leads, and can write."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from election.drill.checker.harm import harms
from election.drill.checker.registers import Register, registers
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import Fact, History
from election.drill.vocabulary import Done, Told

PROGRESS = "progress"
_ENDS = (Done.INJECTED, Done.KILLED, Done.PAUSED, Done.LEAVES, Done.ROBBED, Done.SET_BACK)


@dataclass(frozen=True, slots=True)
class Calm:
    """A time in which nothing is done to the system, from when all is healed."""

    began_at_s: float
    ended_at_s: float


def calms(history: History) -> list[Calm]:
    """All of them, in order; the last may end with what was written down last."""
    found = []
    since_s: float | None = None
    for fact in history.facts:
        if fact.what == Done.ALL_HEALED and since_s is None:
            since_s = fact.at_s
        elif fact.what in _ENDS and since_s is not None:
            found.append(Calm(since_s, fact.at_s))
            since_s = None
    if since_s is not None:
        last_s = max([history.facts[-1].at_s, *(fact.at_s for fact in history.told[-1:])])
        found.append(Calm(since_s, last_s))
    return found


def progress(history: History, holes: Sequence[str]) -> Verdict:
    """The verdict on every calm, and on whether every fault was taken back."""
    bound_s = history.settings.takeover_bound_s
    all_of_them = calms(history)
    long = [calm for calm in all_of_them if calm.ended_at_s - calm.began_at_s >= bound_s]
    found = [*_led(history, long), *_written(history, long), *_unhealed(history)]
    return Verdict.of(PROGRESS, _seen(history, all_of_them), sorted(found, key=lambda each: each.at_s), holes)


def _seen(history: History, calms: Sequence[Calm]) -> int:
    """In how many calms it is known how they went: those that were long enough, and those in which all was well."""
    bound_s = history.settings.takeover_bound_s
    told = registers(history)
    return sum(
        calm.ended_at_s - calm.began_at_s >= bound_s
        or all(_any_in(register.wrote, calm.began_at_s, calm.ended_at_s) for register in told)
        for calm in calms
    )


def _led(history: History, long: Sequence[Calm]) -> Iterator[Violation]:
    bound_s = history.settings.takeover_bound_s
    acts = [fact for fact in history.told if fact.what in (Told.ACTED, Told.TERM_BEGAN)]
    for calm in long:
        if not _any_in(acts, calm.began_at_s, calm.began_at_s + bound_s):
            text = f"nobody led within {bound_s:g} s after all was healed"
            yield Violation(PROGRESS, 0, "", text, calm.began_at_s)


def _written(history: History, long: Sequence[Calm]) -> Iterator[Violation]:
    """Something reached every register, in a calm that has left time to write once somebody led."""
    enough_s = history.settings.takeover_bound_s + history.settings.slack_s
    told: list[Register] = registers(history)
    for calm in long:
        for register in told:
            if calm.ended_at_s - calm.began_at_s >= enough_s and not _any_in(
                register.wrote, calm.began_at_s, calm.ended_at_s
            ):
                lasted_s = calm.ended_at_s - calm.began_at_s
                text = f"nothing was written to register {register.name} in {lasted_s:.1f} s after all was healed"
                yield Violation(PROGRESS, 0, "", text, calm.began_at_s)


def _unhealed(history: History) -> Iterator[Violation]:
    for harm in harms(history):
        if harm.healed_at_s == float("inf"):
            yield Violation(PROGRESS, 0, "", f"fault {harm.number} ({harm.fault}) was never healed", harm.began_at_s)


def _any_in(facts: Sequence[Fact], from_s: float, until_s: float) -> bool:
    """Whether one of them, which are in the order of time, lies between the two moments."""
    first = bisect_left(facts, from_s, key=lambda fact: fact.at_s)
    inside = takewhile(lambda fact: fact.at_s <= until_s, islice(facts, first, None))
    return any(fact.more.get("ended_at_s", fact.at_s) <= until_s for fact in inside)
