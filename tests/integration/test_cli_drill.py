"""The command `drill`: what it lists and judges, and what it refuses; what it runs is in tests/chaos."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_cli import NOWHERE, Cli

REFUSED = {
    "--faults nonsense": "there is no fault 'nonsense'",
    "--faults auth-token-expired --no-auth": "it wants an etcd with users: say --auth",
    "--hurt a/b": "want --etcd",
    f"--etcd {NOWHERE} --faults kill-etcd-leader": "the members of an etcd that runs are not touched",
    f"--etcd {NOWHERE} --hurt a/b --faults kill-agent": "--hurt only robs candidates",
    f"--etcd {NOWHERE} --hurt a": "election '' is not a valid name",
    "--etcd https://127.0.0.1:1": "TLS does not let them pass",
    f"--etcd {NOWHERE}": "cannot be reached",
}


@pytest.mark.parametrize("line", REFUSED)
async def test_what_cannot_be_done_is_refused_in_one_line(lone: Cli, tmp_path: Path, line: str) -> None:
    """Before anything is started."""
    ended = await lone.run("drill", *line.split(), "--folder", str(tmp_path / "drill"), "--duration", "2s")
    errors = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    assert (ended.code, ended.out, len(errors)) == (1, "", 1), ended
    assert REFUSED[line] in errors[0]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("duration", ["0s", "1d", "-1s", "soon"])
async def test_a_duration_has_a_unit(lone: Cli, duration: str) -> None:
    """Seconds, minutes or hours."""
    ended = await lone.run("drill", "--duration", duration)
    assert ended.code == 2
    assert "say 60s, 5m or 1h" in ended.err


async def test_a_folder_that_is_in_use_is_left_alone(lone: Cli, tmp_path: Path) -> None:
    """So is what is no scenario, or no history."""
    (tmp_path / "file").write_text("nonsense")
    said = await lone.run("drill", "--folder", str(tmp_path))
    assert (said.code, "is not empty" in said.err) == (1, True)
    said = await lone.run("drill", "--scenario", str(tmp_path / "file"))
    assert (said.code, "is not a scenario" in said.err) == (1, True)
    (await lone.run("drill", "--check", str(tmp_path))).assert_fails("holds no history of a drill")
    assert (tmp_path / "file").read_text() == "nonsense"


async def test_every_fault_is_listed(lone: Cli) -> None:
    """With its lane, and why it cannot be done here, if so."""
    listed = (await lone.run("drill", "--list", "-o", "json")).document
    faults = {fault["name"]: fault for fault in listed["faults"]}
    assert len(faults) >= 50
    assert faults["kill-leader"]["lane"] == "orchestrators"
    assert listed["groups"]["pause-orchestrator"] == ["pause-leader", "pause-candidate"]
    assert "pause-orchestrator" not in faults
