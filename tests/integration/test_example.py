"""The example as a program of its own: what it tells, and that it would fail if it were not so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from election.token import Token

PROGRAM = Path(__file__).parents[2] / "examples" / "paused_leader.py"
LEADS, READS, CHECKS = r"leads with token (\S+)", r"reads: balance 100, pending \[50{}\]", r"passes term.check\(\).*"
STORY = (
    *(f"A {LEADS}", f"A {READS.format('')}", f"A {CHECKS}", r"A is stopped .*", r"30 more .*"),
    *(f"B {LEADS}", f"B {READS.format(', 30')}", f"B {CHECKS}", r"B writes: balance 180, booked \[50, 30\]"),
    r"A is woken after ([\d.]+) s .*",
)
ALONE = (
    r"A writes: balance 150, booked \[50\]",
    r"A ends with NotLeader: .*",
    r"In the end: balance 150, booked \[50, 30\]; expected 180: 30 ARE LOST",
)
FENCED = (
    r"A ends with Deposed: the database refused token (\S+) .* it has seen (\S+)",
    r"In the end: balance 180, booked \[50, 30\]; expected 180: right",
)


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The example, with this folder for its temporary files."""
    return subprocess.run(
        [sys.executable, PROGRAM],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def told(text: str, *lines: str) -> tuple[str, ...]:
    """What the groups of these lines have matched; they are all that was told, in this order."""
    match = re.fullmatch(r"[A-Z ]+( \(.*\))?\n" + "".join(f"{line}\n" for line in lines), text.replace("\n  ", " "))
    assert match, text
    return match.groups()[1:]


@pytest.mark.etcd
def test_a_leader_that_wakes_up_does_damage_without_the_fence_and_none_with_it(tmp_path: Path) -> None:
    """In the same order of events; it fits a terminal, says nothing on stderr and leaves nothing behind."""
    ended = run(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []
    alone, fenced, rest = ended.stdout.split("\n\n")
    assert rest == ""
    a, b, stopped_s = told(alone + "\n", *STORY, *ALONE)
    assert Token.parse(a) < Token.parse(b)
    assert float(stopped_s) > 1
    a, b, _, refused, seen = told(fenced + "\n", *STORY, *FENCED)
    assert (refused, seen) == (a, b)


def test_without_etcd_it_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    """And fails."""
    ended = run(tmp_path, ELECTION_ETCD_BIN="/nonexistent/etcd")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"error: ELECTION_ETCD_BIN is /nonexistent/etcd, .*\n", ended.stderr)
