"""What came of a drill, for people and as JSON."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from election.drill.checker.agents import violations as check
from election.drill.checker.deadlines import collected, stale_times
from election.drill.checker.health import well
from election.drill.checker.violation import Violation
from election.drill.history import History, Settings
from election.drill.vocabulary import Done
from tests.bench.samples import Samples


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one drill, and what it has found."""

    settings: Settings
    etcd: str
    took_s: float
    faults: Counter[str]
    counts: dict[str, int]
    well_s: float
    collected: Samples
    lay: Samples
    seen: Sequence[str]
    violations: Sequence[Violation]

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        etcd: str,
        took_s: float,
        faults: Counter[str] | None = None,
        seen: Sequence[str] = (),
    ) -> Report:
        """Judges the history in a folder, and counts what is in it."""
        history = History.load(folder)
        stale = stale_times(history)
        ends = Counter(each.end for each in stale)
        counts = {
            "revisions": len(history.revisions),
            "starts of agents": sum(fact.what == "agent started" for fact in history.facts),
            "of them ended by kill -9": sum(fact.what == Done.KILLED for fact in history.facts),
            "incarnations": len({(each.agent, each.incarnation) for each in history.said if each.what == "registered"}),
            "times that state had no living agent": ends.total(),
            "of them reaped": ends["reaped"],
            "of them back in time": ends["back"],
            "writes that agents were told of": sum(each.what == "wrote" for each in history.said),
            "checks that held": sum(each.what == "acted" for each in history.said),
        }
        return cls(
            settings=history.settings,
            etcd=etcd,
            took_s=took_s,
            faults=faults or Counter(),
            counts=counts,
            well_s=sum(each.ended_at_s - each.began_at_s for each in well(history)),
            collected=Samples("from well to collected", [each.took_s * 1000 for each in collected(history)]),
            lay=Samples(
                "from its death until collected", [each.lay_s * 1000 for each in stale if each.end == "reaped"]
            ),
            seen=seen,
            violations=check(history),
        )

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "seed": self.settings.seed,
            "etcd": self.etcd,
            "took_s": round(self.took_s, 1),
            "rounds": self.faults.total(),
            "faults": dict(self.faults.most_common()),
            "counts": self.counts,
            "well_s": round(self.well_s, 1),
            "bound_s": self.settings.bound_s,
            "collected": self.collected.document() if self.collected.values_ms else None,
            "lay": self.lay.document() if self.lay.values_ms else None,
            "seen": list(self.seen),
            "violations": [
                {"rule": each.rule, "revision": each.revision, "agent": each.agent, "text": each.text}
                for each in self.violations
            ],
        }


def print_report(report: Report) -> None:
    """Tables of 80 columns, to stdout."""
    console = Console(file=sys.stdout, highlight=False, markup=False, width=80)
    console.print(f"etcd {report.etcd}; seed {report.settings.seed}; {report.took_s:.0f} s")
    for line in report.seen:
        console.print(f"seen: {line}")
    if report.faults:
        table = Table(box=None, pad_edge=False)
        table.add_column("fault")
        table.add_column("rounds", justify="right")
        for fault, count in report.faults.most_common():
            table.add_row(fault, str(count))
        table.add_row("together", str(report.faults.total()))
        console.print(table)
    for name, count in report.counts.items():
        console.print(f"{count:8,} {name}")
    console.print(f"{report.well_s:8,.0f} seconds in which all was well")
    table = Table(box=None, pad_edge=False)
    for column in ("seconds until a dead agent was collected", "n", "p50", "p99", "max", "bound"):
        table.add_column(column, justify="left" if column[0] == "s" else "right")
    _add(table, "from when all was well", report.collected, f"{report.settings.bound_s:g}")
    _add(table, "from its death, whatever was wrong", report.lay, "-")
    console.print(table)
    for violation in report.violations:
        console.print(f"VIOLATION {violation}")
    console.print(f"{len(report.violations)} violations")


def _add(table: Table, name: str, samples: Samples, bound: str) -> None:
    if samples.values_ms:
        shown = (f"{samples.percentile_ms(percent) / 1000:.2f}" for percent in (50, 99, 100))
        table.add_row(name, str(len(samples.values_ms)), *shown, bound)
