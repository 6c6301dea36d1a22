"""The JSON of agents, of what they store, and of what is left of them."""

from __future__ import annotations

import base64
from typing import Any

from election.agent_records import Agent, StateEntry, Tombstone
from election.breaker import Breaker
from election.fields import printable, text_of
from election.reader import AgentEvent

_SHORT = 48


def agent_document(agent: Agent) -> dict[str, Any]:
    """The JSON of an agent."""
    return {
        "id": agent.id,
        "state": agent.state.value,
        "incarnation": agent.incarnation,
        "lease": agent.lease,
        "address": agent.address,
        "labels": dict(agent.labels),
        "registered_at": text_of(agent.registered_at),
        "state_keys": list(agent.state_keys),
    }


def entry_document(entry: StateEntry, *, value: bool = True) -> dict[str, Any]:
    """The JSON of a stored value: as text, or in base64 where it is none; without the value where that is not asked."""
    document: dict[str, Any] = {"key": entry.key, "size": len(entry.value), "mod_revision": entry.mod_revision}
    if value:
        try:
            document["value"] = entry.value.decode()
        except UnicodeDecodeError:
            document["base64"] = base64.b64encode(entry.value).decode()
    return document


def tombstone_document(tombstone: Tombstone, *, values: bool = True) -> dict[str, Any]:
    """The JSON of a tombstone."""
    record = tombstone.agent_record
    return {
        "agent": tombstone.agent,
        "incarnation": tombstone.incarnation,
        "part": tombstone.part,
        "reaped_at": text_of(tombstone.reaped_at),
        "collector": tombstone.collector,
        "token": str(tombstone.token),
        "keep_until": text_of(tombstone.keep_until),
        "address": record.address if record else "",
        "labels": dict(record.labels) if record else {},
        "registered_at": text_of(record.registered_at) if record else None,
        "left_at": text_of(record.left_at) if record else None,
        "collected": [entry_document(entry, value=values) for entry in tombstone.collected],
    }


def agent_event_document(event: AgentEvent) -> dict[str, Any]:
    """The JSON of a change; `revision` is the one to go on after."""
    document: dict[str, Any] = {
        "event": event.kind.value,
        "revision": event.source.revision,
        "cluster_id": event.source.cluster_id,
    }
    if event.agent is not None:
        document |= agent_document(event.agent)
    if event.tombstone is not None:
        document["tombstone"] = tombstone_document(event.tombstone)
    return document


def breaker_document(breaker: Breaker) -> dict[str, Any]:
    """The JSON of the breaker."""
    return {
        "open": breaker.open,
        "reason": breaker.reason.value if breaker.reason else None,
        "missing": breaker.missing,
        "known": breaker.known,
        "by": breaker.by,
        "at": text_of(breaker.at),
        "until": text_of(breaker.until),
        "revision": breaker.revision,
    }


def short(value: bytes) -> str:
    """A value for a table: its beginning, on one line."""
    text = printable(value[: 4 * _SHORT])
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."


def names_text(names: tuple[str, ...], *, most: int = 4) -> str:
    """Some names for a table, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "-"
