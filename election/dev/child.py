"""What the processes of the demo have in common: where they connect to, and how they tell what happens."""

from __future__ import annotations

import json
import os
import sys

from election.config import DEFAULT_ENDPOINT, DEFAULT_NAMESPACE
from election.store import Store, connect


def connect_from_environment() -> Store:
    """The store that ELECTION_ENDPOINTS and ELECTION_NAMESPACE name."""
    endpoints = os.environ.get("ELECTION_ENDPOINTS", DEFAULT_ENDPOINT)
    return connect(endpoints, namespace=os.environ.get("ELECTION_NAMESPACE", DEFAULT_NAMESPACE))


def emit(event: str, **fields: object) -> None:
    """Prints one event as a JSON object on a line, at once."""
    sys.stdout.write(json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n")
    sys.stdout.flush()
