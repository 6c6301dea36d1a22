"""A cluster of etcd members in memory, without a network: calls are executed when they are made.

The members share one store; a member that is paused or isolated only knows it up to the revision that it had then.
How a call reaches a member, and whether its answer comes back, is the transport's to decide.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from election.clock import Clock
from election.etcd import methods
from election.etcd.methods import Method
from election.etcd.transport import RpcFailed
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.campaigns import Campaign, Elections
from tests.fake.kv import KeyValues
from tests.fake.leases import Lessor
from tests.fake.notice import Notice
from tests.fake.services import Services
from tests.fake.store import SavedStore, Store
from tests.fake.watches import WatchSession

MAX_REQUEST_BYTES = 1_572_864
REQUEST_TIMEOUT_S = 7.0
"""etcd gives up a request that finds no quorum after 5 s and two election timeouts."""
_SHORTEST_TIMER_S = 0.001
CLUSTER_ID = 0x0E1E_C710_0000_0001
_FIRST_MEMBER_ID = 0x0E1E_C710_0000_1000
_LOCAL = {methods.STATUS.path, methods.ALARM.path, methods.LEASE_LEASES.path, methods.AUTHENTICATE.path}
"""Calls that a member answers without the others."""


class MemberState(Enum):
    """What has become of a member."""

    UP = "it serves"
    DOWN = "its process is gone; calls are refused, and what was under way is broken off"
    PAUSED = "its process is stopped; calls hang"
    ISOLATED = "clients reach it, the other members do not: it has no leader and learns nothing new"


@dataclass(slots=True)
class Member:
    """One member. `boots` counts its starts; `applied` and `term` are what it knew when it was last up."""

    id: int
    name: str
    endpoint: str
    state: MemberState = MemberState.UP
    boots: int = 1
    applied: int = 1
    term: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was saved of a cluster."""

    store: SavedStore
    leases: dict[int, int]


class FakeEtcd:
    """The cluster. Made and used inside of one event loop; `clock` is the members' clock.

    Leases end without anything being called, by a timer on the loop that is set while there are leases; whatever
    was due by the clock is also done at the next call, so that a clock which the loop does not know works too.
    """

    def __init__(self, clock: Clock, *, members: int = 3, election_timeout_s: float = 1.0) -> None:
        self.clock = clock
        self.election_timeout_s = election_timeout_s
        self.members = [
            Member(_FIRST_MEMBER_ID + i, f"m{i + 1}", f"fake-{i + 1}:2379", term=2) for i in range(members)
        ]  # fmt: skip
        self.raft_term = 2
        self.leader = 0
        self.changed = Notice()
        """Given whenever a member's state, the leader or the data has changed."""
        self.store = Store(self._committed)
        self.lessor = Lessor(self.store, clock, smallest_ttl_s=math.ceil(1.5 * election_timeout_s))
        self.kvs = KeyValues(self.store, self.lessor)
        self.elections = Elections(self.kvs, self.lessor)
        self.users: dict[str, str] = {}
        """Names and passwords. Who has a token may do everything, and nobody asks for one."""
        self._sessions: dict[WatchSession, None] = {}
        self.alarms: dict[tuple[int, rpc.AlarmType.ValueType], None] = {}
        """Alarms that are on: the member's id and the kind."""
        self._timer: tuple[float, asyncio.TimerHandle] | None = None
        self._leaderless = False
        self._services = Services(self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' addresses; nobody listens there."""
        return tuple(member.endpoint for member in self.members)

    # --- what a test does to it ----------------------------------------------------------------------------

    def stop(self, member: int) -> None:
        """Kills a member, as SIGKILL does: campaigns that it serves stay queued."""
        for campaign in [waiting for waiting in self.elections.waiting if waiting.member == member]:
            self.elections.abandon(campaign, statuses.SOCKET_CLOSED.error())
        self._set_state(member, MemberState.DOWN)

    def pause(self, member: int) -> None:
        """Stops a member's process, as SIGSTOP does."""
        self._set_state(member, MemberState.PAUSED)

    def isolate(self, member: int) -> None:
        """Cuts a member off from the other members, and not from its clients."""
        self._set_state(member, MemberState.ISOLATED)

    def resume(self, member: int) -> None:
        """Starts a member again, or lets it go on, or joins it to the others."""
        if self.members[member].state is MemberState.DOWN:
            self.members[member].boots += 1
        self._set_state(member, MemberState.UP)

    def change_leader(self, leader: int | None = None) -> None:
        """Another member becomes the raft leader: the term grows, and every lease gets its whole TTL and more."""
        self.tick()
        count = len(self.members)
        next_ones = (i % count for i in range(self.leader + 1, self.leader + count + 1))
        self._elect(next(i for i in next_ones if self.has_leader(i)) if leader is None else leader)
        self.changed.give()

    def compact(self, revision: int | None = None) -> None:
        """Forgets the history before a revision; before the present one where none is given."""
        self.tick()
        self.store.compact(self.store.revision if revision is None else revision)

    def snapshot(self) -> Snapshot:
        """What `etcdctl snapshot save` keeps: keys and leases, and nothing of raft."""
        return Snapshot(self.store.saved(), self.lessor.saved())

    def restore(self, snapshot: Snapshot, *, bump: int = 0) -> None:
        """Starts all members anew from a snapshot: a new cluster with the same ids, whose raft terms begin again."""
        for member in range(len(self.members)):
            self.stop(member)
        self.store.load(snapshot.store, bump=bump)
        self.lessor.load(snapshot.leases)
        self.raft_term = 1
        for member in range(len(self.members)):
            self.resume(member)

    def set_no_space(self, on: bool) -> None:
        """Raises or disarms the NOSPACE alarm."""
        for alarm in [alarm for alarm in self.alarms if alarm[1] == rpc.NOSPACE]:
            del self.alarms[alarm]
        if on:
            self.alarms[self.members[self.leader].id, rpc.NOSPACE] = None
        self.store.full = on

    def fail_campaigns(self, text: str) -> None:
        """Ends all campaigns that wait with an error that is not a cancellation; their keys stay queued."""
        for campaign in list(self.elections.waiting):
            self.elections.abandon(campaign, RpcFailed(StatusCode.UNKNOWN, text))
        self.changed.give()

    def tick(self) -> None:
        """Ends the leases that are due by the clock."""
        if self.has_quorum:
            self.lessor.sweep()
        self._arm()

    # --- what the transport asks ---------------------------------------------------------------------------

    @property
    def has_quorum(self) -> bool:
        """Whether enough members are up to write."""
        return sum(member.state is MemberState.UP for member in self.members) > len(self.members) // 2

    def has_leader(self, member: int) -> bool:
        """Whether a member can write, and read what is written."""
        return self.members[member].state is MemberState.UP and self.has_quorum

    def applied(self, member: int) -> int:
        """The revision up to which a member knows the store."""
        known = self.members[member]
        return self.store.revision if known.state is MemberState.UP else known.applied

    def is_local(self, method: Method[Any, Any], request: Message) -> bool:
        """Whether a member answers such a call without the others."""
        serializable = isinstance(request, rpc.RangeRequest) and request.serializable
        own_list = isinstance(request, rpc.MemberListRequest) and not request.linearizable
        return method.path in _LOCAL or serializable or own_list

    def execute(self, member: int, method: Method[Any, Any], request: Message) -> Message:
        """Executes a call of one answer on a member, at once; raises RpcFailed as etcd refuses it.

        A Campaign is not such a call: see `campaign`.
        """
        self.tick()
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise statuses.REQUEST_TOO_LARGE.error()
        answer, header = self._services.execute(member, method, request)
        self._fill(member, header)
        self._arm()
        return answer

    def campaign(self, member: int, request: el.CampaignRequest) -> Campaign:
        """Begins a campaign on a member; it is over when `changed` was given and it says so."""
        self.tick()
        try:
            campaign = self.elections.campaign(member, request)
        except RpcFailed as failed:
            raise statuses.as_unknown(failed) from None
        self._fill(member, campaign.header)
        self.elections.evaluate(campaign)
        self._arm()
        return campaign

    def cancel_campaign(self, campaign: Campaign) -> None:
        """The member notices that the call was cancelled; without a quorum it cannot delete the key."""
        self.tick()
        if self.has_leader(campaign.member):
            self.elections.cancel(campaign)
        else:
            self.elections.abandon(campaign, statuses.SOCKET_CLOSED.error())

    def renew(self, member: int, request: rpc.LeaseKeepAliveRequest) -> rpc.LeaseKeepAliveResponse | None:
        """Renews a lease; None when the member cannot tell yet: without a quorum, or while the lease expires."""
        self.tick()
        if not self.has_leader(member):
            return None
        ttl_s = self.lessor.renew(request.ID)
        self._arm()
        return (
            None if ttl_s is None else rpc.LeaseKeepAliveResponse(header=self.header(member), ID=request.ID, TTL=ttl_s)
        )

    def open_watch(self, member: int, send: Callable[[rpc.WatchResponse], None]) -> WatchSession:
        """Opens a watch stream on a member; it ends with `close_watch`."""
        self.tick()
        session = WatchSession(
            self.store, lambda revision: self.header(member, revision), lambda: self.applied(member), send
        )  # fmt: skip
        self._sessions[session] = None
        return session

    def close_watch(self, session: WatchSession) -> None:
        """Ends a watch stream; harmless when it has ended."""
        self._sessions.pop(session, None)

    def header(self, member: int, revision: int | None = None) -> rpc.ResponseHeader:
        """What a member puts on top of an answer."""
        known = self.members[member]
        return rpc.ResponseHeader(
            cluster_id=CLUSTER_ID,
            member_id=known.id,
            revision=self.applied(member) if revision is None else revision,
            raft_term=self.raft_term if known.state is MemberState.UP else known.term,
        )

    # --- inside --------------------------------------------------------------------------------------------

    def _set_state(self, member: int, state: MemberState) -> None:
        self.tick()
        known = self.members[member]
        if known.state is MemberState.UP:
            known.applied, known.term = self.store.revision, self.raft_term
        known.state = state
        self._leaderless = self._leaderless or not self.has_quorum
        if self.has_quorum and (self._leaderless or not self.has_leader(self.leader)):
            self._leaderless = False
            self._elect(next(i for i in range(len(self.members)) if self.has_leader(i)))
        self.changed.give()
        self._spread()

    def _elect(self, leader: int) -> None:
        self.leader = leader
        self.raft_term += 1
        self.lessor.restart(self.election_timeout_s)
        self._arm()

    def _committed(self, revision: int, events: tuple[kv.Event, ...]) -> None:
        del revision, events
        self._spread()
        self.changed.give()

    def _spread(self) -> None:
        """Every member tells its watchers and its campaigns what it has learned."""
        for session in list(self._sessions):
            session.publish()
        for campaign in list(self.elections.waiting):
            if self.has_leader(campaign.member):
                self.elections.evaluate(campaign)

    def _arm(self) -> None:
        """Sets the timer for the next lease that ends."""
        due_at_s = self.lessor.next_sweep_s()
        if due_at_s is None or (self._timer is not None and self._timer[0] <= due_at_s):
            return
        if self._timer is not None:
            self._timer[1].cancel()
        delay_s = max(due_at_s - self.clock.now_s(), _SHORTEST_TIMER_S)
        self._timer = (due_at_s, asyncio.get_running_loop().call_later(delay_s, self._ring))

    def _ring(self) -> None:
        self._timer = None
        if self.has_quorum:
            self.tick()
            self.changed.give()

    def _fill(self, member: int, header: rpc.ResponseHeader) -> None:
        """Completes a header; the revision stays where the call has told one."""
        filled = self.header(member)
        filled.revision = header.revision or filled.revision
        header.CopyFrom(filled)
