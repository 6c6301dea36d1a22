"""What the demo's processes print: one JSON object per line."""

from __future__ import annotations

import json
import sys


def emit(event: str, **fields: object) -> None:
    """Prints one event, at once."""
    sys.stdout.write(json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n")
    sys.stdout.flush()
