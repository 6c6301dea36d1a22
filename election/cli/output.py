"""Prints: one JSON document or line to stdout, or tables and lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from election.clock import BootClock
from election.fields import Labels, text_of
from election.reader import Source
from election.records import Candidate, Election, Leader


def print_json(document: Any, *, err: bool = False) -> None:
    """One JSON document on one line, at once."""
    click.echo(json.dumps(document, separators=(",", ":")), err=err)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table that fits the terminal; `empty` goes to stderr when there is no row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    rows = list(rows)
    for row in rows:
        table.add_row(*row)
    if rows:
        Console(highlight=False, markup=False).print(table)
    else:
        click.echo(empty, err=True)


def print_line(text: str, *, err: bool = False) -> None:
    """A line for people, with the time of day in UTC."""
    click.echo(f"{BootClock().wall():%H:%M:%S} {text}", err=err)


def print_event(as_json: bool, event: str, *, err: bool = False, **fields: object) -> None:
    """An event: a JSON object on a line, or words."""
    if as_json:
        print_json({"event": event, **fields}, err=err)
    else:
        print_line(f"{event:10} " + " ".join(f"{name}={value}" for name, value in fields.items()), err=err)


def time_text(time: datetime | None) -> str:
    """A time for a table, in UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else "-"


def shown(fields: Mapping[str, object]) -> list[tuple[str, str]]:
    """The rows of one thing, a field in each; `-` stands for nothing."""
    return [(name, "-" if value in ("", None) else str(value)) for name, value in fields.items()]


def hex_of(lease: int) -> str:
    """A lease as etcdctl shows it."""
    return f"{lease:x}" if lease else "-"


def labels_text(labels: Labels) -> str:
    """Labels for a table."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items())) or "-"


def leader_document(leader: Leader, source: Source) -> dict[str, Any]:
    """The JSON of a leader."""
    return {
        "election": leader.election,
        "id": leader.id,
        "address": leader.address,
        "token": str(leader.token),
        "key": leader.key,
        "lease": leader.lease,
        "elected_at": text_of(leader.elected_at),
        "priority": leader.priority,
        "labels": dict(leader.labels),
        "proven": leader.proven,
        "revision": source.revision,
        "cluster_id": source.cluster_id,
    }


def candidate_document(candidate: Candidate, leader: Leader | None) -> dict[str, Any]:
    """The JSON of a candidate."""
    return {
        "election": candidate.election,
        "id": candidate.id,
        "address": candidate.address,
        "created": candidate.created,
        "token": str(candidate.token) if candidate.token else None,
        "key": candidate.key,
        "lease": candidate.lease,
        "elected_at": text_of(candidate.elected_at),
        "priority": candidate.priority,
        "labels": dict(candidate.labels),
        "foreign": candidate.foreign,
        "leads": leader is not None and leader.key == candidate.key,
    }


def election_document(election: Election) -> dict[str, Any]:
    """The JSON of an election."""
    leader = election.leader
    return {
        "election": election.name,
        "candidates": election.candidates,
        "leader": leader.id if leader else None,
        "token": str(leader.token) if leader else None,
    }
