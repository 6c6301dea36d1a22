"""Fencing: what the registers have taken and refused, against what the processes have written and were told.

A register keeps every write that it takes, in order. That of etcd is one key, so its order is etcd's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from election.drill.checker.eras import eras, terms_in_etcd
from election.drill.checker.harm import times
from election.drill.checker.replay import object_of
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import Fact, History
from election.drill.vocabulary import Done, Told
from election.drill.workload.registers import ETCD, etcd_key
from election.keys import Keyspace
from election.token import Token

FENCE, NO_WRITE_LOST = "fence", "no acknowledged write lost"
_NEVER_S = float("inf")
_SEEN_LATE_S = 10.0
"""By so much the end of a term may be seen later than it was, when the observer is cut off itself."""
_WRITTEN = (Told.WRITES, Told.WROTE, Told.REFUSED, Told.UNSURE)


@dataclass(frozen=True, slots=True)
class Row:
    """One write that a register holds: the `n`th of a process."""

    token: Token
    n: int
    by: str


@dataclass
class Register:
    """What is told of one register, and what it holds: each of `parts` begins with what etcd was set back to."""

    name: str
    tried: dict[tuple[str, int], Fact] = field(default_factory=dict)
    wrote: list[Fact] = field(default_factory=list)
    refused: list[Fact] = field(default_factory=list)
    unsure: list[Fact] = field(default_factory=list)
    content: list[Row] | None = None
    read_at_s: float = 0.0
    parts: list[list[Row]] = field(default_factory=list)
    set_back_s: Sequence[float] = ()
    over_at_s: dict[Token, float] = field(default_factory=dict)
    """Of etcd: when the key of each term was seen to be gone. Nothing is let through after that."""

    @property
    def rows(self) -> list[Row]:
        """Everything that it has ever held."""
        return [row for part in self.parts for row in part]


def registers(history: History) -> list[Register]:
    """All registers that something was written to, or whose content is told."""
    found: dict[str, Register] = {}

    def named(name: str) -> Register:
        return found.setdefault(name, Register(name))

    for fact in history.told:
        if fact.what in _WRITTEN:
            register = named(fact.more["register"])
            match fact.what:
                case Told.WRITES:
                    register.tried[fact.more["process"], fact.more["n"]] = fact
                case Told.WROTE:
                    register.wrote.append(fact)
                case Told.REFUSED:
                    register.refused.append(fact)
                case Told.UNSURE:
                    register.unsure.append(fact)
    for fact in history.facts:
        if fact.what == Done.CONTENT:
            register = named(fact.who)
            register.content = [Row(Token.parse(token), n, by) for token, n, by in fact.more["rows"]]
            register.read_at_s = fact.at_s
    for register in found.values():
        register.parts = [register.content or []]
    if ETCD in found:
        _follow_etcd(found[ETCD], history)
    return list(found.values())


def _follow_etcd(register: Register, history: History) -> None:
    """Adds what etcd's revisions tell."""
    register.parts = _of_etcd(history) or register.parts
    register.set_back_s = times(history.facts, Done.SET_BACK)
    for terms in terms_in_etcd(history):
        register.over_at_s |= terms.over_at_s


def _of_etcd(history: History) -> list[list[Row]]:
    """What the key has held, from one time that etcd was set back to the next."""
    parts = []
    register_key = etcd_key(Keyspace(history.settings.namespace))
    seen: set[Row] = set()
    for era in eras(history):
        part = []
        for revision in era:
            for change in revision.changes:
                if change.key == register_key and change.after is not None:
                    value = object_of(change.after.value)
                    row = Row(Token.parse(value["token"]), value["n"], value["by"])
                    if row not in seen or revision is not era[0]:  # an era begins with what was there before
                        part.append(row)
                    seen.add(row)
        parts.append(part)
    return parts if any(parts) else []


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
        for before, row in pairwise(part):
            if row.token < before.token:
                at_s = _at_s(register, register.tried.get((row.by, row.n)))
                text = f"register {register.name} took {row.token} of {row.by} after {before.token} of {before.by}"
                yield Violation(FENCE, 0, "", text, at_s)


def _let_through(register: Register) -> Iterator[Violation]:
    """A write was confirmed although a larger token had been confirmed before it was begun."""
    confirmed = sorted(register.wrote, key=lambda fact: fact.more["ended_at_s"])
    set_back_s = list(register.set_back_s)
    highest: Token | None = None
    number = 0
    for write in sorted(register.wrote, key=lambda fact: fact.at_s):
        while set_back_s and set_back_s[0] <= write.at_s:  # what was confirmed before may be gone
            highest, begun_s = None, set_back_s.pop(0)
            while number < len(confirmed) and confirmed[number].at_s < begun_s:
                number += 1
        while number < len(confirmed) and confirmed[number].more["ended_at_s"] < write.at_s:
            highest = max(highest or _token(confirmed[number]), _token(confirmed[number]))
            number += 1
        if highest is not None and _token(write) < highest:
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
            highest = max(highest or _token(tried[number]), _token(tried[number]))
            number += 1
        larger = highest is not None and _token(refusal) < highest
        over_s = register.over_at_s.get(_token(refusal), _NEVER_S)
        if not larger and over_s > ended_at_s + _SEEN_LATE_S:
            text = f"register {register.name} refused {_of(refusal)}, and nobody had come with a larger token"
            yield Violation(FENCE, 0, "", text, refusal.at_s)


# --- what was written ---------------------------------------------------------------------------------------------


def _lost(register: Register) -> Iterator[Violation]:
    name = f"register {register.name}"
    held: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in register.rows:
        held[row.by, row.n].append(row)
    last_set_back_s = max(register.set_back_s, default=0.0)
    for write in register.wrote:
        count = len(held[write.more["process"], write.more["n"]])
        if register.content is not None and count == 0 and write.at_s > last_set_back_s:
            yield _write(register, write, f"{name} has confirmed {_of(write)}, and does not hold it")
    for (by, n), rows in held.items():
        tried = register.tried.get((by, n))
        if len(rows) > 1:
            yield _write(register, tried, f"{name} holds write {n} of {by} {len(rows)} times")
        for row in rows:
            if tried is None or _token(tried) != row.token:
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


def _token(fact: Fact) -> Token:
    return Token.parse(fact.more["token"])


def _of(fact: Fact) -> str:
    return f"write {fact.more['n']} of {fact.more['process']} with {fact.more['token']}"
