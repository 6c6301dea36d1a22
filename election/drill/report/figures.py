"""The figures of a drill: what the page, the terminal and the JSON document show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from election.drill.checker import Verdict, all_held
from election.drill.checker.agents import until_set_back
from election.drill.checker.deadlines import collected, stale_times
from election.drill.checker.harm import harms
from election.drill.checker.health import well
from election.drill.checker.registers import registers
from election.drill.checker.terms import terms
from election.drill.history import History, Settings
from election.drill.report.spread import Spread
from election.drill.report.vacancies import Vacancy, reigns, unfinished, vacancies
from election.drill.vocabulary import Done, Told


@dataclass(frozen=True, slots=True)
class Writes:
    """How a register has answered; `late` writes were tried on purpose after the term was over."""

    register: str
    acknowledged: int
    refused: int
    unsure: int
    late: int
    held: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: how often it was done, how often it cost a leader, and how long nobody led then."""

    fault: str
    injected: int
    skipped: int
    takeovers: Spread


@dataclass(frozen=True, slots=True)
class Collecting:
    """Agents until etcd was set back: what became of the dead, and how long that took.

    `collected` counts from when all was well, `lay` from the death, whatever was wrong.
    """

    incarnations: int
    reaped: int
    back: int
    wrote: int
    well_s: float
    collected: Spread
    lay: Spread


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is counted and measured in one history."""

    settings: Settings
    verdicts: Sequence[Verdict]
    began_at_s: float
    took_s: float
    kinds: Sequence[Kind]
    terms: int
    leaders: int
    acts: int
    vacancies: Sequence[Vacancy]
    unfinished: Vacancy | None
    writes: Sequence[Writes]
    reads: Counter[str]
    collecting: Collecting
    revisions: int

    @classmethod
    def of(cls, history: History, verdicts: Sequence[Verdict]) -> Figures:
        """Counts what is in a history that was judged."""
        led, vacant = reigns(history), vacancies(history)
        began_at_s, ended_at_s = span(history)
        return cls(
            settings=history.settings,
            verdicts=tuple(verdicts),
            began_at_s=began_at_s,
            took_s=ended_at_s - began_at_s,
            kinds=_kinds(history, vacant),
            terms=len(led),
            leaders=len({reign.candidate for reign in led}),
            acts=sum(len(term.acts) for term in terms(history)),
            vacancies=vacant,
            unfinished=unfinished(history),
            writes=_writes(history),
            reads=_reads(history),
            collecting=_collecting(until_set_back(history)),
            revisions=len(history.revisions) + len(history.later),
        )

    @property
    def passed(self) -> bool:
        """Whether every invariant has held."""
        return all_held(self.verdicts)

    @property
    def faults(self) -> int:
        """How many faults were done."""
        return sum(kind.injected for kind in self.kinds)

    @property
    def takeovers(self) -> Spread:
        """How long nobody led, after whatever it was."""
        return Spread.of(each.lasted_s for each in self.vacancies)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        collecting = self.collecting
        return {
            "passed": self.passed,
            "settings": asdict(self.settings),
            "took_s": round(self.took_s, 1),
            "verdicts": [_verdict(each) for each in self.verdicts],
            "faults": self.faults,
            "kinds": [
                {"fault": each.fault, "injected": each.injected, "skipped": each.skipped}
                | {"takeovers": each.takeovers.document()}
                for each in self.kinds
            ],
            "terms": self.terms,
            "leaders": self.leaders,
            "acts": self.acts,
            "takeovers": self.takeovers.document(),
            "unfinished_s": round(self.unfinished.lasted_s, 3) if self.unfinished else None,
            "writes": [asdict(each) for each in self.writes],
            "reads": dict(self.reads),
            "agents": {name: getattr(collecting, name) for name in ("incarnations", "reaped", "back", "wrote")}
            | {
                "well_s": round(collecting.well_s, 1),
                "bound_s": self.settings.bound_s,
                "collected": collecting.collected.document(),
                "lay": collecting.lay.document(),
            },
            "revisions": self.revisions,
        }


def span(history: History) -> tuple[float, float]:
    """The times of the first and of the last line."""
    lines_s = [fact.at_s for facts in (history.facts, history.told, history.said) for fact in facts]
    return min(lines_s, default=0.0), max(lines_s, default=0.0)


def _kinds(history: History, vacant: Sequence[Vacancy]) -> list[Kind]:
    """Those that were done or skipped, and whatever else a vacancy was put down to; the most frequent first."""
    injected = Counter(each.fault for each in harms(history))
    skipped = Counter(fact.more["fault"] for fact in history.facts if fact.what == Done.SKIPPED)
    names = {*injected, *skipped, *(each.fault for each in vacant)}
    return [
        Kind(
            name,
            injected[name],
            skipped[name],
            Spread.of(each.lasted_s for each in vacant if each.fault == name),
        )
        for name in sorted(names, key=lambda name: (-injected[name], name))
    ]


def _writes(history: History) -> list[Writes]:
    return [
        Writes(
            each.name,
            len(each.wrote),
            len(each.refused),
            len(each.unsure),
            sum(bool(fact.more.get("late")) for fact in each.tried.values()),
            len(each.rows),
        )
        for each in sorted(registers(history), key=lambda each: each.name)
    ]


def _reads(history: History) -> Counter[str]:
    reads: Counter[str] = Counter()
    for fact in history.told:
        if fact.what == Told.SAW:
            reads["leaders told" if "token" in fact.more else "vacancies told"] += 1
        elif fact.what == Told.UNTOLD:
            reads["answers refused"] += 1
    return reads


def _collecting(history: History) -> Collecting:
    stale = stale_times(history)
    said = Counter(each.what for each in history.said)
    return Collecting(
        incarnations=len({(each.agent, each.incarnation) for each in history.said if each.what == "registered"}),
        reaped=sum(each.end == "reaped" for each in stale),
        back=sum(each.end == "back" for each in stale),
        wrote=said["wrote"],
        well_s=sum(each.ended_at_s - each.began_at_s for each in well(history)),
        collected=Spread.of(each.took_s for each in collected(history)),
        lay=Spread.of(each.lay_s for each in stale if each.end == "reaped"),
    )


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "invariant": verdict.invariant,
        "state": verdict.state.value,
        "examined": verdict.examined,
        "why": verdict.why,
        "violations": [asdict(violation) for violation in verdict.violations],
    }
