"""Reads what an etcd process last said."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_TAIL_BYTES = 16_384
_SHOWN = 300
_PORT_TAKEN = re.compile(r"listen tcp \S*:(\d+): bind: address already in use")
_SEVERE = ("error", "fatal", "panic", "dpanic")


def read_end(path: Path, start: int = 0) -> str:
    """The end of a log, not from before the offset `start`; empty when there is no such file."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(size - _TAIL_BYTES, min(start, size)))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def taken_port(text: str) -> int | None:
    """The port that etcd could not listen on, if that is what it says."""
    found = _PORT_TAKEN.findall(text)
    return int(found[-1]) if found else None


def gist(text: str) -> str:
    """The line that tells most: the last error, else what etcd says before it logs, else its last line."""
    entries = [(line, _fields(line)) for line in text.splitlines() if line.strip()]
    if not entries:
        return "it says nothing"
    plain = [line for line, fields in entries if not fields]
    severe = [fields for _, fields in entries if fields.get("level") in _SEVERE]
    failing = [fields for _, fields in entries if "error" in fields]
    last = entries[-1][1]
    chosen = _sentence((severe or failing or [last])[-1]) if severe or failing or not plain else plain[0]
    return " ".join(chosen.split())[:_SHOWN]


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _sentence(fields: dict[str, Any]) -> str:
    message = str(fields.get("msg", ""))
    return f"{message}: {fields['error']}" if "error" in fields else message
