"""What candidates store under their keys, as JSON, and what readers are told: frozen values and nothing else.

Anyone can write under an etcd prefix. A value that is not ours is shown as it is and never raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from election import fields
from election.errors import ConfigError
from election.fields import Labels, printable, text_of
from election.pb.etcd.kv_pb2 import KeyValue
from election.token import LARGEST_EPOCH, Token

CANDIDATE_LIMIT = 4 * 1024
"""The most bytes of a candidate's record."""


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
        return fields.encode(
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
        data = fields.decode(value)
        if data is None or data.get("v") != 1 or not isinstance(data.get("id"), str):
            return None
        return cls(
            id=data["id"],
            address=fields.text(data.get("address")),
            labels=fields.labels(data.get("labels")),
            priority=data["priority"] if isinstance(data.get("priority"), int) else 0,
            elected_at=fields.time(data.get("elected_at")),
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
        data = fields.decode(value)
        if data is None or data.get("v") != 1:
            return None
        try:
            token = Token(data["epoch"], data["revision"])
        except (KeyError, TypeError, ConfigError):
            return None
        return cls(token.epoch, token.revision, fields.text(data.get("by")), fields.time(data.get("at")))


@dataclass(frozen=True, slots=True)
class Election:
    """An election that somebody stands for."""

    name: str
    candidates: int
    leader: Leader | None


def _epoch(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= LARGEST_EPOCH else 0
