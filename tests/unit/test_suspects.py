"""Who is to be reaped next."""

from __future__ import annotations

import random

from election.collector.suspects import Suspect, Suspects


def suspect(agent: str, due_at_s: float = 0.0) -> Suspect:
    return Suspect(agent, incarnation=1, gone_at=1, since_s=0.0, due_at_s=due_at_s)


def named(suspects: list[Suspect]) -> list[str]:
    return [each.agent for each in suspects]


def test_those_who_are_due_are_taken_once_the_longest_due_first() -> None:
    """And nobody before the time."""
    suspects = Suspects()
    for agent, due_at_s in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 9.0)):
        suspects.suspect(suspect(agent, due_at_s))
    assert suspects.next_due_s() == 1.0
    assert named(suspects.take(0.5, 10)) == []
    assert named(suspects.take(3.0, 2)) == ["a", "b"]
    assert named(suspects.take(3.0, 2)) == ["c"]
    assert suspects.next_due_s() == 9.0


def test_an_agent_that_is_back_is_not_due_and_has_a_new_grace_when_it_goes_again() -> None:
    """What was planned for the first time it went is void."""
    suspects = Suspects()
    first = suspect("a", 1.0)
    suspects.suspect(first)
    assert suspects.appeared("a")
    assert not suspects.appeared("a")
    assert suspects.next_due_s() == float("inf")
    suspects.alive.discard("a")
    suspects.suspect(suspect("a", 5.0))
    suspects.again(first, 0.0)
    suspects.settle(first)
    assert named(suspects.take(4.0, 10)) == []
    assert named(suspects.take(5.0, 10)) == ["a"]


def test_who_was_ordered_is_due_at_once_and_apart_from_the_others() -> None:
    """So an order goes through while the breaker holds the others."""
    suspects = Suspects()
    ordered = suspect("a", 50.0)
    suspects.suspect(ordered)
    suspects.suspect(suspect("b", 1.0))
    suspects.order(ordered, 2.0)
    assert named(suspects.take(2.0, 10, ordered=True)) == ["a"]
    suspects.order(ordered, 3.0)  # somebody is at it already
    assert named(suspects.take(60.0, 10, ordered=True)) == []
    assert named(suspects.take(60.0, 10)) == ["b"]
    suspects.again(ordered, 4.0)
    assert suspects.next_due_s(ordered=True) == 4.0


def test_nobody_is_due_before_the_time_to_which_all_are_put_off() -> None:
    """But those who are ordered, or due later."""
    suspects = Suspects()
    for agent, due_at_s in (("a", 1.0), ("b", 20.0), ("c", 1.0)):
        suspects.suspect(suspect(agent, due_at_s))
    suspects.order(suspects.missing["c"], 0.0)
    suspects.postpone(10.0)
    assert suspects.next_due_s() == 10.0
    assert named(suspects.take(30.0, 10)) == ["a", "b"]
    assert suspects.next_due_s(ordered=True) == 0.0


def test_whatever_happens_each_missing_agent_is_due_exactly_once() -> None:
    """Against a plain list, over random events."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    suspects = Suspects()
    due: dict[str, float] = {}
    taken: dict[str, Suspect] = {}
    for now in range(2_000):
        agent = f"a{rng.randrange(20)}"
        match rng.randrange(4):
            case 0 if agent not in suspects.missing:
                due[agent] = float(now + rng.randrange(30))
                suspects.alive.discard(agent)
                suspects.suspect(suspect(agent, due[agent]))
            case 1:
                suspects.appeared(agent)
                due.pop(agent, None)
                taken.pop(agent, None)
            case 2 if taken:
                name = rng.choice(sorted(taken))
                due[name] = float(now + rng.randrange(30))
                suspects.again(taken.pop(name), due[name])
            case 3:
                for each in suspects.take(float(now), rng.randrange(5)):
                    assert due.pop(each.agent) <= now, f"seed {seed}"
                    taken[each.agent] = each
        assert suspects.next_due_s() == min(due.values(), default=float("inf")), f"seed {seed}"
