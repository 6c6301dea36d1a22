"""Histories of orchestrators that are told by hand: terms, writes, readers and faults."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

from election.drill.history import Change, Fact, History, Revision, Settings
from election.drill.vocabulary import Done, Told
from election.drill.workload.registers import ETCD, etcd_key
from election.records import CandidateRecord
from election.token import Token
from tests.chaos.story import KEYS, SETTINGS, Story

ELECTION = SETTINGS.election
TERM_S = 2.0
"""What a renewal gives: it is less than the TTL, by the margin."""
_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Saga(Story):
    """A story in which orchestrators lead as well; `ready` is told after `wait` has let time pass.

    The processes are `o1` to `o3`, which are their candidates' ids too, a server `s1` and a reader `r1`.
    """

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__()
        self.settings = settings
        self.told: list[Fact] = []
        self.later: list[Revision] = []
        self.tokens: dict[str, Token] = {}
        self.deadlines: dict[str, float] = {}
        self.content: dict[str, list[list[Any]]] = defaultdict(list)
        self.epoch = 0
        self._written: Counter[str] = Counter()
        self._faults = 0
        self._before: list[Revision] = []
        roles = {"o1": "orchestrator", "o2": "blocking orchestrator", "o3": "orchestrator", "s1": "server"}
        for process, role in {**roles, "r1": "reader"}.items():
            self.fact(Done.STARTED, process, role=role)
            if role != "server":
                self.tell(Told.RUNS, process)

    def history(self) -> History:
        """All of it, with what the registers hold at the end, and nothing left over."""
        for register, rows in self.content.items():
            self.fact(Done.CONTENT, register, rows=rows)
        self.fact(Done.LEFT_OVER, texts=[])
        told = tuple(sorted(self.told, key=lambda each: each.at_s))
        history = replace(super().history(), settings=self.settings, told=told)
        if self._before:
            return replace(history, revisions=tuple(self._before), later=tuple(self.revisions))
        return history

    def tell(self, what: str, process: str, *, at_s: float = 0.0, **more: Any) -> Self:
        """A process writes a line."""
        who = process if what == Told.TERM_BEGAN else ""
        self.told.append(Fact(at_s or self.now_s, what, who, {"process": process, **more}))
        return self

    # --- terms -------------------------------------------------------------------------------------------------

    def key(self, process: str) -> bytes:
        """The key that a candidate has made, or will make."""
        token = self.tokens.get(process)
        return KEYS.candidate(ELECTION, 5000 + (token.revision if token else self.revision))

    def wins(self, process: str) -> Self:
        """Its key is made, and proven, in etcd; it says nothing yet."""
        self.tokens[process] = Token(self.epoch, self.revision + 1)
        key, record = self.key(process), CandidateRecord(process)
        self.do((key, record.encode()))
        self.do((key, replace(record, elected_at=_AT, epoch=self.epoch).encode()))
        return self

    def begins(self, process: str) -> Self:
        """Its work begins."""
        self.deadlines[process] = self.now_s + TERM_S
        self.tell(Told.TERM_BEGAN, process, token=str(self.tokens[process]), deadline_s=self.deadlines[process])
        return self.acts(process)

    def leads(self, process: str, for_s: float = 0.0) -> Self:
        """Wins, and leads for a time, with renewals and acts."""
        return self.wins(process).begins(process).goes_on(process, for_s)

    def goes_on(self, process: str, for_s: float) -> Self:
        """Leads for a time."""
        until_s = self.now_s + for_s
        while self.now_s < until_s:
            self.renews(process).acts(process).wait(min(0.5, until_s - self.now_s))
        return self

    def renews(self, process: str) -> Self:
        """Its deadline moves on."""
        self.deadlines[process] = self.now_s + TERM_S
        self.tell(Told.DEADLINE, process, token=str(self.tokens[process]), deadline_s=self.deadlines[process])
        return self

    def acts(self, process: str) -> Self:
        """`check` has passed."""
        self.now_s += 0.001
        return self.tell(Told.ACTED, process, token=str(self.tokens[process]), ended_at_s=self.now_s + 0.001)

    def loses(self, process: str, reason: str = "transferred") -> Self:
        """It notices that its term is over, and ends its work; its key is still there."""
        token, noticed_at_s = str(self.tokens[process]), self.now_s
        self.wait(0.01)
        self.tell(Told.TERM_ENDED, process, token=token)
        remained_s = self.deadlines[process] - noticed_at_s
        return self.tell(
            Told.TERM_LOST, process, token=token, reason=reason, noticed_at_s=noticed_at_s, remained_s=remained_s
        )

    def goes(self, process: str) -> Self:
        """Its key is gone."""
        self.do((self.key(process), None))
        return self

    def kills(self, process: str) -> Self:
        """SIGKILL."""
        self.fact(Done.KILLED, process).wait(0.01)
        self.fact(Done.GONE, process)
        return self

    # --- registers -----------------------------------------------------------------------------------------------

    def tries(self, process: str, register: str, token: Token | None = None) -> tuple[int, str]:
        """It is about to write; returns what."""
        self._written[process] += 1
        number, text = self._written[process], str(token or self.tokens[process])
        self.tell(Told.WRITES, process, register=register, token=text, n=number)
        return number, text

    def writes(self, process: str, register: str = "sqlite", token: Token | None = None, *, holds: bool = True) -> Self:
        """It writes, and the register confirms it, and holds it then."""
        self.now_s += 0.001
        at_s, (number, text) = self.now_s, self.tries(process, register, token)
        if holds:
            self.holds(register, text, number, process)
        self.now_s += 0.01
        return self.tell(Told.WROTE, process, at_s=at_s, register=register, token=text, n=number, ended_at_s=self.now_s)

    def holds(self, register: str, token: str, number: int, by: str) -> Self:
        """A register takes a row."""
        self.content[register].append([token, number, by])
        if register == ETCD:
            self.do((etcd_key(KEYS), json.dumps({"token": token, "n": number, "by": by}).encode()))
        return self

    def refused(self, process: str, register: str, token: Token) -> Self:
        """It writes, and the register refuses the token."""
        at_s, (number, text) = self.now_s, self.tries(process, register, token)
        self.now_s += 0.01
        more = {"register": register, "token": text, "n": number, "ended_at_s": self.now_s}
        return self.tell(Told.REFUSED, process, at_s=at_s, why="deposed", **more)

    # --- readers -------------------------------------------------------------------------------------------------

    def sees(
        self,
        process: str,
        via: str = "get",
        *,
        age_s: float = 0.0,
        revision: int = 0,
        session: int = 1,
        at_s: float = 0.0,
        server: str = "s1",
    ) -> Self:
        """The reader is told that this candidate leads, or that nobody does."""
        of = {"token": str(self.tokens[process]), "leader": process} if process else {}
        at_s, ended_at_s = at_s or self.now_s, self.now_s + 0.01
        where = {"server": server, "via": via, "session": session, "age_s": age_s, "ended_at_s": ended_at_s}
        self.tell(Told.SAW, "r1", at_s=at_s, revision=revision or self.revision, **where, **of)
        self.now_s = ended_at_s + 0.001
        return self

    # --- what is done to them --------------------------------------------------------------------------------------

    def fault(self, name: str, who: str = "") -> Self:
        """A fault begins."""
        self._faults += 1
        self.fact(Done.INJECTED, who, number=self._faults, fault=name, on=who)
        self.fact(Done.HARMED, who, number=self._faults)
        return self

    def heals(self) -> Self:
        """The last fault is taken back."""
        self.fact(Done.HEALING, number=self._faults).fact(Done.HEALED, number=self._faults)
        return self

    def healed(self) -> Self:
        """All is healed."""
        self.fact(Done.ALL_HEALED)
        return self

    def robs(self, process: str, how: str = "key") -> Self:
        """A stranger deletes the key of a candidate."""
        self.fact(Done.ROBBED, process, token=str(self.tokens[process]), how=how)
        return self.goes(process)

    def set_back(self, to: int, *, bumped: bool = False) -> Self:
        """Etcd begins again with what it held at a revision."""
        assert not self._before
        self.fact(Done.SET_BACK, bumped=bumped)
        self.stored = {}
        for revision in self.revisions:
            if revision.number <= to:
                for change in revision.changes:
                    self.stored.pop(change.key, None)
                    if change.after is not None:
                        self.stored[change.key] = change.after
        self._before, number = self.revisions, to + 1000 * bumped
        held = tuple(Change(key, None, stored) for key, stored in self.stored.items())
        self.now_s += 1
        self.revisions = [Revision(number, self.now_s, held)]
        return self
