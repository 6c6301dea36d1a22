"""The JSON that is stored under keys: how a record is written, and how fields are read that anyone may have written.

What reads raises nothing, whatever it finds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from election.errors import ConfigError, RecordTooLarge
from election.token import Token

Labels = Mapping[str, str]

COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def text_of(time: datetime | None) -> str | None:
    """A time as stored and printed: RFC 3339, UTC, milliseconds."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(value: bytes) -> str:
    """Foreign bytes as text that is safe to show in a terminal, at most 128 characters."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else "?" for character in text)[:128]


def encode(kind: str, limit: int, data: dict[str, Any]) -> bytes:
    """A record as stored; raises RecordTooLarge above the limit of its kind."""
    value = json.dumps(data, separators=(",", ":")).encode()
    if len(value) > limit:
        raise RecordTooLarge(f"the {kind} of {data['id']!r} has {len(value)} bytes, and {limit} are allowed")
    return value


def decode(value: bytes) -> dict[str, Any] | None:
    """The JSON object that is stored; None when the value is not one."""
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def text(value: object) -> str:
    """A text; empty when it is none."""
    return value if isinstance(value, str) else ""


def labels(value: object) -> Labels:
    """Labels; without those that are no text."""
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


def count(value: object) -> int:
    """A number from 0 up; 0 when it is none, or too large to be stored by us."""
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def token(value: object) -> Token:
    """A fencing token in its text form; the smallest when it is none."""
    try:
        return Token.parse(text(value))
    except ConfigError:
        return Token(0, 0)


def time(value: object) -> datetime | None:
    """A time with its zone; None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else None
