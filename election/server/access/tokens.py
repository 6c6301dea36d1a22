"""Bearer tokens that a file names: it holds their hashes, so who reads it cannot use them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from election.errors import ConfigError, TokenExpired
from election.keys import check_name
from election.reloaded import read_text

_PREFIX = "election_"
"""So that scanners for secrets, and people, can tell what they have found."""

_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TokenLine:
    """A line of the file: whose token it is, its hash, and until when it is taken; None: until the line is gone.

    The hash is a plain SHA-256: tokens are 32 random bytes, which nobody finds by trying.
    """

    name: str
    sha256: str
    expires: datetime | None = None

    def __str__(self) -> str:
        expires = f" {self.expires.isoformat().replace('+00:00', 'Z')}" if self.expires else ""
        return f"{self.name} {self.sha256}{expires}"


def new_token(name: str, expires: datetime | None = None) -> tuple[str, TokenLine]:
    """A new token and its line for the file; raises ConfigError for a name that cannot be one."""
    check_name("token", name)
    token = _PREFIX + secrets.token_urlsafe(_BYTES)
    return token, TokenLine(name, _sha256(token), expires)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The lines of a token file, by their hash."""

    lines: Mapping[str, TokenLine]

    def has(self, line: TokenLine) -> bool:
        """Whether a line is there still: the same token under the same name, whenever it expires."""
        found = self.lines.get(line.sha256)
        return found is not None and found.name == line.name

    def line(self, token: str, now: datetime) -> TokenLine | None:
        """The line of a token that a caller has shown; None when there is none.

        Raises:
            TokenExpired: when the token has expired.
        """
        line = self.lines.get(_sha256(token))
        if line is None:
            return None
        if line.expires is not None and now >= line.expires:
            raise TokenExpired(
                f"the token of {line.name!r} expired at {line.expires:%Y-%m-%dT%H:%M:%SZ}: get a new one"
            )
        return line


def read_tokens(file: Path) -> Tokens:
    """Reads a file with a line `NAME SHA256HEX [EXPIRES-RFC3339]` for each token; `#` begins a comment.

    A name may have several tokens, so that one can be replaced while both are in use.

    Raises:
        ConfigError: with the file and the line, for what cannot be read. Nothing of a line but its name is told, since
            somebody may have written a token where its hash belongs.
    """
    lines: dict[str, TokenLine] = {}
    whole = read_text(file)
    if not whole.strip():  # it may be written at this moment
        raise ConfigError(f"{file} is empty: `election token NAME` makes a token; a comment says that there is none")
    for number, text in enumerate(whole.splitlines(), start=1):
        fields = text.partition("#")[0].split()
        if not fields:
            continue
        try:
            line = _line(fields)
        except ConfigError as error:
            raise ConfigError(f"{file} line {number}: {error}") from None
        if line.sha256 in lines:
            raise ConfigError(f"{file} line {number}: the token of {line.name!r} is there twice")
        lines[line.sha256] = line
    return Tokens(lines)


def _line(fields: list[str]) -> TokenLine:
    if len(fields) not in (2, 3):
        raise ConfigError(f"{len(fields)} fields instead of NAME SHA256HEX [EXPIRES]")
    if not _HASH.fullmatch(fields[1]):
        raise ConfigError("the second field is not a SHA-256 hash in 64 small hexadecimal digits")
    return TokenLine(check_name("token", fields[0]), fields[1], _time(fields[2]) if len(fields) == 3 else None)


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ConfigError("the third field is not a time like 2027-01-31T12:00:00Z")
    return time.astimezone(UTC)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
