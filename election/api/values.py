"""What a message of ours can hold of a value.

What comes out of etcd may have been written by anyone, so everything that a record can hold can be sent: text that
is not Unicode is escaped, a number that is too big becomes the biggest, a time that has no UTC form is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from election.errors import ElectionError
from election.fields import Labels

Told = TypeVar("Told", bound=StrEnum)


def text(value: str) -> str:
    """The text, with what is not Unicode escaped: JSON can hold half of a surrogate pair, a message cannot."""
    return value.encode("utf-8", "backslashreplace").decode()


def labels(values: Labels) -> dict[str, str]:
    """Labels, each part of them as a text."""
    return {text(name): text(value) for name, value in values.items()}


def number(value: int, bits: int) -> int:
    """The nearest number that so many bits hold."""
    limit = 1 << (bits - 1)
    return min(max(value, -limit), limit - 1)


def seconds(value: float) -> Duration:
    """So many seconds; raises ValueError for more than a message can hold, and for what is no number."""
    duration = Duration()
    try:
        duration.FromNanoseconds(round(value * 1e9))
    except OverflowError as error:  # of infinity
        raise ValueError(str(error)) from None
    return duration


def timestamp(at: datetime | None) -> Timestamp | None:
    """The time; None for one that UTC's calendar does not have."""
    if at is None:
        return None
    try:
        utc = at.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar, in another zone
        return None
    stamp = Timestamp()
    stamp.FromDatetime(utc)
    return stamp


def time(stamp: Timestamp) -> datetime | None:
    """The time; None for one that no calendar has."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None


def known(values: Mapping[Told, int], sent: int, kind: str) -> Told:
    """What a number of an enum stands for; raises ElectionError when nothing does."""
    for value, each in values.items():
        if each == sent:
            return value
    raise ElectionError(f"the server sent {kind} {sent}, which this version does not know: update the client")
