"""What operators and other collectors tell a collector: the breaker's state, and who is to be reaped now."""

from __future__ import annotations

from collections.abc import Callable

from election.agent_records import ReapRequest
from election.breaker import Breaker
from election.clock import Clock
from election.collector.events import BreakerClosed, BreakerOpened, CollectorEvent
from election.etcd.watch import Changes, Snapshot
from election.keys import Keyspace, ReapRequestKey
from election.pb.etcd.kv_pb2 import Event as KvEvent
from election.pb.etcd.kv_pb2 import KeyValue


class Orders:
    """The breaker and the requests, as one watch shows them.

    `tell` gets what becomes of the breaker, `changed` the name of an agent whose request came or went.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        clock: Clock,
        *,
        grace_s: float,
        tell: Callable[[CollectorEvent], None],
        changed: Callable[[str], None],
    ) -> None:
        self.breaker = Breaker()
        self.breaker_seen_at = 0
        """The revision up to which the breaker's state is known."""
        self.breaker_over_at_s = float("inf")
        """When the breaker has been open for as long as it may be, on our own clock; infinity for never."""
        self._keyspace = keyspace
        self._clock = clock
        self._grace_s = grace_s
        self._tell = tell
        self._changed = changed
        self._requests: dict[str, ReapRequest] = {}

    def has(self, agent: str) -> bool:
        """Whether an operator wants any incarnation of it reaped."""
        return agent in self._requests

    def wants(self, agent: str, incarnation: int) -> bool:
        """Whether an operator wants this incarnation reaped now."""
        request = self._requests.get(agent)
        return request is not None and request.incarnation == incarnation

    def heard_breaker(self, breaker: Breaker, revision: int) -> None:
        """The breaker's state at a revision, from etcd or from who has just written it."""
        if revision < self.breaker_seen_at:
            return
        before, self.breaker, self.breaker_seen_at = self.breaker, breaker, revision
        if breaker != before:
            self.breaker_over_at_s = self._over_at_s(breaker)
        if breaker.open and (not before.open or breaker.reason is not before.reason):
            self._tell(BreakerOpened(breaker))
        elif before.open and not breaker.open:
            self._tell(BreakerClosed(breaker))

    def _over_at_s(self, breaker: Breaker) -> float:
        """The end of the hold, so that a wall clock that jumps, or is ahead of another's, cannot end it at once."""
        if not breaker.open or breaker.until is None:
            return float("inf")
        left_s = (breaker.until - self._clock.wall()).total_seconds()
        whole_s = max((breaker.until - breaker.at).total_seconds() if breaker.at else left_s, 0.0)
        return self._clock.now_s() + min(max(left_s, self._grace_s), whole_s)

    def see(self, item: Snapshot | Changes) -> None:
        """Takes in what the watch shows."""
        if isinstance(item, Snapshot):
            before, self._requests = self._requests, {}
            found = next((kv for kv in item.kvs if kv.key == self._keyspace.breaker), None)
            self.heard_breaker(Breaker.of(found), item.revision)
            for kv in item.kvs:
                self._request(kv)
            for agent in before.keys() - self._requests.keys():
                self._changed(agent)
            return
        for event in item.events:
            written = event.type == KvEvent.PUT
            if event.kv.key == self._keyspace.breaker:
                self.heard_breaker(Breaker.of(event.kv if written else None), event.kv.mod_revision)
            elif written:
                self._request(event.kv)
            elif isinstance(key := self._keyspace.parse(event.kv.key), ReapRequestKey):
                self._requests.pop(key.agent, None)
                self._changed(key.agent)

    def _request(self, kv: KeyValue) -> None:
        key = self._keyspace.parse(kv.key)
        if isinstance(key, ReapRequestKey) and (request := ReapRequest.decode(key.agent, kv.value)):
            self._requests[key.agent] = request
            self._changed(key.agent)
