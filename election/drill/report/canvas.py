"""What the picture of time is drawn on: lanes of bars and ticks, in seconds since the drill began."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from election.drill.history import History
from election.drill.report.figures import span
from election.drill.report.lives import lives

ROLES = ("leader", "etcd", "orchestrator", "register", "server", "reader", "collector", "agent")
"""The kinds of lanes, from the top to the bottom."""
_COLOURS, _MOST_AGENTS, _AGENT = 8, 80, "agent"


@dataclass
class Lane:
    """A row of the picture. A bar is [from, until, style, label, text], a tick is [at, style, text]."""

    name: str
    kind: str
    bars: list[list[Any]] = field(default_factory=list)
    ticks: list[list[Any]] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, int, str]:
        """Where it stands among the others; `w10` after `w9`."""
        return ROLES.index(self.kind), len(self.name), self.name

    def document(self) -> dict[str, Any]:
        """As JSON."""
        bars, ticks = (sorted(each, key=lambda drawn: drawn[0]) for each in (self.bars, self.ticks))
        return {"name": self.name, "kind": self.kind, "bars": bars, "ticks": ticks}


class Canvas:
    """The lanes of one history, and the colour of each orchestrator."""

    def __init__(self, history: History) -> None:
        self.began_at_s, self.ended_at_s = span(history)
        self.lives = lives(history, self.ended_at_s)
        self.slots = {life.process: life.slot for life in self.lives}
        self._lanes: dict[tuple[bool, str], Lane] = {}
        self._colours: dict[str, int] = {}
        for life in self.lives:
            if "orchestrator" in life.role:
                self.colour(life.process)

    def at(self, at_s: float) -> float:
        """A time of the history, from 0 to the end of the picture."""
        return round(min(max(at_s, self.began_at_s), self.ended_at_s) - self.began_at_s, 3)

    def lane(self, process: str, kind: str) -> Lane:
        """The lane that a process shares with its predecessors, or that of anything else by its name.

        An agent that a stranger has made up may have the name of something else.
        """
        name = self.slots.get(process, process)
        return self._lanes.setdefault((kind == _AGENT, name), Lane(name, kind))

    @property
    def lanes(self) -> list[Lane]:
        """All lanes, from the top to the bottom; of very many agents only the first."""
        lanes = sorted(self._lanes.values(), key=lambda lane: lane.place)
        agents = sum(lane.kind == _AGENT for lane in lanes)
        return lanes[: len(lanes) - max(agents - _MOST_AGENTS, 0)]

    def bar(self, lane: Lane, from_s: float, until_s: float, style: str, text: str, label: str = "") -> None:
        """Draws a time."""
        lane.bars.append([self.at(from_s), self.at(until_s), style, label, text])

    def tick(self, lane: Lane, at_s: float, style: str, text: str) -> None:
        """Draws a moment."""
        lane.ticks.append([self.at(at_s), style, text])

    def colour(self, process: str) -> str:
        """The style of whatever is about the leader that this process is or was."""
        slot = self.slots.get(process, process)
        return f"c{self._colours.setdefault(slot, len(self._colours)) % _COLOURS}"
