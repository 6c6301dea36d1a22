"""What can be done to etcd itself: to its members, and to its history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from election.epoch import raise_epoch, read_epoch
from election.errors import EtcdError
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed
from election.keys import Keyspace
from tests.fake.etcd import MemberState, Snapshot
from tests.simulation.cluster import Cluster
from tests.simulation.later import Later
from tests.simulation.plan import Step

_RESTORING_S = 3.0
"""How long etcd is away while it is restored: longer than any term lasts without it."""

_BUMP = 1_000
"""More than a run writes; operators take a thousand million."""

ON_MEMBERS = (
    *("move", "kill a member", "pause a member", "isolate a member"),
    *("fall behind", "fall behind and die", "compact"),
)


class Outages:
    """Does the steps of a plan that are about etcd, and the operator's part in it."""

    def __init__(
        self,
        cluster: Cluster,
        keyspace: Keyspace,
        operator: EtcdClient,
        later: Later,
        *,
        restored: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._keyspace = keyspace
        self._operator = operator
        self._later = later.call
        self._begin = later.begin
        self._restored = restored
        self._snapshot: Snapshot | None = None

    def end(self) -> None:
        """All members are well again, and the operator has done what is left to do."""
        for member in range(len(self._cluster.members)):
            self._cluster.resume(member)
            self._cluster.catch_up(member)
        if self._snapshot is not None:
            self._begin(self._finish())

    async def raise_epoch(self) -> None:
        """What `election epoch raise` does, until it is done."""
        while True:
            try:
                await raise_epoch(self._operator, self._keyspace, by="operator")
            except EtcdError:
                await asyncio.sleep(0.5)
            else:
                return

    async def _finish(self) -> None:
        if self._cluster.is_away:
            await asyncio.sleep(_RESTORING_S)
            self._come_back("restore")
        await self._heed()

    async def _heed(self) -> None:
        """Raises the epoch, and once more whenever candidates report that their history was set back all the same."""
        await self.raise_epoch()
        while True:
            await asyncio.sleep(1.0)
            with suppress(EtcdError):
                if (await read_epoch(self._operator, self._keyspace)).revision:
                    await self.raise_epoch()

    def hurt_member(self, step: Step) -> None:
        """Something happens to one member."""
        kind, for_s, cluster = step.kind, step.for_s, self._cluster
        member = step.rank % len(cluster.members)
        if cluster.is_away:
            return
        match kind:
            case "move" if cluster.has_quorum:
                cluster.change_leader()
            case "kill a member":
                cluster.stop(member)
            case "pause a member" if cluster.members[member].state is MemberState.UP:
                cluster.pause(member)
            case "isolate a member" if cluster.members[member].state is MemberState.UP:
                cluster.isolate(member)
            case "fall behind":
                cluster.fall_behind(member, for_s)
            case "fall behind and die":
                cluster.fall_behind(member, for_s)
                self._later(min(for_s, 2.5) * 0.8, lambda: None if cluster.is_away else cluster.stop(member))
            case "compact":
                with suppress(RpcFailed):
                    cluster.compact()
        self._later(for_s, lambda: cluster.resume(member))

    def restore(self, step: Step) -> None:
        """A snapshot is saved now; later etcd is stopped, restored from it, and the epoch raised."""
        if self._snapshot is not None:
            return
        self._snapshot = self._cluster.snapshot()
        self._later(step.for_s, self._go_away)
        self._later(step.for_s + _RESTORING_S, lambda: self._come_back(step.kind))

    def _go_away(self) -> None:
        self._cluster.is_away = True
        for member in range(len(self._cluster.members)):
            self._cluster.stop(member)

    def _come_back(self, kind: str) -> None:
        if not self._cluster.is_away:
            return
        assert self._snapshot is not None
        self._cluster.is_away = False
        self._cluster.restore(self._snapshot, bump=0 if kind == "restore" else _BUMP)
        self._restored()
        if kind == "restore and bump":  # and mark as compacted, as etcd's manual says
            self._cluster.compact()
        if kind == "restore":
            self._later(2.0, lambda: self._begin(self._heed()))
