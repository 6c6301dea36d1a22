"""What came of a drill, for people and as JSON."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.samples import Samples
from tests.chaos.deadlines import KILLED, collected, stale_times
from tests.chaos.health import well
from tests.chaos.history import History, Settings
from tests.chaos.violation import Violation


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
    violations: Sequence[Violation]

    @classmethod
    def of(
        cls, history: History, violations: Sequence[Violation], *, done: Counter[str], etcd: str, took_s: float
    ) -> Report:
        """Counts what is in the history."""
        ends = Counter(stale.end for stale in stale_times(history))
        counts = {
            "revisions": len(history.revisions),
            "processes of agents started": sum(fact.what == "agent started" for fact in history.facts),
            "of them killed": sum(fact.what == KILLED for fact in history.facts),
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
            faults=done,
            counts=counts,
            well_s=sum(each.ended_at_s - each.began_at_s for each in well(history)),
            collected=Samples("from well to collected", [each.took_s * 1000 for each in collected(history)]),
            violations=violations,
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
            "collected": self.collected.document(),
            "violations": [
                {"rule": each.rule, "revision": each.revision, "agent": each.agent, "text": each.text}
                for each in self.violations
            ],
        }


def print_report(report: Report) -> None:
    """Tables of 80 columns, to stdout."""
    console = Console(file=sys.stdout, highlight=False, markup=False, width=80)
    console.print(
        f"{report.faults.total()} rounds with seed {report.settings.seed} in {report.took_s:.0f} s; etcd {report.etcd}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("fault")
    table.add_column("rounds", justify="right")
    for fault, count in report.faults.most_common():
        table.add_row(fault, str(count))
    console.print(table)
    for name, count in report.counts.items():
        console.print(f"{count:8,} {name}")
    samples = report.collected
    if samples.values_ms:
        percentiles = ", ".join(
            f"{name} {samples.percentile_ms(percent) / 1000:.2f}"
            for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
        )
        console.print(
            f"all was well for {report.well_s:.0f} s; from then until {len(samples.values_ms)} dead agents were "
            f"collected, in s: {percentiles}; the bound is {report.settings.bound_s:g}"
        )
    for violation in report.violations:
        console.print(f"VIOLATION {violation}")
    console.print(f"{len(report.violations)} violations")
