"""Does to a run what the steps of its plan say. A step that cannot happen at present does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from election.errors import ElectionError
from election.etcd.client import EtcdClient
from election.keys import COLLECTOR_ELECTION, Keyspace
from tests.fake.transport import Link
from tests.simulation.cluster import Cause, Cluster
from tests.simulation.later import Later
from tests.simulation.nodes import AgentNode, CandidateNode, Node
from tests.simulation.observer import ObserverNode
from tests.simulation.outages import ON_MEMBERS, Outages
from tests.simulation.plan import LEADER, Step
from tests.simulation.weather import CLEAR, WEATHERS, Moment

ON_PROCESSES = (
    *("cut", "cut off", "answers lost", "requests lost", "errors", "slow", "slow watch", "breaking"),
    *("stop", "stop and cut off", "suspend", "skip", "kill"),
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
        later = Later()
        self._cluster = cluster
        self._nodes = nodes
        self._keyspace = keyspace
        self._restart = restart
        self._outages = Outages(cluster, keyspace, operator, later, restored=restored)
        self._later = later.call
        self._begin = later.begin
        self._end_later = later.end

    def do(self, step: Step) -> None:
        """Does one step; what lasts is undone when its time is over."""
        if step.kind in ON_PROCESSES:
            self._hurt(step, self._node(step))
        elif step.kind in ON_MEMBERS:
            self._outages.hurt_member(step)
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
                self._begin(self._outages.raise_epoch())
            case _:
                self._outages.restore(step)

    def end(self) -> None:
        """Everything is well again."""
        self._end_later()
        self._outages.end()
        for node in self._nodes:
            node.way.clear()
            if node.process.is_killed and not (isinstance(node, AgentNode) and node.for_good):
                self._restart(node)

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

        if step.moment is Moment.NOW:
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
        kinds = WEATHERS[step.kind]
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
