"""The report for a terminal of 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from election.drill.checker import State, Violation
from election.drill.report.figures import Figures
from election.drill.report.moments import moment
from election.drill.report.spread import Spread

_STYLES = {State.HELD: "green", State.VIOLATED: "bold red", State.UNKNOWN: "yellow"}
_MOST = 20
"""So many violations of one invariant are shown."""


def print_report(figures: Figures, console: Console) -> None:
    """Prints what was found, what was done, and how long the system took to get well."""
    settings = figures.settings
    console.print(
        Text(f"{figures.took_s / 60:.1f} minutes, {figures.faults:,} faults, seed {settings.seed}")
        + Text(f", etcd {settings.etcd}" if settings.etcd else "")
    )
    _print_verdicts(figures, console)
    _print_faults(figures, console)
    _print_counts(figures, console)
    if figures.passed:
        console.print(Text(f"All {len(figures.verdicts)} invariants have held.", "bold green"))
    else:
        missed = [each.invariant for each in figures.verdicts if each.state is not State.HELD]
        console.print(Text(f"FAILED: {', '.join(missed)}", "bold red"))


def _print_verdicts(figures: Figures, console: Console) -> None:
    table = _table("invariant", ">examined", "verdict")
    for verdict in figures.verdicts:
        text = verdict.state.value + (f": {verdict.why}" if verdict.why else "")
        if verdict.violations:
            text += f" {len(verdict.violations):,} x"
        table.add_row(verdict.invariant, f"{verdict.examined:,}", Text(text, _STYLES[verdict.state]))
    console.print(table)
    for verdict in figures.verdicts:
        for violation in verdict.violations[:_MOST]:
            console.print(Text(f"VIOLATION {_where(violation, figures.began_at_s)}: {violation.text}", "red"))
        if len(verdict.violations) > _MOST:
            console.print(Text(f"and {len(verdict.violations) - _MOST:,} more of {verdict.invariant!r}", "red"))


def _print_faults(figures: Figures, console: Console) -> None:
    table = _table("fault", ">done", ">skipped", ">takeovers", ">p50 s", ">p99 s", ">max s")
    for kind in figures.kinds:
        table.add_row(kind.fault, f"{kind.injected:,}", f"{kind.skipped or ''}", *_spread(kind.takeovers))
    table.add_section()
    skipped = sum(kind.skipped for kind in figures.kinds)
    table.add_row("together", f"{figures.faults:,}", f"{skipped or ''}", *_spread(figures.takeovers))
    console.print(table)
    if figures.unfinished is not None:
        vacancy = figures.unfinished
        text = f"nobody led for the last {vacancy.lasted_s:.1f} s, after {vacancy.before.process} ({vacancy.fault})"
        console.print(Text(text, "red"))


def _print_counts(figures: Figures, console: Console) -> None:
    if figures.writes:
        table = _table("register", ">acknowledged", ">refused", ">unsure", ">tried late", ">held")
        for each in figures.writes:
            numbers = (each.acknowledged, each.refused, each.unsure, each.late, each.held)
            table.add_row(each.register, *(f"{number:,}" for number in numbers))
        console.print(table)
    agents = figures.collecting
    counts = {
        f"terms, of {figures.leaders} candidates": figures.terms,
        "checks that passed in them": figures.acts,
        **figures.reads,
        "incarnations of agents": agents.incarnations,
        "times that the state of a dead agent was reaped": agents.reaped,
        "times that an agent was back in time": agents.back,
        "revisions of etcd": figures.revisions,
    }
    for name, count in counts.items():
        console.print(Text(f"{count:9,} {name}"))
    if len(agents.collected):
        number, *times_s = _spread(agents.collected)
        bound_s = figures.settings.bound_s
        console.print(f"From when all was well until the dead were reaped, {number} times, bound {bound_s:g} s:")
        console.print(f"{'':9} p50 / p99 / max {' / '.join(times_s)} s")


def _where(violation: Violation, began_at_s: float) -> str:
    revision = f", revision {violation.revision}" if violation.revision else ""
    agent = f", agent {violation.agent}" if violation.agent else ""
    return f"{violation.rule}, {moment(violation.at_s - began_at_s)}{revision}{agent}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _spread(spread: Spread) -> tuple[str, ...]:
    if not len(spread):
        return ("", "", "", "")
    return (f"{len(spread):,}", *(f"{spread.percentile_s(percent):.2f}" for percent in (50, 99, 100)))
