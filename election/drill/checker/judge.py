"""Judges the history of a drill."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from election.drill.checker.deadlines import overdue
from election.drill.checker.health import What
from election.drill.checker.kept import Kept
from election.drill.checker.reaps import Reaps
from election.drill.checker.replay import World, replay
from election.drill.checker.violation import Violation
from election.drill.checker.writes import Writes
from election.drill.history import History, Revision
from election.keys import AliveKey, CandidateKey, DrainingKey, Keyspace, ReapRequestKey, StateKey, TombstoneKey

FINAL = "final"
"""The fact that tells, after all have left, every lease that etcd holds, and its keys."""


def check(history: History) -> list[Violation]:
    """Every violation of the history; a pure function of it."""
    reaps, writes, kept = Reaps(history.settings), Writes(history), Kept(history)
    found: list[Violation] = []
    for world, step in replay(history):
        found += _whole(world, step.revision)
        found += reaps.judge(world, step)
        found += writes.judge(world, step)
        found += kept.judge(world, step)
    found += writes.beliefs()
    found += overdue(history)
    found += _left_behind(history)
    return found


def _whole(world: World, revision: Revision) -> Iterator[Violation]:
    """A history with holes proves nothing: each revision follows on the one before, and finds what that has left."""
    if revision.number != world.revision + 1:
        yield Violation("history", revision.number, "", f"it follows on revision {world.revision}")
    for change in revision.changes:
        known = world.stored.get(change.key)
        contradicts = change.before is not None and change.before != known
        created = known.created if known else revision.number
        if contradicts or (known is None if change.after is None else change.after.created != created):
            yield Violation("history", revision.number, "", f"{change.key!r} was not what the history says")


def _left_behind(history: History) -> Iterator[Violation]:
    """Once all have left and everything is collected there are tombstones, their leases, and nothing else."""
    final = next((fact for fact in history.facts if fact.what == FINAL), None)
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
            yield Violation("remains", world.revision, "", f"{key!r} is left at the end")
    leases = final.more["leases"]
    without = sum(not keys for keys in leases.values())
    for lease, keys in leases.items():
        if not set(keys) <= tombstones or (not keys and without > _may_be_left(history)):
            yield Violation("remains", world.revision, "", f"lease {lease} is left at the end, with the keys {keys}")


def _may_be_left(history: History) -> int:
    """How many leases for tombstones may have none.

    A collector grants one before it reaps. It cannot give it back when it is killed in between, and must not when it
    does not know whether etcd has put the tombstone, as after a pause that has cost it its term.
    """
    hurt = sum(fact.what in (What.COLLECTOR_KILLED, What.COLLECTOR_PAUSED) for fact in history.facts)
    return hurt + sum(fact.what == What.DISTURBED and bool(fact.more["unwell"]) for fact in history.facts)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Checks the history in FOLDER; exits with 1 when it breaks a promise."""
    found = check(History.load(folder))
    for violation in found:
        click.echo(str(violation))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
