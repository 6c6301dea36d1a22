"""What agents have put back: all that they keep and nobody has stored since; nothing, when nobody else was there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from election.drill.checker.replay import Step, World, object_of
from election.drill.checker.violation import Violation
from election.drill.checker.writes import process_of
from election.drill.history import History, Said
from election.keys import REGISTRATION


@dataclass
class Kept:
    """Judges every registration; call `judge` for each revision in order."""

    history: History
    _keeps: dict[tuple[str, str], list[Said]] = field(default_factory=dict)
    _confirmed: set[tuple[str, str, float]] = field(default_factory=set)
    _lived: set[tuple[str, str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for each in self.history.said:
            if each.what == "keeps":
                self._keeps.setdefault((each.agent, each.process), []).append(each)
            elif each.what == "wrote":
                self._confirmed.add((each.agent, each.key, each.at_s))
            elif each.what == "registered":
                self._lived.add((each.agent, each.process, each.incarnation))

    def judge(self, world: World, step: Step) -> Iterator[Violation]:
        """The violations of one revision."""
        for agent in step.agents:
            liveness = step.liveness(agent)
            if liveness is None or liveness.before is not None or liveness.after is None:
                continue
            written = {
                name: object_of(change.after.value).get("at_s")
                for name, change in step.states(agent).items()
                if change.after is not None and name != REGISTRATION
            }
            process = process_of(agent, liveness.after)
            registration = world.states.get(agent, {}).get(REGISTRATION)
            if registration is not None and process_of(agent, registration) == process:
                # Of an incarnation that it has not said anything of, it may not have heard itself.
                if written and (agent, process, registration.modified) in self._lived:
                    yield Violation("kept", step.number, agent, f"{sorted(written)} were put back, and were not gone")
                continue
            there = world.states.get(agent, {})
            for said in self._last(agent, process, step.number):
                if said.key not in there and written.get(said.key) != said.at_s:
                    text = f"{said.key!r} of {said.at_s:.3f} was kept, and not put back after a reap"
                    yield Violation("kept", step.number, agent, text)

    def _last(self, agent: str, process: str, before: int) -> Iterator[Said]:
        """The last that earlier incarnations kept of each key, where the agent was told that it was written."""
        last = {each.key: each for each in self._keeps.get((agent, process), []) if each.incarnation < before}
        for each in last.values():
            if (agent, each.key, each.at_s) in self._confirmed:
                yield each
