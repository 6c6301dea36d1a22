"""The breaker: while it is open, no collector reaps anything.

Its state is one key in etcd. A collector's transactions compare that key, so what an operator writes there holds from
the moment when it is written, whatever the collector has heard of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from election import fields
from election.errors import ConfigError
from election.etcd.client import EtcdClient, Repeat
from election.etcd.txn import put
from election.fields import text_of
from election.keys import Keyspace
from election.pb.etcd.kv_pb2 import KeyValue

_LONGEST_HOLD_S = 100 * 365 * 86_400.0


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
        data = fields.decode(kv.value)
        try:
            if data is None or data["v"] != 1 or not isinstance(data["open"], bool):
                raise ValueError
            reason = BreakerReason(data["reason"])
        except (KeyError, ValueError):
            return cls(open=True, reason=BreakerReason.UNREADABLE, revision=kv.mod_revision)
        return cls(
            open=data["open"],
            reason=reason,
            missing=fields.count(data.get("missing")),
            known=fields.count(data.get("known")),
            by=fields.text(data.get("by")),
            at=fields.time(data.get("at")),
            until=fields.time(data.get("until")),
            revision=kv.mod_revision,
        )


async def read_breaker(client: EtcdClient, keyspace: Keyspace) -> Breaker:
    """The breaker's state, by a linearizable read."""
    return Breaker.of((await client.get(keyspace.breaker))[0])


async def hold_breaker(client: EtcdClient, keyspace: Keyspace, *, by: str, hold_s: float | None = None) -> Breaker:
    """Opens the breaker in the name of an operator: nothing is reaped from this revision on.

    It stays open until it is closed, or for `hold_s` seconds; that the agents are back does not close it.

    Raises:
        ConfigError: for a time that is none, or is longer than a hundred years.
    """
    if hold_s is not None and not 0 < hold_s <= _LONGEST_HOLD_S:
        raise ConfigError(f"the breaker cannot be held for {hold_s:g} s: give a time of up to a hundred years")
    now = client.clock.wall()
    until = None if hold_s is None else now + timedelta(seconds=hold_s)
    return await _write(client, keyspace, Breaker(True, BreakerReason.OPERATOR, by=by, at=now, until=until))


async def close_breaker(client: EtcdClient, keyspace: Keyspace, *, by: str) -> Breaker:
    """Closes the breaker: what is missing at this revision may be reaped, and does not open it again."""
    now = client.clock.wall()
    return await _write(client, keyspace, Breaker(False, BreakerReason.OPERATOR, by=by, at=now))


async def _write(client: EtcdClient, keyspace: Keyspace, breaker: Breaker) -> Breaker:
    # A repetition writes the same; the revision is that of the last one, which only takes in more.
    answer = await client.txn([], [put(keyspace.breaker, breaker.encode())], repeat=Repeat.SAFE)
    return replace(breaker, revision=answer.header.revision)
