"""The fake etcd as the explorer needs it: it says why something was written, and its watches can fall behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from election.clock import Clock
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake.etcd import FakeEtcd, MemberState
from tests.fake.store import Interval, Store
from tests.fake.watches import WatchSession


class Cause(Enum):
    """Why something was written."""

    CALL = "somebody called for it"
    EXPIRY = "a lease has ended by its time"
    STRANGER = "a stranger's hand"


class Cluster(FakeEtcd):
    """Three members.

    With `reports_ahead` a progress report is sent although the watch is behind, with the revision that the member is
    at (etcd #15220: before 3.4.25 and 3.5.8).
    """

    def __init__(
        self,
        clock: Clock,
        *,
        reports_ahead: bool,
        committed: Callable[[int, tuple[kv.Event, ...], Cause], None],
    ) -> None:
        self.cause = Cause.CALL
        self.reports_ahead = reports_ahead
        self.is_away = False
        """While it is restored no member can be started."""
        self._tell = committed
        self._behind: set[int] = set()
        self._deposed_at_s: dict[int, float] = {}
        super().__init__(clock)

    def tick(self) -> None:
        """Ends the leases that are due by the clock."""
        before, self.cause = self.cause, Cause.EXPIRY
        super().tick()
        self.cause = before

    def isolate(self, member: int) -> None:
        """Cuts a member off from the other members; the leader does not notice for an election timeout."""
        if member == self.leader:
            self._deposed_at_s[member] = self.clock.now_s() + self.election_timeout_s
        super().isolate(member)

    def renew(self, member: int, request: rpc.LeaseKeepAliveRequest) -> rpc.LeaseKeepAliveResponse | None:
        """Renews a lease; a leader that is deposed and does not know says that it does, and renews nothing."""
        isolated = self.members[member].state is MemberState.ISOLATED
        if not isolated or self.clock.now_s() >= self._deposed_at_s.get(member, 0.0):
            return super().renew(member, request)
        ttl_s = self.lessor.saved().get(request.ID, 0)
        return rpc.LeaseKeepAliveResponse(header=self.header(member), ID=request.ID, TTL=ttl_s)

    def resume(self, member: int) -> None:
        """Starts a member again, or lets it go on, or joins it to the others."""
        if not self.is_away and self.members[member].state is not MemberState.UP:
            super().resume(member)

    def fall_behind(self, member: int, for_s: float) -> None:
        """The watches of a member tell nothing for a while."""
        self._behind.add(member)
        asyncio.get_running_loop().call_later(for_s, self.catch_up, member)

    def catch_up(self, member: int) -> None:
        """They tell everything again."""
        self._behind.discard(member)
        self._spread()

    def is_behind(self, member: int) -> bool:
        """Whether the watches of a member have fallen behind."""
        return member in self._behind

    def put(self, key: bytes, value: bytes) -> None:
        """Somebody writes a key."""
        with self.store.writing():
            self.store.put(key, value, 0)

    def delete(self, key: bytes) -> None:
        """Somebody deletes a key."""
        with self.store.writing():
            self.store.delete(Interval(key, b""))

    def revoke_lease_of(self, key: bytes) -> None:
        """Somebody ends the lease that a key is on."""
        found = self.store.get(key)
        if found is not None and found.lease:
            self.lessor.revoke(found.lease)

    def open_watch(self, member: int, send: Callable[[rpc.WatchResponse], None]) -> WatchSession:
        """Opens a watch stream on a member; it ends with `close_watch`."""
        self.tick()
        session = _Session(self, member, send)
        self._sessions[session] = None
        return session

    def _committed(self, revision: int, events: tuple[kv.Event, ...]) -> None:
        self._tell(revision, events, self.cause)
        super()._committed(revision, events)


class _Session(WatchSession):
    def __init__(self, cluster: Cluster, member: int, send: Callable[[rpc.WatchResponse], None]) -> None:
        store: Store = cluster.store
        super().__init__(
            store, lambda revision: cluster.header(member, revision), lambda: cluster.applied(member), send
        )  # fmt: skip
        self._cluster = cluster
        self._member = member

    def publish(self) -> None:
        """Sends what the member has learned of since the last call, unless its watches are behind."""
        if not self._cluster.is_behind(self._member):
            super().publish()

    def _report_progress(self) -> None:
        if self._cluster.reports_ahead and self._watchers:
            self._send(rpc.WatchResponse(header=self._header(self._applied()), watch_id=-1))
        else:
            super()._report_progress()
