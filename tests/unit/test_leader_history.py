"""What is remembered of leaders is exact, and what is not is said to be missing."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from election.applied import Applied
from election.leader_history import LeaderHistory
from election.reader import LeaderEvent, LeaderEventKind, Source


def event(revision: int) -> Applied[LeaderEvent]:
    return Applied(LeaderEvent(LeaderEventKind.VACATED, None, Source(1, revision, 0.0)), 0.0)


def revisions(events: tuple[Applied[LeaderEvent], ...] | None) -> list[int] | None:
    return None if events is None else [each.event.source.revision for each in events]


def test_what_came_after_a_revision_is_told() -> None:
    """Of that election alone; and of one that nobody has heard of, that nothing happened."""
    history = LeaderHistory()
    history.begin(10)
    for revision in (11, 13, 15):
        history.add("a", event(revision))
    history.add("b", event(14))
    assert revisions(history.after("a", 12)) == [13, 15]
    assert revisions(history.after("a", 10)) == [11, 13, 15]
    assert revisions(history.after("a", 15)) == []
    assert revisions(history.after("b", 13)) == [14]
    assert revisions(history.after("c", 10)) == []
    for election in "abc":
        assert history.after(election, 9) is None


def test_after_a_gap_only_what_cannot_have_missed_anything_is_remembered() -> None:
    """Whether something had happened in it before or not."""
    history = LeaderHistory()
    history.begin(10)
    for election in "ab":
        history.add(election, event(12))
    history.begin(20, frozenset({"a", "c"}))
    history.add("a", event(21))
    assert revisions(history.after("a", 11)) == [12, 21]
    assert revisions(history.after("c", 11)) == []
    for election in "bd":
        assert history.after(election, 19) is None
        assert revisions(history.after(election, 20)) == []


@given(seed=st.integers(0, 10_000))
def test_what_is_told_is_everything_however_little_is_kept(seed: int) -> None:
    """Against a history without bounds, of elections in any order; and the bounds are kept."""
    rng = random.Random(seed)
    history, everything = LeaderHistory(per_election=4, in_total=10), list[tuple[int, str]]()
    history.begin(0)
    for revision in range(1, rng.randint(2, 80)):
        election = rng.choice("aaaabbcdefg")
        everything.append((revision, election))
        history.add(election, event(revision))
        election, after = rng.choice("abcdefgh"), rng.randint(0, revision)
        told = revisions(history.after(election, after))
        expected = [number for number, name in everything if name == election and number > after]
        assert told in (None, expected)
        assert revisions(history.after(election, revision)) == []
        kept = [history.after(name, revision) for name in "abcdefgh"]
        assert None not in kept
        assert history._size <= 10


def test_the_last_changes_are_what_is_kept() -> None:
    """Of an election that changes all the time so many, and of all together so many: the others are not pushed out."""
    history = LeaderHistory(per_election=3, in_total=10)
    history.begin(0)
    history.add("quiet", event(1))
    for revision in range(2, 50):
        history.add("busy", event(revision))
    assert revisions(history.after("quiet", 0)) == [1]
    assert revisions(history.after("busy", 46)) == [47, 48, 49]
    assert history.after("busy", 45) is None
    for number, revision in enumerate(range(50, 60)):
        history.add(f"new{number}", event(revision))
    assert history.after("quiet", 0) is None
    assert revisions(history.after("quiet", 49)) == []
