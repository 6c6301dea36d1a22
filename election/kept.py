"""The values that an agent keeps in memory as well, to put them back after it was reaped by mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from election.errors import RecordTooLarge

MOST_KEPT = 100
"""How many values an agent can keep: all are put back in one transaction, and etcd takes 128 operations."""
MOST_KEPT_BYTES = 1024 * 1024
"""How many bytes they can have together with their keys: etcd takes requests of up to 1.5 MiB."""


class KeptValues:
    """Values by key, no more than can be put back. Room is reserved for one while it is written."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._reserved: list[int] = []

    @property
    def values(self) -> Mapping[str, bytes]:
        """What is kept."""
        return MappingProxyType(self._values)

    @contextmanager
    def room_for(self, key: str, value: bytes) -> Iterator[None]:
        """Reserves room for a value; raises RecordTooLarge where there is none."""
        others = [len(each) + len(kept) for each, kept in self._values.items() if each != key] + self._reserved
        size = len(key) + len(value)
        if len(others) >= MOST_KEPT or sum(others) + size > MOST_KEPT_BYTES:
            raise RecordTooLarge(
                f"{key!r} cannot be kept: an agent can keep {MOST_KEPT} values of {MOST_KEPT_BYTES} bytes together; "
                "put it without keep"
            )
        self._reserved.append(size)
        try:
            yield
        finally:
            self._reserved.remove(size)

    def keep(self, key: str, value: bytes) -> None:
        """Keeps a value for which there is room."""
        self._values[key] = value

    def forget(self, key: str) -> None:
        """Keeps a value no more; harmless for one that is not kept."""
        self._values.pop(key, None)

    def clear(self) -> None:
        """Keeps nothing any more."""
        self._values.clear()
