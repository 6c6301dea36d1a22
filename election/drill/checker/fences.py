"""Fencing: what the registers have taken and refused, against what the processes have written and were told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from election.drill.checker.registers import Register, Row, registers, token_of
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import Fact, History
from election.drill.workload.registers import ETCD
from election.token import Token

FENCE, NO_WRITE_LOST = "fence", "no acknowledged write lost"
_NEVER_S = float("inf")
_SEEN_LATE_S = 10.0
"""By so much the end of a term may be seen later than it was, when the observer is cut off itself."""


def fencing(history: History, holes: Sequence[str]) -> Iterator[Verdict]:
    """The two verdicts on registers."""
    found = registers(history)
    holes = [*holes, *(f"the content of register {each.name} is missing" for each in found if each.content is None)]
    fence = [violation for each in found for violation in _fence(each)]
    lost = [violation for each in found for violation in _lost(each)]
    answered = sum(len(each.wrote) + len(each.refused) for each in found)
    yield Verdict.of(FENCE, answered, fence, holes)
    yield Verdict.of(NO_WRITE_LOST, sum(len(each.wrote) for each in found), lost, holes)


# --- the fence ----------------------------------------------------------------------------------------------------


def _fence(register: Register) -> Iterator[Violation]:
    yield from _out_of_order(register)
    yield from _let_through(register)
    yield from _wrongly_refused(register)


def _out_of_order(register: Register) -> Iterator[Violation]:
    for part in register.parts:
        for before, row in pairwise([*([part.restored] if part.restored else []), *part.rows]):
            if row.token < before.token:
                at_s = _at_s(register, register.tried.get((row.by, row.n)))
                text = f"register {register.name} took {row.token} of {row.by} after {before.token} of {before.by}"
                yield Violation(FENCE, 0, "", text, at_s)


def _let_through(register: Register) -> Iterator[Violation]:
    """A write was confirmed although a larger token had been confirmed before it was begun."""
    confirmed = sorted(register.wrote, key=lambda fact: fact.more["ended_at_s"])
    set_back_s = list(register.unseen_s)
    highest: Token | None = None
    number = 0
    for write in sorted(register.wrote, key=lambda fact: fact.at_s):
        while set_back_s and set_back_s[0] <= write.at_s:  # what was confirmed before may be gone
            highest, begun_s = None, set_back_s.pop(0)
            while number < len(confirmed) and confirmed[number].at_s < begun_s:
                number += 1
        while number < len(confirmed) and confirmed[number].more["ended_at_s"] < write.at_s:
            highest = max(highest or token_of(confirmed[number]), token_of(confirmed[number]))
            number += 1
        if highest is not None and token_of(write) < highest:
            text = f"register {register.name} took {_of(write)} after it had confirmed {highest}"
            yield Violation(FENCE, 0, "", text, write.at_s)


def _wrongly_refused(register: Register) -> Iterator[Violation]:
    """A write was refused although nobody had come with a larger token, and etcd held the term's key."""
    tried = sorted(register.tried.values(), key=lambda fact: fact.at_s)
    highest: Token | None = None
    number = 0
    for refusal in sorted(register.refused, key=lambda fact: fact.more["ended_at_s"]):
        ended_at_s = refusal.more["ended_at_s"]
        while number < len(tried) and tried[number].at_s <= ended_at_s:
            highest = max(highest or token_of(tried[number]), token_of(tried[number]))
            number += 1
        larger = highest is not None and token_of(refusal) < highest
        over_s = register.over_at_s.get(token_of(refusal), _NEVER_S)
        if not larger and over_s > ended_at_s + _SEEN_LATE_S:
            text = f"register {register.name} refused {_of(refusal)}, and nobody had come with a larger token"
            yield Violation(FENCE, 0, "", text, refusal.at_s)


# --- what was written ---------------------------------------------------------------------------------------------


def _lost(register: Register) -> Iterator[Violation]:
    name = f"register {register.name}"
    held: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in register.rows:
        held[row.by, row.n].append(row)
    seen_from_s = max(register.unseen_s, default=0.0)
    for write in register.wrote:
        count = len(held[write.more["process"], write.more["n"]])
        if register.content is not None and count == 0 and write.at_s > seen_from_s:
            yield _write(register, write, f"{name} has confirmed {_of(write)}, and does not hold it")
    for (by, n), rows in held.items():
        tried = register.tried.get((by, n))
        if len(rows) > 1:
            yield _write(register, tried, f"{name} holds write {n} of {by} {len(rows)} times")
        for row in rows:
            if tried is None or token_of(tried) != row.token:
                yield _write(register, tried, f"{name} holds write {n} of {by} with {row.token}, which it never tried")
    for refusal in register.refused:
        if held.get((refusal.more["process"], refusal.more["n"])):
            yield _write(register, refusal, f"{name} has refused {_of(refusal)}, and holds it")
    yield from _disagrees(register)


def _disagrees(register: Register) -> Iterator[Violation]:
    """What the register says at the end is the end of what etcd's revisions say."""
    rows, content = register.rows, register.content or []
    if register.name == ETCD and content and content != rows[-len(content) :]:
        yield _write(
            register, None, f"register {register.name} says that it holds other writes than etcd's revisions tell"
        )


def _write(register: Register, fact: Fact | None, text: str) -> Violation:
    return Violation(NO_WRITE_LOST, 0, "", text, _at_s(register, fact))


def _at_s(register: Register, fact: Fact | None) -> float:
    """When it was tried; what never was is seen at the end."""
    return fact.at_s if fact else register.read_at_s


def _of(fact: Fact) -> str:
    return f"write {fact.more['n']} of {fact.more['process']} with {fact.more['token']}"
