"""The rules about agents and collectors. They hold until etcd is set back: it forgets what agents were told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from election.drill.checker.deadlines import overdue, stale_times
from election.drill.checker.harm import times
from election.drill.checker.kept import Kept
from election.drill.checker.reaps import Reaps
from election.drill.checker.replay import World, replay
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.checker.writes import Writes
from election.drill.history import History, Revision
from election.drill.vocabulary import Done
from election.keys import AliveKey, CandidateKey, DrainingKey, Keyspace, ReapRequestKey, StateKey, TombstoneKey

INVARIANTS = {
    "history is whole": ("history",),
    "only the dead are reaped": ("reap", "token"),
    "agents write as they live": ("write", "belief"),
    "what is kept is put back": ("kept",),
    "the dead are reaped in time": ("overdue",),
}
"""Each with the rules that its violations name."""
_UNSEEN_S = 5.0
"""What an agent was told so shortly before etcd was set back may be of a revision that nobody has seen."""


@dataclass(frozen=True, slots=True)
class _Examined:
    """The violations, and how much each invariant was held against."""

    violations: list[Violation]
    counts: dict[str, int]


def agents(history: History) -> Iterator[Verdict]:
    """One verdict for each invariant."""
    examined = _examine(until_set_back(history))
    for invariant, rules in INVARIANTS.items():
        found = (violation for violation in examined.violations if violation.rule in rules)
        yield Verdict.of(invariant, examined.counts[invariant], found)


def violations(history: History) -> list[Violation]:
    """Every violation of these rules, and of what may be left at the end."""
    history = until_set_back(history)
    return [*_examine(history).violations, *left_behind(history)]


def until_set_back(history: History) -> History:
    """What came before the first time that etcd was set back."""
    set_back_s = min(times(history.facts, Done.SET_BACK), default=None)
    if set_back_s is None:
        return history
    return replace(
        history,
        facts=tuple(fact for fact in history.facts if fact.at_s < set_back_s),
        said=tuple(
            said
            for said in history.said
            if said.at_s < set_back_s - (_UNSEEN_S if said.what in ("wrote", "acted") else 0)
        ),
    )


def _examine(history: History) -> _Examined:
    reaps, writes, kept = Reaps(history.settings), Writes(history), Kept(history)
    found: list[Violation] = []
    reaped = registered = 0
    for world, step in replay(history):
        here = [
            *_whole(world, step.revision, history.settings.whole),
            *reaps.judge(world, step),
            *writes.judge(world, step),
            *kept.judge(world, step),
        ]
        found += (replace(each, at_s=step.revision.seen_at_s) for each in here)
        reaped += any(True for _ in step.tombstones())
        registered += any(isinstance(key, AliveKey) and each.after is not None for key, each in step.parsed)
    found += writes.beliefs()
    found += overdue(history)
    said = sum(each.what in ("wrote", "acted") for each in history.said)
    counts = (len(history.revisions), reaped, said, registered, len(stale_times(history)))
    return _Examined(found, dict(zip(INVARIANTS, counts, strict=True)))


def _whole(world: World, revision: Revision, every_one: bool) -> Iterator[Violation]:
    """A history with holes proves nothing: each revision follows on the one before, and finds what that has left."""
    if every_one and revision.number != world.revision + 1:
        yield Violation("history", revision.number, "", f"it follows on revision {world.revision}")
    for change in revision.changes:
        known = world.stored.get(change.key)
        contradicts = change.before is not None and change.before != known
        created = known.created if known else revision.number
        if contradicts or (known is None if change.after is None else change.after.created != created):
            yield Violation("history", revision.number, "", f"{change.key!r} was not what the history says")


def left_behind(history: History) -> Iterator[Violation]:
    """Once all have left and everything is collected there are tombstones, their leases, and nothing else."""
    final = next((fact for fact in history.facts if fact.what == Done.LEASES), None)
    if final is None:
        return
    world = World(Keyspace(history.settings.namespace))
    for revision in history.revisions:
        world.step(revision)
    temporary = AliveKey | StateKey | DrainingKey | ReapRequestKey | CandidateKey
    tombstones = set()
    for key in world.stored:
        parsed = world.keyspace.parse(key)
        if isinstance(parsed, TombstoneKey):
            tombstones.add(key.decode())
        if isinstance(parsed, temporary):
            yield Violation("remains", world.revision, "", f"{key!r} is left at the end", final.at_s)
    leases = final.more["leases"]
    without = sum(not keys for keys in leases.values())
    for lease, keys in leases.items():
        if not set(keys) <= tombstones or (not keys and without > _may_be_left(history)):
            text = f"lease {lease} is left at the end, with the keys {keys}"
            yield Violation("remains", world.revision, "", text, final.at_s)


def _may_be_left(history: History) -> int:
    """How many leases for tombstones may have none.

    A collector grants one before it reaps. It cannot give it back when it is killed in between, and must not when it
    does not know whether etcd has put the tombstone, as after a pause that has cost it its term.
    """
    collectors = {fact.who for fact in history.facts if fact.what == Done.STARTED and fact.more["role"] == "collector"}
    hurt = sum(fact.what in (Done.KILLED, Done.PAUSED) and fact.who in collectors for fact in history.facts)
    return hurt + sum(fact.what == Done.DISTURBED and bool(fact.more["unwell"]) for fact in history.facts)
