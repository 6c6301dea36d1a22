"""The history of a drill: all that etcd held, all that was done to the system, and all that its agents believed.

A drill writes it into a folder as lines of JSON, and the checker judges what is in the folder and nothing else.
Every time is one of `CLOCK_BOOTTIME` of the one machine that all processes of a drill run on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REVISIONS, LATER, FACTS, SETTINGS = "revisions.jsonl", "later.jsonl", "facts.jsonl", "settings.json"
AGENTS, PROCESSES = "agents", "processes"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the drill was started with; the bounds that the checker holds it to come from here."""

    namespace: str
    seed: int
    ttl_s: float
    grace_s: float
    reconcile_s: float
    slack_s: float = 5.0
    etcd: str = ""
    election: str = "drill"
    candidate_ttl_s: float = 3.0
    members: int = 3
    whole: bool = True
    """Whether the history has every revision of an etcd that was new; otherwise it has those of one namespace."""
    hurts: str = ""
    """The election whose candidates run already and write no history; empty where they are of the drill."""

    @property
    def takeover_bound_s(self) -> float:
        """From when all is healed until somebody must lead.

        A lease may have its whole TTL and an election timeout of etcd before it, a lost attempt another one.
        """
        return 2 * self.candidate_ttl_s + self.slack_s

    @property
    def bound_s(self) -> float:
        """From when all is well until a dead agent must be collected."""
        return self.ttl_s + self.grace_s + self.slack_s


@dataclass(frozen=True, slots=True)
class Stored:
    """A key's value as etcd keeps it."""

    value: bytes
    created: int
    modified: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision did to one key; `before` is None for a new one, `after` for one that was deleted."""

    key: bytes
    before: Stored | None
    after: Stored | None


@dataclass(frozen=True, slots=True)
class Revision:
    """All that one transaction did, and when the observer heard of it: that is never before it happened."""

    number: int
    seen_at_s: float
    changes: tuple[Change, ...]

    def encode(self) -> str:
        """The line of it."""
        rows = [[_text(each.key), _row(each.before), _row(each.after)] for each in self.changes]
        return json.dumps([self.number, self.seen_at_s, rows], separators=(",", ":"))

    @classmethod
    def decode(cls, line: str) -> Revision:
        """What `encode` has written."""
        number, seen_at_s, rows = json.loads(line)
        changes = (Change(_bytes(key), _stored(before), _stored(after)) for key, before, after in rows)
        return cls(number, seen_at_s, tuple(changes))


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that the drill did to `who`, or found; it was noted before it was done, unless its name says so."""

    at_s: float
    what: str
    who: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """A line of an agent's process: what it believed or did, as the incarnation that it took itself for.

    `at_s` is from before it asked itself, or etcd; `ended_at_s` from after. `revision` is that of a write that etcd
    has confirmed.
    """

    at_s: float
    what: str
    agent: str
    process: str
    incarnation: int = 0
    key: str = ""
    ended_at_s: float | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Everything, in order: revisions by number, facts and lines by time.

    `revisions` go from the first one until etcd is set back, if it is; `later` are those after that, beginning with
    one that has all that etcd held then. `said` is by agents, `told` by all other processes.
    """

    settings: Settings
    revisions: tuple[Revision, ...]
    facts: tuple[Fact, ...] = ()
    said: tuple[Said, ...] = ()
    told: tuple[Fact, ...] = ()
    later: tuple[Revision, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> History:
        """Reads what a drill has left in a folder."""
        said = (Said(**json.loads(line)) for path in (folder / AGENTS).glob("*.jsonl") for line in lines(path))
        told = (Fact(**json.loads(line)) for path in (folder / PROCESSES).glob("*.jsonl") for line in lines(path))
        return cls(
            Settings(**json.loads((folder / SETTINGS).read_text())),
            tuple(Revision.decode(line) for line in lines(folder / REVISIONS)),
            tuple(Fact(**json.loads(line)) for line in lines(folder / FACTS)),
            tuple(sorted(said, key=lambda each: each.at_s)),
            tuple(sorted(told, key=lambda each: each.at_s)),
            tuple(Revision.decode(line) for line in lines(folder / LATER)),
        )


class Journal:
    """A file of lines. Each is with the kernel when `write` returns, so that SIGKILL of the writer loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, *entries: Revision | Fact | Said) -> None:
        """Appends a line for each."""
        lines = (each.encode() if isinstance(each, Revision) else _compact(asdict(each)) for each in entries)
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def write_settings(folder: Path, settings: Settings) -> None:
    """Begins a history."""
    (folder / SETTINGS).write_text(json.dumps(asdict(settings)))


def lines(path: Path) -> Iterator[str]:
    """The whole lines of a file; none where there is no such file."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):  # the last one of a killed process may be cut off
                yield line


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in fields.items() if value not in (None, "", {})})


def _row(stored: Stored | None) -> list[Any] | None:
    return None if stored is None else [_text(stored.value), stored.created, stored.modified, stored.lease]


def _stored(row: Iterable[Any] | None) -> Stored | None:
    if row is None:
        return None
    value, created, modified, lease = row
    return Stored(_bytes(value), created, modified, lease)


def _text(data: bytes) -> str:
    """Bytes as text, reversibly: each stays one character."""
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
