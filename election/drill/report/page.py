"""The report as one page of HTML, which loads nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from election.drill.checker import State, Verdict
from election.drill.history import History
from election.drill.report.figures import Figures
from election.drill.report.moments import moment, seconds
from election.drill.report.picture import picture
from election.drill.report.spread import Spread

_BINS = 24
"""How many columns a histogram has."""


def write_page(history: History, verdicts: Sequence[Verdict], path: Path) -> None:
    """Writes the page for a history that was judged."""
    path.write_text(page(history, verdicts))


def page(history: History, verdicts: Sequence[Verdict]) -> str:
    """The page, as text."""
    figures = Figures.of(history, verdicts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = seconds
    environment.filters["moment"] = moment
    return environment.get_template("page.html").render(
        figures=figures,
        spread=figures.takeovers,
        longest_s=max((each.lasted_s for each in figures.vacancies), default=0.0),
        slowest=sorted(figures.vacancies, key=lambda each: -each.lasted_s)[:20],
        histograms={kind.fault: histogram(kind.takeovers, figures.takeovers) for kind in figures.kinds},
        whole=histogram(figures.takeovers, figures.takeovers),
        picture=picture(history, verdicts),
        failed=any(verdict.state is State.VIOLATED for verdict in verdicts),
        states={State.HELD: "✓", State.VIOLATED: "✗", State.UNKNOWN: "?"},
    )


def histogram(spread: Spread, of: Spread) -> list[dict[str, Any]]:
    """The share of each column, on the logarithmic scale on which all of `of` have a place."""
    if not len(spread):
        return []
    low, high = (math.log(max(value_s, 0.001)) for value_s in (of.values_s[0], of.values_s[-1]))
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for value_s in spread.values_s:
        counts[min(int((math.log(max(value_s, 0.001)) - low) / width), _BINS - 1)] += 1
    most = max(counts)
    return [
        {
            "at": number * 240 // _BINS,
            "count": count,
            "share": round(count / most, 3),
            "from": seconds(math.exp(low + number * width)),
            "to": seconds(math.exp(low + (number + 1) * width)),
        }
        for number, count in enumerate(counts)
    ]
