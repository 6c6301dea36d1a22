"""Pauses double, are bounded, and are drawn from a generator that can be seeded."""

from __future__ import annotations

import random

from election.backoff import Backoff


def test_pauses_double_up_to_the_longest_with_jitter() -> None:
    """Each is between half of the nominal pause and the whole."""
    pauses = Backoff(1.0, 5.0, random.Random(1))
    for nominal_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert nominal_s / 2 <= pauses.next_s() <= nominal_s


def test_reset_begins_anew() -> None:
    """After a success."""
    pauses = Backoff(1.0, 64.0, random.Random(1))
    for _ in range(5):
        pauses.next_s()
    pauses.reset()
    assert pauses.next_s() <= 1.0


def test_the_same_seed_gives_the_same_pauses() -> None:
    """So that a simulation can be repeated."""
    one, other = Backoff(1.0, 9.0, random.Random(7)), Backoff(1.0, 9.0, random.Random(7))
    assert [one.next_s() for _ in range(9)] == [other.next_s() for _ in range(9)]
