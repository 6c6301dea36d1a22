"""What is stored under the keys, as JSON, and what readers are told: frozen values and nothing else.

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

from election.errors import ConfigError, RecordTooLarge
from election.pb.etcd.kv_pb2 import KeyValue
from election.token import LARGEST_EPOCH, Token

CANDIDATE_LIMIT = 4 * 1024
"""The most bytes of a candidate's record."""

STATE_LIMIT = 64 * 1024
"""The most bytes of one value of an agent's state."""

Labels = Mapping[str, str]

_COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """What a candidate says of itself.

    `elected_at` and `epoch` are set by the write that proves its leadership, `elected_at` by the clock of who writes:
    its own, or that of the predecessor who hands over.
    """

    id: str
    address: str = ""
    labels: Labels = field(default_factory=dict)
    priority: int = 0
    elected_at: datetime | None = None
    epoch: int = 0

    def encode(self) -> bytes:
        """The record as stored; raises RecordTooLarge above CANDIDATE_LIMIT."""
        return _encode(
            "candidate record",
            CANDIDATE_LIMIT,
            {
                "v": 1,
                "id": self.id,
                "address": self.address,
                "labels": dict(self.labels),
                "priority": self.priority,
                "elected_at": text_of(self.elected_at),
                "epoch": self.epoch,
            },
        )

    @classmethod
    def decode(cls, value: bytes) -> CandidateRecord | None:
        """The record, or None when the value is not one; JSON of other programs has no `"v": 1`."""
        data = _decode(value)
        if data is None or data.get("v") != 1 or not isinstance(data.get("id"), str):
            return None
        return cls(
            id=data["id"],
            address=_text(data.get("address")),
            labels=_labels(data.get("labels")),
            priority=data["priority"] if isinstance(data.get("priority"), int) else 0,
            elected_at=_time(data.get("elected_at")),
            epoch=_epoch(data.get("epoch")),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key in an election's queue. `created` is its create revision; `foreign` that another program made it.

    `token` is the fencing token of a candidate that has been elected, and None of one that has not. A foreign
    candidate's id is its value as text, or its lease in hex when the value is empty.
    """

    election: str
    key: str
    created: int
    lease: int
    id: str
    address: str = ""
    labels: Labels = field(default_factory=dict)
    priority: int = 0
    elected_at: datetime | None = None
    token: Token | None = None
    foreign: bool = False

    @property
    def record(self) -> CandidateRecord | None:
        """What the candidate says of itself; None for a foreign one."""
        if self.foreign:
            return None
        epoch = self.token.epoch if self.token else 0
        return CandidateRecord(self.id, self.address, self.labels, self.priority, self.elected_at, epoch)

    @classmethod
    def of(cls, election: str, kv: KeyValue) -> Candidate:
        """The candidate that a stored key stands for."""
        key = kv.key.decode("utf-8", "backslashreplace")
        record = CandidateRecord.decode(kv.value)
        if record is None:
            shown = printable(kv.value) or f"{kv.lease:x}"
            return cls(election, key, kv.create_revision, kv.lease, shown, foreign=True)
        return cls(
            election,
            key,
            kv.create_revision,
            kv.lease,
            record.id,
            record.address,
            record.labels,
            record.priority,
            record.elected_at,
            Token(record.epoch, kv.create_revision) if record.elected_at else None,
        )


@dataclass(frozen=True, slots=True)
class Leader:
    """The candidate that leads. `token` is the fencing token of its term; its epoch is 0 for a foreign leader.

    `proven` is False only for a foreign leader: it has the oldest key, and nobody checked whether it still acts
    on it. One of our own candidates is no leader before its proof, only the next in line.
    """

    election: str
    id: str
    address: str
    token: Token
    key: str
    lease: int
    elected_at: datetime | None
    labels: Labels
    priority: int
    proven: bool


def leader_of(candidates: Iterable[Candidate]) -> Leader | None:
    """Who leads, given all candidates of one election: the oldest, once proven or when it is foreign."""
    oldest = min(candidates, key=lambda candidate: candidate.created, default=None)
    if oldest is None or not (oldest.foreign or oldest.elected_at):
        return None
    return Leader(
        election=oldest.election,
        id=oldest.id,
        address=oldest.address,
        token=oldest.token or Token(0, oldest.created),
        key=oldest.key,
        lease=oldest.lease,
        elected_at=oldest.elected_at,
        labels=oldest.labels,
        priority=oldest.priority,
        proven=oldest.elected_at is not None,
    )


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """The epoch of a namespace.

    `revision` is the highest one of this epoch that somebody has seen who found etcd's history behind it; 0 when
    nobody has. `by` and `at` say who wrote the record, and when by its own clock.
    """

    epoch: int = 0
    revision: int = 0
    by: str = ""
    at: datetime | None = None

    def encode(self) -> bytes:
        """The record as stored."""
        return json.dumps(
            {"v": 1, "epoch": self.epoch, "revision": self.revision, "by": self.by, "at": text_of(self.at)}
        ).encode()

    @classmethod
    def decode(cls, value: bytes) -> EpochRecord | None:
        """The record, or None when the value is not one: then nobody knows which epoch it is."""
        data = _decode(value)
        if data is None or data.get("v") != 1:
            return None
        try:
            token = Token(data["epoch"], data["revision"])
        except (KeyError, TypeError, ConfigError):
            return None
        return cls(token.epoch, token.revision, _text(data.get("by")), _time(data.get("at")))


@dataclass(frozen=True, slots=True)
class Election:
    """An election that somebody stands for."""

    name: str
    candidates: int
    leader: Leader | None


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
        return _encode("agent record", CANDIDATE_LIMIT, self.document())

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
        return cls.of(agent, _decode(value) or {})

    @classmethod
    def of(cls, agent: str, data: Mapping[str, Any]) -> AgentRecord:
        """The record that is in a JSON object."""
        return cls(
            agent,
            _text(data.get("address")),
            _labels(data.get("labels")),
            _time(data.get("registered_at")),
            _time(data.get("left_at")),
            _count(data.get("incarnation")),
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
        return _COMPACT.encode(data).encode("utf-8", "surrogatepass")

    @classmethod
    def decode(cls, agent: str, incarnation: int, value: bytes, *, part: int = 0) -> Tombstone:
        """The tombstone; an empty one when the value is not ours."""
        data = _decode(value) or {}
        collected = data.get("collected")
        return cls(
            agent=agent,
            incarnation=incarnation,
            reaped_at=_time(data.get("reaped_at")),
            collector=_text(data.get("collector")),
            token=_token(data.get("token")),
            collected=tuple(_entries_from_json(collected if isinstance(collected, list) else [])),
            part=part,
            keep_until=_time(data.get("keep_until")),
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
        data = _decode(value) or {}
        return cls(_text(data.get("by")), _time(data.get("at")))


class BreakerReason(StrEnum):
    """Why nothing is reaped at present; or, of a breaker that is closed, why it was."""

    VANISHED = "vanished"
    NONE_ALIVE = "none_alive"
    ETCD_LEADER_CHANGED = "etcd_leader_changed"
    OPERATOR = "operator"
    UNREADABLE = "unreadable"
    RECOVERED = "recovered"
    SETTLED = "settled"
    HOLD_ENDED = "hold_ended"


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
        data = _decode(value)
        if data is None or data.get("v") != 1 or not isinstance(data.get("incarnation"), int):
            return None
        return cls(agent, data["incarnation"], _text(data.get("by")), _time(data.get("at")))


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether collectors may reap. While it is open nothing is.

    `missing` of `known` agents had vanished when it opened. `until` is when it closes by itself, by the clock of who
    wrote it; None where only an operator closes it. `revision` is that of the write, 0 when there never was one.
    """

    open: bool = False
    reason: BreakerReason | None = None
    missing: int = 0
    known: int = 0
    by: str = ""
    at: datetime | None = None
    until: datetime | None = None
    revision: int = 0

    def encode(self) -> bytes:
        """The state as stored."""
        return json.dumps(
            {
                "v": 1,
                "open": self.open,
                "reason": self.reason.value if self.reason else None,
                "missing": self.missing,
                "known": self.known,
                "by": self.by,
                "at": text_of(self.at),
                "until": text_of(self.until),
            }
        ).encode()

    @classmethod
    def of(cls, kv: KeyValue | None) -> Breaker:
        """The stored state; closed where there is none, and open, for an operator to look, where it cannot be read."""
        if kv is None:
            return cls()
        data = _decode(kv.value)
        try:
            if data is None or data["v"] != 1 or not isinstance(data["open"], bool):
                raise ValueError
            reason = BreakerReason(data["reason"])
        except (KeyError, ValueError):
            return cls(open=True, reason=BreakerReason.UNREADABLE, revision=kv.mod_revision)
        return cls(
            open=data["open"],
            reason=reason,
            missing=_count(data.get("missing")),
            known=_count(data.get("known")),
            by=_text(data.get("by")),
            at=_time(data.get("at")),
            until=_time(data.get("until")),
            revision=kv.mod_revision,
        )


def text_of(time: datetime | None) -> str | None:
    """A time as stored and printed: RFC 3339, UTC, milliseconds."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(value: bytes) -> str:
    """Foreign bytes as text that is safe to show in a terminal, at most 128 characters."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else "?" for character in text)[:128]


def _encode(kind: str, limit: int, data: dict[str, Any]) -> bytes:
    value = json.dumps(data, separators=(",", ":")).encode()
    if len(value) > limit:
        raise RecordTooLarge(f"the {kind} of {data['id']!r} has {len(value)} bytes, and {limit} are allowed")
    return value


def _decode(value: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _labels(value: object) -> Labels:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _epoch(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= LARGEST_EPOCH else 0


def _token(value: object) -> Token:
    try:
        return Token.parse(_text(value))
    except ConfigError:
        return Token(0, 0)


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else None


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
    return text if len(_COMPACT.encode(text).encode()) <= (len(value) + 2) // 3 * 4 + 2 else None


def _entries_from_json(rows: list[Any]) -> Iterable[StateEntry]:
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            continue
        try:
            value = base64.b64decode(row["base64"]) if "base64" in row else _text(row.get("value")).encode()
        except (ValueError, TypeError):
            continue
        revision = row.get("mod_revision")
        yield StateEntry(row["key"], value, revision if isinstance(revision, int) else 0)
