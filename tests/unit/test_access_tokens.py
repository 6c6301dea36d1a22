"""The file of hashed bearer tokens: what it takes, what it refuses, and what it never tells."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from election.errors import ConfigError, TokenExpired
from election.server.access.tokens import new_token, read_tokens

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)
HASH = "0" * 64


def test_a_new_token_is_known_by_its_line(tmp_path: Path) -> None:
    """And no other is, not even one that differs in a letter."""
    token, line = new_token("worker-7")
    file = tmp_path / "tokens"
    file.write_text(f"# who may call\n\n{line}  # ours\nother {HASH}\n")
    tokens = read_tokens(file)
    assert tokens.line(token, NOW) == line
    assert tokens.line(token[:-1], NOW) is None
    assert tokens.line(line.sha256, NOW) is None
    assert tokens.line("", NOW) is None
    assert tokens.has(line)
    assert tokens.has(replace(line, expires=NOW))
    assert not tokens.has(replace(line, name="other"))


def test_the_line_holds_the_hash_and_not_the_token() -> None:
    """Whoever reads the file cannot use it."""
    token, line = new_token("worker-7")
    assert token not in str(line)
    assert hashlib.sha256(token.encode()).hexdigest() in str(line)


def test_two_tokens_are_never_the_same() -> None:
    """They are 32 random bytes."""
    assert new_token("a")[0] != new_token("a")[0]
    assert len(new_token("a")[0]) >= 43


def test_a_token_is_taken_until_it_expires(tmp_path: Path) -> None:
    """Not at that moment any more; the error says whose it was and when, and not the token."""
    token, line = new_token("worker-7", NOW)
    file = tmp_path / "tokens"
    file.write_text(str(line))
    tokens = read_tokens(file)
    assert tokens.line(token, NOW - timedelta(seconds=1)) == line
    with pytest.raises(TokenExpired, match=r"^the token of 'worker-7' expired at 2027-01-31T12:00:00Z: get") as raised:
        tokens.line(token, NOW)
    assert token not in str(raised.value)


def test_a_time_may_be_in_any_zone(tmp_path: Path) -> None:
    """It is the same moment."""
    token, line = new_token("a")
    file = tmp_path / "tokens"
    file.write_text(f"a {line.sha256} 2027-01-31T13:00:00+01:00")
    found = read_tokens(file).line(token, NOW - timedelta(seconds=1))
    assert found is not None
    assert found.expires == NOW


def test_a_name_may_have_two_tokens(tmp_path: Path) -> None:
    """While one takes the place of the other."""
    (old, old_line), (new, new_line) = new_token("a"), new_token("a")
    file = tmp_path / "tokens"
    file.write_text(f"{old_line}\n{new_line}\n")
    tokens = read_tokens(file)
    assert [tokens.line(token, NOW) for token in (old, new)] == [old_line, new_line]


def test_the_last_token_can_be_taken_out(tmp_path: Path) -> None:
    """A comment is left, so that this is no file that is half written."""
    token, _ = new_token("a")
    file = tmp_path / "tokens"
    file.write_text("# nobody\n")
    assert read_tokens(file).line(token, NOW) is None


SECRET = "election_" + "s" * 43


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("worker-7", "line 1: 1 fields instead of NAME SHA256HEX"),
        (f"worker-7 {HASH} 2027-01-31T12:00:00Z more", "line 1: 4 fields"),
        (f"\nworker-7 {SECRET}", "line 2: the second field is not a SHA-256 hash"),
        (f"worker-7 {'A' * 64}", "line 1: the second field is not a SHA-256 hash"),
        (f"worker-7 {HASH} tomorrow", "line 1: the third field is not a time"),
        (f"worker-7 {HASH} 2027-01-31T12:00:00", "line 1: the third field is not a time"),
        (f"a/b {HASH}", "line 1: token 'a/b' is not a valid name"),
        (f"a {HASH}\nb {HASH}", "line 2: the token of 'b' is there twice"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, why: str) -> None:
    """And tells nothing of a token that somebody wrote where its hash belongs."""
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_tokens(file)
    assert str(raised.value).startswith(str(file))
    assert why in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """One that is not there, and one that is no text."""
    with pytest.raises(ConfigError, match="cannot read"):
        read_tokens(tmp_path / "tokens")
    (tmp_path / "tokens").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not text"):
        read_tokens(tmp_path / "tokens")
