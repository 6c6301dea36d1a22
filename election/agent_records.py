"""What agents, and those who take care of them, store under their keys, and what readers are told of it.

Anyone can write under an etcd prefix. A value that is not ours is shown as it is and never raises.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from election import fields
from election.errors import ConfigError, RecordTooLarge
from election.fields import Labels, text_of
from election.keys import REGISTRATION, TombstoneKey, check_name
from election.pb.etcd.kv_pb2 import KeyValue
from election.records import CANDIDATE_LIMIT
from election.token import Token

STATE_LIMIT = 64 * 1024
"""The most bytes of one value of an agent's state."""


def checked_key(key: str) -> str:
    """The name of a value that an agent can store; raises ConfigError for others."""
    if key == REGISTRATION:
        raise ConfigError(f"the state key {REGISTRATION!r} is the agent's own record: use another name")
    return check_name("state key", key)


def checked_value(key: str, value: bytes | str) -> bytes:
    """The value as it is stored; raises RecordTooLarge above STATE_LIMIT."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) > STATE_LIMIT:
        raise RecordTooLarge(f"the value of {key!r} has {len(data)} bytes, and {STATE_LIMIT} are allowed")
    return data


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """What an agent says of itself when it registers, and, in its state alone, what became of that incarnation.

    `left_at` is set when it left by itself, rather than died. `incarnation` is 0 in a record that was written together
    with the liveness key, whose create revision is then that of the write.
    """

    id: str
    address: str = ""
    labels: Labels = field(default_factory=dict)
    registered_at: datetime | None = None
    left_at: datetime | None = None
    incarnation: int = 0

    def incarnation_at(self, revision: int) -> int:
        """The incarnation of the agent in whose state this record was written at a revision."""
        return self.incarnation or revision

    def document(self) -> dict[str, Any]:
        """The record as a JSON object."""
        data: dict[str, Any] = {
            "id": self.id,
            "address": self.address,
            "labels": dict(self.labels),
            "registered_at": text_of(self.registered_at),
        }
        if self.left_at is not None:
            data["left_at"] = text_of(self.left_at)
        if self.incarnation:
            data["incarnation"] = self.incarnation
        return data

    def encode(self) -> bytes:
        """The record as stored; raises RecordTooLarge above CANDIDATE_LIMIT."""
        return fields.encode("agent record", CANDIDATE_LIMIT, self.document())

    def encode_as(self, incarnation: int) -> bytes:
        """The record of an incarnation that is over, without address and labels where strangers made it too large."""
        record = replace(self, incarnation=incarnation)
        try:
            return record.encode()
        except RecordTooLarge:
            return replace(record, address="", labels={}).encode()

    @classmethod
    def decode(cls, agent: str, value: bytes) -> AgentRecord:
        """The record; one with only the id when the value is not ours."""
        return cls.of(agent, fields.decode(value) or {})

    @classmethod
    def of(cls, agent: str, data: Mapping[str, Any]) -> AgentRecord:
        """The record that is in a JSON object."""
        return cls(
            agent,
            fields.text(data.get("address")),
            fields.labels(data.get("labels")),
            fields.time(data.get("registered_at")),
            fields.time(data.get("left_at")),
            fields.count(data.get("incarnation")),
        )


class AgentState(StrEnum):
    """What people see of an agent."""

    ALIVE = "alive"
    DRAINING = "draining"
    SUSPECT = "suspect"
    REAPED = "reaped"


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as readers see it. `incarnation` is 0 for one that stored state and never registered."""

    id: str
    state: AgentState
    incarnation: int
    lease: int = 0
    address: str = ""
    labels: Labels = field(default_factory=dict)
    registered_at: datetime | None = None
    state_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateEntry:
    """One value of an agent's state."""

    key: str
    value: bytes
    mod_revision: int

    @classmethod
    def of(cls, prefix: bytes, kv: KeyValue) -> StateEntry:
        """The entry that a stored key below the agent's prefix stands for."""
        return cls(kv.key[len(prefix) :].decode("utf-8", "backslashreplace"), kv.value, kv.mod_revision)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of an incarnation: what was collected, when, by whom and under which fencing token.

    A state that is too large for one transaction is collected in parts, each with a tombstone of its own; `part`
    counts from 0, and no key is in two of them. `agent_record` is what the agent said of itself, if it ever did; a
    tombstone is there until `keep_until` at least.
    """

    agent: str
    incarnation: int
    reaped_at: datetime | None
    collector: str
    token: Token
    collected: tuple[StateEntry, ...] = field(default=())
    part: int = 0
    keep_until: datetime | None = None
    agent_record: AgentRecord | None = None

    def encode(self) -> bytes:
        """The tombstone as stored: each value as text, or in base64 where that is shorter or it is not text."""
        data: dict[str, Any] = {
            "reaped_at": text_of(self.reaped_at),
            "keep_until": text_of(self.keep_until),
            "collector": self.collector,
            "token": str(self.token),
            "collected": [_entry_to_json(entry) for entry in self.collected],
        }
        if self.agent_record is not None:
            data["agent"] = self.agent_record.document()
        return fields.COMPACT.encode(data).encode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, key: TombstoneKey, value: bytes) -> Tombstone:
        """The tombstone that a stored key stands for; an empty one when the value is not ours."""
        return cls.decode(key.agent, key.incarnation, value, part=key.part)

    @classmethod
    def decode(cls, agent: str, incarnation: int, value: bytes, *, part: int = 0) -> Tombstone:
        """The tombstone; an empty one when the value is not ours."""
        data = fields.decode(value) or {}
        collected = data.get("collected")
        return cls(
            agent=agent,
            incarnation=incarnation,
            reaped_at=fields.time(data.get("reaped_at")),
            collector=fields.text(data.get("collector")),
            token=fields.token(data.get("token")),
            collected=tuple(_entries_from_json(collected if isinstance(collected, list) else [])),
            part=part,
            keep_until=fields.time(data.get("keep_until")),
            agent_record=AgentRecord.of(agent, data["agent"]) if isinstance(data.get("agent"), dict) else None,
        )


@dataclass(frozen=True, slots=True)
class DrainMark:
    """Who asked that an agent takes nothing new, and when."""

    by: str
    at: datetime | None = None

    def encode(self) -> bytes:
        """The mark as stored."""
        return json.dumps({"v": 1, "by": self.by, "at": text_of(self.at)}).encode()

    @classmethod
    def decode(cls, value: bytes) -> DrainMark:
        """The mark; an empty one when the value is not ours: the agent drains all the same."""
        data = fields.decode(value) or {}
        return cls(fields.text(data.get("by")), fields.time(data.get("at")))


@dataclass(frozen=True, slots=True)
class ReapRequest:
    """An operator's request to reap one incarnation of an agent now."""

    agent: str
    incarnation: int
    by: str = ""
    at: datetime | None = None

    def encode(self) -> bytes:
        """The request as stored."""
        return json.dumps({"v": 1, "incarnation": self.incarnation, "by": self.by, "at": text_of(self.at)}).encode()

    @classmethod
    def decode(cls, agent: str, value: bytes) -> ReapRequest | None:
        """The request, or None when the value is not one: then nobody has asked."""
        data = fields.decode(value)
        if data is None or data.get("v") != 1 or not isinstance(data.get("incarnation"), int):
            return None
        return cls(agent, data["incarnation"], fields.text(data.get("by")), fields.time(data.get("at")))


def _entry_to_json(entry: StateEntry) -> dict[str, Any]:
    if (text := _as_text(entry.value)) is not None:
        return {"key": entry.key, "value": text, "mod_revision": entry.mod_revision}
    return {"key": entry.key, "base64": base64.b64encode(entry.value).decode(), "mod_revision": entry.mod_revision}


def _as_text(value: bytes) -> str | None:
    """A value as text, if it is text and JSON does not make it longer than base64 would."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return text if len(fields.COMPACT.encode(text).encode()) <= (len(value) + 2) // 3 * 4 + 2 else None


def _entries_from_json(rows: list[Any]) -> Iterable[StateEntry]:
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            continue
        try:
            value = base64.b64decode(row["base64"]) if "base64" in row else fields.text(row.get("value")).encode()
        except (ValueError, TypeError):
            continue
        revision = row.get("mod_revision")
        yield StateEntry(row["key"], value, revision if isinstance(revision, int) else 0)
