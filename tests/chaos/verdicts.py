"""What the tests of the checker say of a history, and the histories that several of them tell."""

from __future__ import annotations

from dataclasses import replace

from election.drill.checker import State, Verdict, check
from election.drill.history import History
from election.drill.vocabulary import Done
from election.drill.workload.registers import ETCD
from tests.chaos.saga import TERM_S, Saga
from tests.chaos.story import SETTINGS

BOUND_S = SETTINGS.takeover_bound_s


def verdict(story: Saga | History, invariant: str) -> Verdict:
    history = story if isinstance(story, History) else story.history()
    return next(each for each in check(history) if each.invariant == invariant)


def held(story: Saga, *invariants: str) -> None:
    """These invariants hold."""
    history = story.history()
    for invariant in invariants:
        found = verdict(history, invariant)
        assert found.state is State.HELD, found


def violated(story: Saga, invariant: str, *words: str) -> None:
    """The invariant is violated, and each text of it has one of the words."""
    found = verdict(story, invariant)
    assert found.state is State.VIOLATED
    texts = [each.text for each in found.violations]
    assert all(any(word in text for word in words) for text in texts), texts
    assert all(any(word in text for text in texts) for word in words), texts
    assert all(each.at_s > 0 for each in found.violations)


def unknown(story: Saga | History, invariant: str, why: str) -> None:
    found = verdict(story, invariant)
    assert found.state is State.UNKNOWN
    assert why in found.why


def whole() -> Saga:
    """A drill in which everything happens and nothing goes wrong."""
    story = Saga()
    story.lives("w1").dies("w1").wait(2).beat().reap("w1")
    story.leads("o1", 1).writes("o1").writes("o1", ETCD).sees("o1").sees("o1", "watch")
    story.fault("hand over", "o1").loses("o1").goes("o1").leads("o2", 1).heals().sees("o2").writes("o2", ETCD)
    story.fault("kill", "o2").kills("o2").wait(TERM_S + 1).goes("o2").leads("o3", 1).heals().healed()
    story.goes_on("o3", BOUND_S + 6).writes("o3").refused("o1", "sqlite", story.tokens["o1"])
    story.writes("o3", ETCD).fact(Done.LEAVES, "o3").loses("o3").goes("o3").sees("")
    return story


def overlap() -> Saga:
    """o1 has acted after o2 had begun."""
    return Saga().leads("o1", 1).goes("o1").leads("o2").wait(0.1).acts("o1")


def of_guests() -> Saga:
    """`o1` has led, and has been cut off; its process tells nothing."""
    story = Saga(replace(SETTINGS, whole=False, hurts="drill")).wins("o1").sees("o1").fault("cut off", "o1")
    return story.goes("o1").wait(2)
