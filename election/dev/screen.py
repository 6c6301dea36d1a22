"""The live view of `election dev`, which fits 80 columns and 24 lines or more."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from election.agent_records import Agent, AgentState
from election.breaker import Breaker
from election.clock import Clock
from election.dev.fleet import ELECTION, Fleet
from election.dev.tasks import PREFIX
from election.errors import ViewStale
from election.reader import AgentFilter
from election.records import Leader

EVENTS = 7
_STYLES = {
    "elected": "bold green",
    "vacated": "bold red",
    "ended": "red",
    "stale": "yellow",
    "reaped": "magenta",
    "reassigned": "cyan",
    "breaker_opened": "bold red",
    "breaker_closed": "green",
}
_STATE_STYLES = {
    AgentState.ALIVE: "green",
    AgentState.DRAINING: "cyan",
    AgentState.SUSPECT: "yellow",
    AgentState.REAPED: "magenta",
}
_ALL = AgentFilter(frozenset(AgentState))
_QUIET = {"assigned", "done", "leads", "updated", "suspected", "waiting", "collecting", "started"}
"""Events that are said elsewhere on the screen, or too often."""


class Screen:
    """What is shown: the present state, read from the view, and the last events."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._events: deque[Text] = deque(maxlen=EVENTS)

    def note(self, event: dict[str, Any]) -> None:
        """Keeps an event for the list of the last ones, if it is worth a line there."""
        if event["event"] in _QUIET or (event.get("process") == "serve" and event["event"] == "reaped"):
            return
        self._events.append(
            Text(
                f"{self._fleet.clock.wall():%H:%M:%S} {sentence(event)}", _STYLES.get(event["event"], ""), no_wrap=True
            )
        )

    async def render(self) -> RenderableType:
        """The screen as it is now."""
        fleet = self._fleet
        head = Text.assemble(
            ("election dev", "bold"),
            f"  etcd {fleet.cluster.version} on {fleet.cluster.endpoints[0]}, gRPC on {fleet.grpc_address}",
            no_wrap=True,
        )
        try:
            leader = (await fleet.view.leader(ELECTION)).value
            agents = {agent.id: agent for agent in (await fleet.view.agents(_ALL)).value}
            candidates = {candidate.id: candidate for candidate in (await fleet.view.candidates(ELECTION)).value}
            now = _leader_line(leader, fleet.clock)
        except ViewStale as error:
            leader, agents, candidates = None, {}, {}
            now = Text(f"etcd is out of reach: {error}", "bold red")
        left = _table("ORCHESTRATOR", "PID", "STATE")
        for process in fleet.orchestrators:
            left.add_row(process.name, _pid(process.pid), _standing(process.name, process.running, leader, candidates))
        for name in candidates.keys() - {process.name for process in fleet.orchestrators}:
            left.add_row(name[:20], "-", _standing(name, True, leader, candidates))
        left.add_row("serve", _pid(fleet.serve.pid), "serves" if fleet.serve.running else "down")
        for member in fleet.cluster.members:
            left.add_row(f"etcd-{member.name}", _pid(member.pid), "up" if member.running else "down")
        right = _table("AGENT", "PID", "STATE", "TASKS")
        for process in fleet.agents:
            right.add_row(process.name, _pid(process.pid), *_agent_cells(agents.get(process.name)))
        ours = {process.name for process in fleet.agents}
        for name, agent in agents.items():
            if name not in ours and agent.state is not AgentState.REAPED:
                right.add_row(name[:12], "-", *_agent_cells(agent))
        body = Table.grid(padding=(0, 3))
        body.add_row(left, right)
        above = [head, now, *([_breaker_line(fleet.breaker)] if fleet.breaker.open else [])]
        return Group(*above, Text(), body, Text(), *self._events, Text(), *self._hints(leader))

    def _hints(self, leader: Leader | None) -> Iterable[Text]:
        fleet = self._fleet
        leading = next((process.pid for process in fleet.orchestrators if leader and process.name == leader.id), None)
        agent = next((process.pid for process in fleet.agents if process.pid), None)
        member = next((member.pid for member in fleet.cluster.members if member.pid), None)
        victims = [
            f"{pid} ({what})"
            for pid, what in ((leading, "the leader"), (agent, "an agent"), (member, "an etcd member"))
            if pid
        ]
        back = f"what dies is back after {fleet.config.respawn_s:g} s, " if fleet.config.respawn_s else ""
        yield Text(f"Try: {fleet.question}", "dim")
        yield Text(f"     kill -9 {', or '.join(victims)}", "dim", no_wrap=True)
        yield Text(f"     ({back}Ctrl-C ends all)", "dim")


def sentence(event: dict[str, Any]) -> str:
    """An event in words."""
    match event:
        case {"event": "elected", "id": name, "token": token}:
            return f"{name} leads with token {token}"
        case {"event": "vacated"}:
            return "nobody leads"
        case {"event": "lost", "process": process, "token": token, "reason": reason, "margin_s": margin_s}:
            return f"{process} stopped leading (token {token}: {reason}, {margin_s:.1f} s before its deadline)"
        case {"event": "ended", "process": process, "pid": pid, "code": code}:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            return f"{process} ({pid}) {how}"
        case {"event": "stale", "agent": agent}:
            return f"{agent} is gone; its state waits for the grace to end"
        case {"event": "reaped", "agent": agent, "collected": keys}:
            return f"{agent} was reaped: {', '.join(keys) or 'it stored nothing'}"
        case {"event": "breaker_opened", "reason": reason}:
            return f"the breaker is open: {reason}"
        case {"event": "breaker_closed", "reason": reason}:
            return f"the breaker is closed: {reason}"
        case {"event": "reassigned", "task": task, "agent": agent, "formerly": formerly}:
            return f"{task} goes from {formerly} to {agent}"
        case {"event": what, "agent": agent}:
            return f"{agent} {what}"
        case {"event": what, "error": error}:
            return f"{event.get('process', '')} {what}: {error}"
        case _:
            return f"{event.get('process', '')} {event['event']}".strip()


def _leader_line(leader: Leader | None, clock: Clock) -> Text:
    if leader is None:
        return Text("Nobody leads.", "bold red")
    since = ""
    if leader.elected_at is not None:
        seconds = max(int((clock.wall() - leader.elected_at).total_seconds()), 0)
        since = f" for {seconds // 60} min {seconds % 60} s" if seconds >= 60 else f" for {seconds} s"
    return Text.assemble((leader.id, "bold green"), f" leads {leader.election!r}{since}, token {leader.token}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in ("PID", "TASKS") else "left")
    return table


def _standing(name: str, running: bool, leader: Leader | None, candidates: Collection[str]) -> Text:
    if leader is not None and leader.id == name:
        return Text("leads" if running else "leads (dead)", "bold green" if running else "yellow")
    if name in candidates:
        return Text("waits" if running else "waits (dead)", "" if running else "yellow")
    return Text("starts" if running else "down", "red")


def _breaker_line(breaker: Breaker) -> Text:
    why = breaker.reason.value.replace("_", " ") if breaker.reason else ""
    missing = f", {breaker.missing} of {breaker.known} missing" if breaker.known else ""
    until = f"{breaker.until:%H:%M:%S}" if breaker.until else "`election breaker close`"
    return Text(f"Breaker open: {why}{missing}; nothing is reaped until {until}", "bold red", no_wrap=True)


def _agent_cells(agent: Agent | None) -> tuple[Text, str]:
    if agent is None:
        return Text("gone", "red"), ""
    tasks = sum(key.startswith(PREFIX) for key in agent.state_keys)
    return Text(agent.state.value, _STATE_STYLES[agent.state]), str(tasks)


def _pid(pid: int | None) -> str:
    return str(pid) if pid else "-"
