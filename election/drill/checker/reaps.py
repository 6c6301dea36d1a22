"""What a reap may do: only to the dead, after their grace, by the leader, and it keeps what it takes away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from election.agent_records import AgentRecord, StateEntry, Tombstone
from election.drill.checker.replay import Step, World
from election.drill.checker.violation import Violation
from election.drill.history import Change, Settings
from election.keys import REGISTRATION, ReapRequestKey


@dataclass
class Reaps:
    """Judges every revision that puts a tombstone; call `judge` for each revision in order."""

    settings: Settings
    _token: int = 0
    _written_s: float = 0.0
    _vanished_after_s: dict[str, float] = field(default_factory=dict)

    def judge(self, world: World, step: Step) -> Iterator[Violation]:
        """The violations of one revision."""
        tombstones = [each for _, _, each in step.tombstones()]
        for agent in sorted({each.agent for each in tombstones}):
            of_agent = [each for each in tombstones if each.agent == agent]
            for text in (*self._state_taken(world, step, agent, of_agent), *self._too_early(world, step, agent)):
                yield Violation("reap", step.number, agent, text)
            for text in self._by_whom(world, step, of_agent):
                yield Violation("token", step.number, agent, text)
        for key, change, _ in step.tombstones():
            if change.before is not None:
                yield Violation("reap", step.number, key.agent, "an earlier tombstone was overwritten")
        self._note(world, step)

    def _state_taken(self, world: World, step: Step, agent: str, tombstones: list[Tombstone]) -> Iterator[str]:
        changes = step.states(agent)
        if written := sorted(name for name, each in changes.items() if each.after is not None and name != REGISTRATION):
            yield f"the reap has written {written}"
        if foreign := [each.key for key, each in step.parsed if key is None and each.after is None]:
            yield f"{foreign} are nobody's state, and were deleted"
        if incarnation := world.incarnation(agent):
            yield f"it was reaped while incarnation {incarnation} was alive"
        deleted = {name: each for name, each in changes.items() if name != REGISTRATION and each.after is None}
        held = [entry for each in tombstones for entry in each.collected]
        names = [entry.key for entry in held]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"{twice} are in the tombstones twice"
        if lost := sorted(deleted.keys() - set(names)):
            yield f"{lost} were deleted and are in no tombstone"
        if kept := sorted(set(names) - deleted.keys()):
            yield f"{kept} are in a tombstone and were not deleted"
        if wrong := [entry.key for entry in held if entry.key in deleted and not _is_of(entry, deleted[entry.key])]:
            yield f"{wrong} are in the tombstone with another value or revision than in etcd"
        yield from _record_taken(changes.get(REGISTRATION), agent, tombstones)

    def _by_whom(self, world: World, step: Step, tombstones: list[Tombstone]) -> Iterator[str]:
        leader = world.collector()
        for tombstone in tombstones:
            who = (tombstone.collector, tombstone.token.revision)
            if who != leader:
                yield f"reaped by {who}, and the proven collector was {leader}"
        if any(change.key in world.candidates and change.after is None for change in step.revision.changes):
            yield "a collector's key was deleted by the reap itself"
        token = max(tombstone.token.revision for tombstone in tombstones)
        if token < self._token:
            yield f"reaped under token {token} after one under {self._token}"
        self._token = max(self._token, token)

    def _too_early(self, world: World, step: Step, agent: str) -> Iterator[str]:
        requested = any(key == ReapRequestKey(agent) and each.after is None for key, each in step.parsed)
        vanished_s = self._vanished_after_s.get(agent)
        if vanished_s is None or requested:
            return
        if world.breaker_is_open():
            yield "it was reaped while the breaker was open"
        waited_s = step.revision.seen_at_s - vanished_s
        if waited_s < self.settings.grace_s:
            yield f"it was reaped at most {waited_s:.3f} s after it vanished; the grace is {self.settings.grace_s:g} s"

    def _note(self, world: World, step: Step) -> None:
        """Keeps, for each agent that vanishes, a moment before that."""
        for agent in step.agents:
            liveness = step.liveness(agent)
            if liveness is not None and liveness.after is not None:
                self._vanished_after_s.pop(agent, None)
            elif liveness is not None or (agent not in world.states and agent not in world.alive):
                self._vanished_after_s[agent] = self._written_s
        self._written_s = max(self._written_s, step.written_s)


def _is_of(entry: StateEntry, change: Change) -> bool:
    before = change.before
    return before is not None and (before.value, before.modified) == (entry.value, entry.mod_revision)


def _record_taken(change: Change | None, agent: str, tombstones: list[Tombstone]) -> Iterator[str]:
    records = [each.agent_record for each in tombstones if each.agent_record is not None]
    if change is None or change.before is None:
        return
    registered = AgentRecord.decode(agent, change.before.value)
    if change.after is not None and (left := AgentRecord.decode(agent, change.after.value)) != registered:
        incarnation = registered.incarnation or change.before.modified
        if left != replace(registered, incarnation=incarnation):
            yield f"its registration became {left}"
    if not records:
        yield "its registration was deleted, and is in no tombstone"
    elif any(record != registered for record in records):
        yield f"the tombstone says {records} of it, and its registration said {registered}"
