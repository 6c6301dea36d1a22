"""etcd's store of many versions (server/storage/mvcc), in memory.

Every write transaction makes one revision; the order of its changes within the revision is kept. Keys keep their
versions until they are compacted, so that ranges and watches can look back.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from election.pb.etcd import kv_pb2 as kv
from tests.fake import statuses

OnCommit = Callable[[int, tuple[kv.Event, ...]], None]


@dataclass(frozen=True, slots=True)
class Interval:
    """A request's `key` and `range_end`: one key, a range, or (range end `\\0`) everything from the key on."""

    key: bytes
    end: bytes

    def holds(self, key: bytes) -> bool:
        """Whether the key is in it."""
        if not self.end:
            return key == self.key
        return self.key <= key and (self.end == b"\0" or key < self.end)


@dataclass(frozen=True, slots=True)
class _Version:
    revision: int
    value: kv.KeyValue | None
    """None where the key was deleted."""


@dataclass(frozen=True, slots=True)
class SavedStore:
    """What a snapshot holds of a store."""

    revision: int
    compacted: int
    history: dict[bytes, list[_Version]]
    events: dict[int, tuple[kv.Event, ...]]


class Store:
    """All keys at all revisions since the last compaction. Revision 1 is the empty store."""

    def __init__(self, on_commit: OnCommit) -> None:
        self.revision = 1
        self.compacted = -1
        self.full = False
        """Whether the NOSPACE alarm is on: nothing is put or granted then."""
        self._on_commit = on_commit
        self._history: dict[bytes, list[_Version]] = {}
        self._keys: list[bytes] = []
        self._events: dict[int, tuple[kv.Event, ...]] = {}
        self._attached: dict[int, dict[bytes, None]] = {}
        self._changes: list[kv.Event] = []

    def saved(self) -> SavedStore:
        """All that there is, for `load`."""
        return SavedStore(self.revision, self.compacted, copy.deepcopy(self._history), dict(self._events))

    def load(self, saved: SavedStore, *, bump: int = 0) -> None:
        """Becomes what was saved; `bump` is added to its revision, as `--bump-revision` does."""
        self.revision, self.compacted = saved.revision + bump, saved.compacted
        self._history, self._events = copy.deepcopy(saved.history), dict(saved.events)
        self._keys = sorted(self._history)
        self._attached = {}
        for key in self._keys:
            found = self.get(key)
            if found is not None and found.lease:
                self._attached.setdefault(found.lease, {})[key] = None

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def seen_revision(self) -> int:
        """The revision that a read sees: inside of a write that has changed something, the one that it makes."""
        return self.revision + 1 if self._changes else self.revision

    def get(self, key: bytes, revision: int | None = None) -> kv.KeyValue | None:
        """One key, now or at a revision."""
        limit = self.seen_revision if revision is None else revision
        for version in reversed(self._history.get(key, ())):
            if version.revision <= limit:
                return version.value
        return None

    def select(self, interval: Interval, revision: int | None = None) -> list[kv.KeyValue]:
        """All keys of an interval in the order of their names, now or at a revision."""
        if not interval.end:
            found = self.get(interval.key, revision)
            return [] if found is None else [found]
        first = bisect_left(self._keys, interval.key)
        last = len(self._keys) if interval.end == b"\0" else bisect_left(self._keys, interval.end)
        values = (self.get(key, revision) for key in self._keys[first:last])
        return [value for value in values if value is not None]

    def keys_of(self, lease: int) -> list[bytes]:
        """The keys that are attached to a lease, in order."""
        return sorted(self._attached.get(lease, ()))

    def events(self, first: int, last: int) -> Iterator[tuple[int, tuple[kv.Event, ...]]]:
        """The changes of every revision from the first to the last."""
        for revision in range(max(first, 2), last + 1):
            yield revision, self._events.get(revision, ())

    def before(self, event: kv.Event) -> kv.KeyValue | None:
        """What the key was before the event's revision; None for an event that created it."""
        if event.type == kv.Event.PUT and event.kv.create_revision == event.kv.mod_revision:
            return None
        return self.get(event.kv.key, event.kv.mod_revision - 1)

    # --- writing -------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: what is put and deleted inside becomes one revision, if anything changed at all."""
        yield
        if not self._changes:
            return
        events, self._changes = tuple(self._changes), []
        self.revision += 1
        self._events[self.revision] = events
        self._on_commit(self.revision, events)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Writes a key, inside of `writing`."""
        revision = self.revision + 1
        old = self.get(key)
        new = kv.KeyValue(
            key=key,
            create_revision=revision if old is None else old.create_revision,
            mod_revision=revision,
            version=1 if old is None else old.version + 1,
            value=value,
            lease=lease,
        )
        if old is not None:
            self._detach(old)
        if lease:
            self._attached.setdefault(lease, {})[key] = None
        self._append(key, _Version(revision, new))
        self._changes.append(kv.Event(type=kv.Event.PUT, kv=new))

    def delete(self, interval: Interval) -> list[kv.KeyValue]:
        """Deletes an interval, inside of `writing`; returns what was there."""
        revision = self.revision + 1
        deleted = self.select(interval)
        for old in deleted:
            self._detach(old)
            self._append(old.key, _Version(revision, None))
            self._changes.append(
                kv.Event(type=kv.Event.DELETE, kv=kv.KeyValue(key=old.key, mod_revision=revision))
            )  # fmt: skip
        return deleted

    def compact(self, revision: int) -> None:
        """Forgets the versions before a revision.

        A watch cannot begin before it any more. The changes are kept for the watchers of a member that lags behind:
        it tells them when it applies them, and compacts only then.
        """
        if revision <= self.compacted:
            raise statuses.COMPACTED.error()
        if revision > self.revision:
            raise statuses.FUTURE_REVISION.error()
        self.compacted = revision
        for key in list(self._keys):
            self._forget(key, revision)

    def _forget(self, key: bytes, revision: int) -> None:
        history = self._history[key]
        kept = max((i for i, version in enumerate(history) if version.revision <= revision), default=0)
        if history[kept].value is None and history[kept].revision <= revision:
            kept += 1
        del history[:kept]
        if not history:
            del self._history[key]
            self._keys.remove(key)

    def _append(self, key: bytes, version: _Version) -> None:
        if key not in self._history:
            self._history[key] = []
            insort(self._keys, key)
        self._history[key].append(version)

    def _detach(self, old: kv.KeyValue) -> None:
        if old.lease:
            self._attached[old.lease].pop(old.key, None)
            if not self._attached[old.lease]:
                del self._attached[old.lease]
