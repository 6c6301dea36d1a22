"""A process that follows everything by the library's watch, and compares what it is told with what etcd had."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from election.backoff import Backoff
from election.errors import EtcdError
from election.etcd.watch import Changes, Snapshot, follow
from election.keys import Keyspace
from election.pb.etcd.kv_pb2 import Event, KeyValue
from tests.simulation.nodes import AGAIN_S, Host, Node, Told


class ObserverNode(Node):
    """Follows everything by the watch, and compares it with what etcd had at the same revision."""

    def __init__(
        self,
        host: Host,
        keyspace: Keyspace,
        told: Told,
        compare: Callable[[int, dict[bytes, KeyValue]], str | None],
    ) -> None:
        super().__init__(host)
        self._keyspace = keyspace
        self._compare = compare
        self._told = told
        self.restored = False
        """Whether etcd's history was set back since the last list."""

    async def main(self) -> None:
        """Follows for ever."""
        while True:
            try:
                await self._follow()
            except EtcdError:
                await self.clock.sleep_s(AGAIN_S)

    async def _follow(self) -> None:
        seen: dict[bytes, KeyValue] = {}
        revision = 0
        async with aclosing(follow(self.client, self._keyspace.root, Backoff(0.1, 1.0, self.rng))) as items:
            async for item in items:
                if isinstance(item, Snapshot):
                    self.restored = False
                    seen = {kv.key: kv for kv in item.kvs}
                elif isinstance(item, Changes):
                    if item.revision <= revision and not self.restored:
                        self._told.violate(f"the watch tells revision {item.revision} after {revision}")
                    for event in item.events:
                        if event.type == Event.DELETE:
                            seen.pop(event.kv.key, None)
                        else:
                            seen[event.kv.key] = event.kv
                else:
                    continue
                revision = item.revision
                if not self.restored and (wrong := self._compare(revision, seen)):
                    self._told.violate(wrong)
