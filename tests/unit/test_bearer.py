"""The bearer token of a client: where it comes from, where it may go, and where it never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from election.bearer import Bearer
from election.client import Client, dial
from election.config import TlsConfig
from election.errors import ConfigError
from tests.unit.handclock import HandClock


def test_a_token_goes_along_as_metadata() -> None:
    """As RFC 6750 has it."""
    assert Bearer("abc", HandClock()).metadata() == (("authorization", "Bearer abc"),)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """As Kubernetes replaces the tokens of service accounts; half a file changes nothing."""
    clock, file = HandClock(), tmp_path / "token"
    file.write_text("one\n")
    bearer = Bearer(file, clock)
    for text, expected in (("two\n", "two"), ("", "two"), ("a b", "two"), ("three", "three")):
        file.write_text(text)
        clock.at_s += 1
        assert bearer.metadata() == (("authorization", f"Bearer {expected}"),)


@pytest.mark.parametrize("token", ["", " ", "secret one", "secret\none", "secret\N{SNOWMAN}", "secret\x00"])
def test_what_is_no_token_is_refused(tmp_path: Path, token: str) -> None:
    """And not shown: it may have been one once."""
    (tmp_path / "token").write_text(token)
    for given in (token, tmp_path / "token"):
        with pytest.raises(ConfigError, match="is not a bearer token") as raised:
            Bearer(given, HandClock())
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "server", ["10.0.0.1:1", "127.0.0.1:1,example.org:1", "[2001:db8::1]:1", "localhost.example:1"]
)
def test_a_token_goes_to_no_other_machine_in_plain_text(server: str) -> None:
    """Unless that is said."""
    with pytest.raises(ConfigError, match="in plain text") as raised:
        dial(server, token="secret")
    assert "secret" not in str(raised.value)
    dial(server, token="secret", insecure=True)
    dial(server, token="secret", tls=TlsConfig())
    dial(server)


@pytest.mark.parametrize("server", ["127.0.0.1:1", "[::1]:1", "localhost:1", "https://example.org:1"])
def test_it_goes_to_this_machine_and_over_tls(server: str) -> None:
    """Nobody else reads it there."""
    assert isinstance(dial(server, token="secret"), Client)
