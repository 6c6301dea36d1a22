"""The registers that a drill writes to: what they hold, and what the processes have tried and were told.

A register keeps every write that it takes, in order. That of etcd is one key, so its order is etcd's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from election.drill.checker.eras import eras, terms_in_etcd
from election.drill.checker.harm import times
from election.drill.checker.replay import object_of
from election.drill.history import Fact, History
from election.drill.vocabulary import Done, Told
from election.drill.workload.registers import ETCD, etcd_key
from election.keys import Keyspace
from election.token import Token

_WRITTEN = (Told.WRITES, Told.WROTE, Told.REFUSED, Told.UNSURE)


@dataclass(frozen=True, slots=True)
class Row:
    """One write that a register holds: the `n`th of a process."""

    token: Token
    n: int
    by: str


@dataclass
class Part:
    """What a register has taken, in order; `restored` is what etcd was set back to before."""

    rows: list[Row] = field(default_factory=list)
    restored: Row | None = None


@dataclass
class Register:
    """What is told of one register, and what it holds, in parts: that of etcd begins anew when etcd is set back."""

    name: str
    tried: dict[tuple[str, int], Fact] = field(default_factory=dict)
    wrote: list[Fact] = field(default_factory=list)
    refused: list[Fact] = field(default_factory=list)
    unsure: list[Fact] = field(default_factory=list)
    content: list[Row] | None = None
    read_at_s: float = 0.0
    parts: list[Part] = field(default_factory=list)
    unseen_s: Sequence[float] = ()
    """Of etcd, where it was set back: when, and from when on its revisions were seen again."""
    over_at_s: dict[Token, float] = field(default_factory=dict)
    """Of etcd: when the key of each term was seen to be gone. Nothing is let through after that."""

    @property
    def rows(self) -> list[Row]:
        """Everything that it has ever held."""
        return [row for part in self.parts for row in part.rows]


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
        register.parts = [Part(register.content or [])]
    if ETCD in found:
        _follow_etcd(found[ETCD], history)
    return list(found.values())


def _follow_etcd(register: Register, history: History) -> None:
    """Adds what etcd's revisions tell."""
    register.parts = _of_etcd(history) or register.parts
    known = terms_in_etcd(history)
    for terms in known:
        register.over_at_s |= terms.over_at_s
    for at_s in times(history.facts, Done.SET_BACK):
        register.unseen_s = [at_s, *(revision.seen_at_s for revision in history.later[:1])]
        for token in {token_of(fact) for fact in register.tried.values()} - (known[-1].known if known else set()):
            register.over_at_s.setdefault(token, at_s)  # its key was made after the snapshot


def _of_etcd(history: History) -> list[Part]:
    """What the key has held, from one time that etcd was set back to the next."""
    parts = []
    key = etcd_key(Keyspace(history.settings.namespace))
    for number, era in enumerate(eras(history)):
        part = Part()
        for revision in era:
            for change in revision.changes:
                if change.key == key and change.after is not None:
                    value = object_of(change.after.value)
                    row = Row(Token.parse(value["token"]), value["n"], value["by"])
                    if number and revision is era[0]:
                        part.restored = row
                    else:
                        part.rows.append(row)
        parts.append(part)
    return parts if any(part.rows for part in parts) else []


def token_of(fact: Fact) -> Token:
    """The token of a line."""
    return Token.parse(fact.more["token"])
