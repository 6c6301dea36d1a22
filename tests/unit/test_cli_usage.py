"""Command lines that cannot be: refused with one line, before anything is sent."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click
import pytest

from election.cli import main
from election.cli.main import cli

NAME = "not a valid name: use 1 to 128 "
NOWHERE = "127.0.0.1:1"
BAD_IDS = ("a/b", "", "x" * 200, "a\nb", "\x1b[31m", "ä")
TAKE_AN_ID = (
    "agents show ID",
    "agents show ID --server 127.0.0.1:1",
    "agents tombstones ID",
    "agents join ID",
    "agents run ID -- true",
    "agents drain ID",
    "agents drain ID --undo",
    "agents reap ID",
    "agents reap ID --dry-run",
    "agents restore ID",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int | str | None
    out: str
    err: str


class Command:
    """Runs the command line in this process, which is enough where nothing is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("ELECTION_ENDPOINTS", NOWHERE)

    def run(self, *arguments: str) -> Ended:
        """Runs it to its end."""
        self._monkeypatch.setattr(sys, "argv", ["election", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *self._capsys.readouterr())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line."""
    return Command(monkeypatch, capsys)


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, and the groups that they are in."""
    context = click.Context(group)
    yield names, group
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, *names, name)
        else:
            yield (*names, name), found


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_reads_well_in_80_columns(
    command: Command, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Every option is explained, and no Python object is shown."""
    monkeypatch.setenv("COLUMNS", "80")
    ended = command.run(*names, "-h")
    assert (ended.code, ended.err) == (0, ""), ended
    assert ended.out.startswith(" ".join(("Usage: election", *names)))
    assert max(map(len, ended.out.splitlines())) <= 80, ended.out
    assert re.search(r"<\w+ | object at ", ended.out) is None, ended.out
    options = [each for each in COMMANDS[names].params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help and not each.show_default] == []


@pytest.mark.parametrize("names", [("agents",), ("breaker",)], ids=" ".join)
def test_what_a_groups_commands_do_fits_on_their_lines(
    command: Command, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Nothing of it is cut off."""
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in command.run(*names, "-h").out.partition("Commands:")[2]


@pytest.mark.parametrize("id", BAD_IDS)
@pytest.mark.parametrize("line", TAKE_AN_ID)
def test_an_id_that_cannot_be_is_one_line(command: Command, line: str, id: str) -> None:
    """In letters that a terminal shows as they are."""
    ended = command.run(*(id if word == "ID" else word for word in line.split()))
    assert (ended.code, ended.out) == (1, ""), ended
    assert ended.err.startswith("error: agent ")
    assert NAME in ended.err
    assert ended.err.removesuffix("\n").isprintable(), ended


@pytest.mark.parametrize("label", ["", "=x", "a b", "a/b=c"])
def test_a_label_that_cannot_be_is_one_line(command: Command, label: str) -> None:
    """It could never fit an agent."""
    ended = command.run("agents", "list", "--label", label)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1), ended
    assert ended.err.startswith("error: label ")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("agents list --state dead", "dead"),
        ("agents watch --after -1", "--after"),
        ("agents watch --after x", "--after"),
        ("agents run w1", "CMD"),
        ("agents run", "ID"),
        ("agents run w1 --on-loss panic -- true", "panic"),
        ("agents run w1 --kill-after 0 -- true", "--kill-after"),
        ("agents join w1 --label zone", "zone"),
        ("agents restore w1 --incarnation -1", "--incarnation"),
        ("agents reap w1 --timeout 0", "--timeout"),
        ("agents reap w1 --timeout inf", "--timeout"),
        ("token", "NAME"),
        ("token x --expires tomorrow", "tomorrow"),
        ("token x --expires 0d", "0d"),
        ("token x --expires nand", "nand"),
        ("token x --expires 2020-01-01T00:00:00Z", "2020"),
        ("token x --expires 2090-01-01T00:00:00", "time zone"),
        ("serve --max-message-bytes 10", "--max-message-bytes"),
        ("serve --default-deadline 0", "--default-deadline"),
        ("serve --max-streams-per-identity 0", "--max-streams-per-identity"),
        ("breaker", "close"),
        ("breaker hold --for 0", "--for"),
        ("breaker hold --for nan", "--for"),
        ("breaker hold --for 1e300", "--for"),
        ("collect --breaker-share 1.5", "--breaker-share"),
        ("collect --breaker-agents 0", "--breaker-agents"),
        ("collect --reconcile 0", "--reconcile"),
        ("collect --retention 0", "--retention"),
        ("collect --rate 0", "--rate"),
        ("serve --breaker-hold -1", "--breaker-hold"),
    ],
)
def test_wrong_usage_exits_with_2(command: Command, line: str, word: str) -> None:
    """It says what is wrong on stderr, and nothing on stdout."""
    ended = command.run(*line.split())
    assert (ended.code, ended.out) == (2, ""), ended
    assert word in ended.err, ended


@pytest.mark.parametrize("line", ["collect --grace nan", "collect --breaker-share nan"])
def test_settings_that_cannot_be_are_one_line(command: Command, line: str) -> None:
    """What no number is neither."""
    ended = command.run(*line.split())
    assert (ended.out, "nan" in ended.err, "Traceback" in ended.err) == ("", True, False), ended
    assert ended.code in (1, 2)
