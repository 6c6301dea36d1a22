"""One line for each thing that an operator did over the API, or tried to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

logger = logging.getLogger("election.audit")


def record(*, who: Sequence[str], did: str, on: str, asked: Mapping[str, object], peer: str, code: str) -> None:
    """Writes who did what, on which resource and how, from where, and how it ended, as one JSON object.

    Identities and names are what callers have sent: as JSON no line break of theirs ends the line.
    """
    logger.info(json.dumps({"who": list(who), "did": did, "on": on, "asked": dict(asked), "from": peer, "code": code}))
