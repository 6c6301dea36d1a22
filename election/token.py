"""The fencing token: what a resource compares to tell the present leader from one that has been deposed.

This is the one place that writes and reads it as text and as a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from election.errors import ConfigError

_REVISION_BITS = 48
LARGEST_REVISION = (1 << _REVISION_BITS) - 1
"""Some 890 years at 10,000 writes a second."""
LARGEST_EPOCH = (1 << 15) - 1
"""How often etcd's history can be set back; with it, the integer form fits a signed 64-bit number."""
_TEXT = re.compile(r"(0|[1-9][0-9]{0,4})-(0|[1-9][0-9]{0,14})")


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """The fencing token of one term of leadership. Of two tokens of one election, the larger one is the later term.

    `revision` is the create revision of the leader's key in etcd, and strictly grows from term to term for as long as
    etcd's history does. When it is set back, by the restore of a snapshot for example, an operator raises the `epoch`.

    The text form is `7-1234` for epoch 7 and revision 1234; `int(token)` is one number in the same order, for stores
    that want one. It fits a signed 64-bit integer, and is the revision itself while the epoch is 0. From epoch 32 on
    it is above 2^53: JSON readers that keep numbers as floats should be given the text.

    Raises:
        ConfigError: for numbers below 0, an epoch above 2^15 - 1 or a revision above 2^48 - 1.
    """

    epoch: int
    revision: int

    def __post_init__(self) -> None:
        if not (0 <= self.epoch <= LARGEST_EPOCH and 0 <= self.revision <= LARGEST_REVISION):
            raise ConfigError(
                f"epoch {self.epoch} and revision {self.revision} are not a fencing token: "
                f"they go up to {LARGEST_EPOCH} and {LARGEST_REVISION}"
            )

    def __str__(self) -> str:
        return f"{self.epoch}-{self.revision}"

    def __int__(self) -> int:
        return (self.epoch << _REVISION_BITS) | self.revision

    @classmethod
    def parse(cls, text: str) -> Self:
        """The token of a text; raises ConfigError for any text that `str` would not have written."""
        match = _TEXT.fullmatch(text)
        if match is None:
            shown = text if len(text) <= 40 else text[:37] + "..."
            raise ConfigError(f"{shown!r} is not a fencing token: it looks like 7-1234, an epoch and a revision")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_int(cls, number: int) -> Self:
        """The token of an integer form; raises ConfigError for one that is none."""
        return cls(number >> _REVISION_BITS, number & LARGEST_REVISION)
