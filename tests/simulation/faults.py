"""Does to a run what the steps of its plan say. A step that cannot happen at present does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from election.epoch import raise_epoch
from election.errors import ElectionError, EtcdError
from election.etcd.client import EtcdClient
from election.etcd.transport import RpcFailed
from election.keys import COLLECTOR_ELECTION, Keyspace
from tests.fake.etcd import MemberState, Snapshot
from tests.fake.transport import Link
from tests.simulation.cluster import Cause, Cluster
from tests.simulation.network import CLEAR, Weather
from tests.simulation.nodes import AgentNode, CandidateNode, Node, ObserverNode
from tests.simulation.plan import LEADER, Step

_RESTORING_S = 3.0
"""How long etcd is away while it is restored: longer than any term lasts without it."""

_BUMP = 1_000
"""More than a run writes; operators take a thousand million."""

_WEATHERS = {
    "errors": (
        Weather(refused=0.2, lost=0.2, unanswered=0.2, twice=0.2),
        Weather(refused=0.5),
        Weather(lost=0.6),
        Weather(unanswered=0.6),
    ),
    "slow": (Weather(slow_s=0.3), Weather(slow_s=1.0), Weather(slow_s=3.0, unanswered=0.1)),
    "slow watch": (Weather(watch_slow_s=1.0), Weather(watch_slow_s=4.0)),
    "breaking": (Weather(broken=0.2), Weather(broken=0.5, unanswered=0.2, slow_s=0.1)),
}

ON_PROCESSES = (
    *("cut", "cut off", "answers lost", "requests lost", "errors", "slow", "slow watch", "breaking"),
    *("stop", "stop and cut off", "suspend", "skip", "kill"),
)
ON_MEMBERS = (
    *("move", "kill a member", "pause a member", "isolate a member"),
    *("fall behind", "fall behind and die", "compact"),
)


class Faults:
    """What can be done to a run, and undone."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: list[Node],
        keyspace: Keyspace,
        operator: EtcdClient,
        *,
        restart: Callable[[Node], None],
        restored: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._keyspace = keyspace
        self._operator = operator
        self._restart = restart
        self._restored = restored
        self._tasks: set[asyncio.Task[Any]] = set()
        self._snapshot: Snapshot | None = None
        self._over = False

    def do(self, step: Step) -> None:
        """Does one step; what lasts is undone when its time is over."""
        if step.kind in ON_PROCESSES:
            self._hurt(step, self._node(step))
        elif step.kind in ON_MEMBERS:
            self._member(step.kind, step.rank % len(self._cluster.members), step.for_s)
        else:
            self._meddle(step)

    def _hurt(self, step: Step, node: Node) -> None:
        match step.kind:
            case "cut":
                self._link(step, node, Link.CUT, [step.rank % len(self._cluster.members)])
            case "cut off":
                self._link(step, node, Link.CUT)
            case "answers lost":
                self._link(step, node, Link.ANSWERS_LOST)
            case "requests lost":
                self._link(step, node, Link.REQUESTS_LOST)
            case "stop" | "stop and cut off":
                self._stop(step, node)
            case "suspend":
                node.process.stop(step.for_s, suspended=True)
            case "skip":
                node.clock.skip(step.for_s)
            case "kill":
                self._kill(node, step.for_s)
            case _:
                self._weather(step, node)

    def _meddle(self, step: Step) -> None:
        match step.kind:
            case "kill an agent":
                agents = [each for each in self._nodes if isinstance(each, AgentNode)]
                self._kill(agents[step.rank % len(agents)], step.for_s if step.rank % 3 else None)
            case "hand over":
                self._hand_over(step.rank)
            case "delete the leader's key":
                self._take_away(step.rank, self._cluster.delete)
            case "revoke the leader's lease":
                self._take_away(step.rank, self._cluster.revoke_lease_of)
            case "stray state":
                self._stray(step.rank)
            case "raise the epoch":
                self._begin(self._raise_epoch())
            case _:
                self._restore(step)

    def end(self) -> None:
        """Everything is well again."""
        self._over = True
        cluster = self._cluster
        for task in self._tasks:
            task.cancel()
        if cluster.is_away:
            self._come_back("restore")
        for member in range(len(cluster.members)):
            cluster.resume(member)
            cluster.catch_up(member)
        for node in self._nodes:
            node.way.clear()
            if node.process.is_killed and not (isinstance(node, AgentNode) and node.for_good):
                self._restart(node)
        if self._snapshot is not None:
            self._begin(self._raise_epoch())

    def _node(self, step: Step) -> Node:
        if step.node >= 0:
            return self._nodes[step.node]
        election = "demo" if step.node == LEADER else COLLECTOR_ELECTION
        candidates = [each for each in self._nodes if isinstance(each, CandidateNode) and each.election == election]
        return next((each for each in candidates if each.is_leader), candidates[0])

    # --- processes -------------------------------------------------------------------------------------------

    def _stop(self, step: Step, node: Node) -> None:
        def stop() -> None:
            node.process.stop(step.for_s)
            if step.kind == "stop and cut off":
                self._later(step.for_s - 0.01, lambda: node.way.cut(0, 1, 2))
                self._later(step.for_s + 3.0, node.way.mend)

        if step.moment.name == "NOW":
            stop()
        else:
            node.way.stop_at(step.moment, stop)

    def _kill(self, node: Node, for_s: float | None) -> None:
        if isinstance(node, ObserverNode) or node.process.is_killed:
            return
        node.process.kill()
        node.way.break_off()
        if isinstance(node, AgentNode):
            node.for_good = for_s is None
        if for_s is not None:
            self._later(for_s, lambda: self._restart(node))

    def _link(self, step: Step, node: Node, link: Link, members: Iterable[int] = range(3)) -> None:
        for member in members:
            node.way.set_link(member, link)
        self._later(step.for_s, node.way.mend)

    def _weather(self, step: Step, node: Node) -> None:
        kinds = _WEATHERS[step.kind]
        weather = kinds[step.rank % len(kinds)]
        node.way.weather = weather

        def clear() -> None:
            if node.way.weather is weather:
                node.way.weather = CLEAR

        self._later(step.for_s, clear)

    # --- hands -----------------------------------------------------------------------------------------------

    def _leader(self, rank: int) -> CandidateNode | None:
        leading = [each for each in self._nodes if isinstance(each, CandidateNode) and each.is_leader]
        return leading[rank % len(leading)] if leading else None

    def _hand_over(self, rank: int) -> None:
        leader = self._leader(rank)
        if leader is None or leader.process.is_stopped:
            return
        others = [
            each.name
            for each in self._nodes
            if isinstance(each, CandidateNode) and each.election == leader.election and each is not leader
        ]
        with suppress(ElectionError):
            leader.process.call(lambda: leader.candidate.hand_over(others[rank % len(others)] if others else None))

    def _take_away(self, rank: int, take: Callable[[bytes], None]) -> None:
        """A stranger takes a leader's key from it."""
        leader = self._leader(rank)
        if leader is not None and leader.key is not None and self._cluster.has_quorum:
            self._cluster.cause = Cause.STRANGER
            take(leader.key)
            self._cluster.cause = Cause.CALL

    def _stray(self, rank: int) -> None:
        if self._cluster.has_quorum:
            self._cluster.put(self._keyspace.state(f"stray{rank % 3}", "a"), b"1")

    async def _raise_epoch(self) -> None:
        while True:
            try:
                await raise_epoch(self._operator, self._keyspace, by="operator")
            except EtcdError:
                await asyncio.sleep(0.5)
            else:
                return

    # --- etcd ------------------------------------------------------------------------------------------------

    def _member(self, kind: str, member: int, for_s: float) -> None:
        cluster = self._cluster
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

    def _restore(self, step: Step) -> None:
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
            self._later(2.0, lambda: self._begin(self._raise_epoch()))

    # --- later -----------------------------------------------------------------------------------------------

    def _later(self, after_s: float, action: Callable[[], object]) -> None:
        def act() -> None:
            if not self._over:
                action()

        asyncio.get_running_loop().call_later(after_s, act)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
