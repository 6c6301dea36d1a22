"""What a watch over several streams tells: each thing once, in order, and after which revision it goes on."""

from __future__ import annotations

from election.agent_records import Agent, AgentState, Tombstone
from election.reader import AgentEvent, AgentEventKind, Source
from election.token import Token
from election.told import ToldAgents


def event(
    kind: str, revision: int, id: str = "", incarnation: int = 1, part: int = 0, *, more: bool = False
) -> AgentEvent:
    states = {"reaped": AgentState.SUSPECT if more else AgentState.REAPED, "stale": AgentState.SUSPECT}
    agent = Agent(id, states.get(kind, AgentState.ALIVE), incarnation) if id else None
    tombstone = Tombstone(id, incarnation, None, "c", Token(0, 7), part=part) if kind == "reaped" else None
    return AgentEvent(AgentEventKind(kind), agent, Source(1, revision, 0.0), tombstone)


def tell(told: ToldAgents, *events: AgentEvent) -> list[tuple[str, str]]:
    """One stream: what is told of it."""
    told.begin()
    news = [new for each in events for new in told.news(each)]
    return [(new.kind.value, new.agent.id if new.agent else "") for new in news]


def test_it_goes_on_after_what_it_was_told_completely() -> None:
    """And after nothing before the first list was complete, unless it was given a revision or told of a reap."""
    told = ToldAgents()
    tell(told, event("present", 10, "a"))
    assert told.after is None
    tell(told, event("present", 11, "a"), event("synced", 11))
    assert told.after == 11
    tell(told, event("reaped", 11, "a"))
    assert told.after == 11
    tell(told, event("reaped", 12, "b"))
    assert told.after == 12
    assert ToldAgents(5).after == 5
    resumed = ToldAgents(5)
    assert tell(resumed, event("reaped", 8, "x"), event("present", 9, "a")) == [("reaped", "x")]
    assert resumed.after == 8


def test_a_revision_that_was_told_in_part_is_told_to_its_end() -> None:
    """The other server may have it in another order."""
    told = ToldAgents()
    tell(told, event("synced", 10))
    assert tell(told, event("reaped", 10, "b")) == [("reaped", "b")]
    again = [event("reaped", 10, "a"), event("reaped", 10, "c"), event("reaped", 11, "b"), event("synced", 11)]
    assert tell(told, *again) == [("reaped", "a"), ("reaped", "c")]
    assert told.after == 11


def test_parts_and_incarnations_are_different_reaps() -> None:
    """The same agent, the same revision."""
    told = ToldAgents()
    tell(told, event("synced", 10))
    reaps = [event("reaped", 10, "a"), event("reaped", 10, "a", part=1), event("reaped", 10, "a", incarnation=2)]
    assert len(tell(told, *reaps)) == 3
    assert tell(told, *reaps) == []


def test_an_agent_is_known_until_the_last_part_of_it_is_collected() -> None:
    """So the list of the next stream, where it is suspect, tells nothing."""
    told = ToldAgents()
    tell(told, event("present", 10, "a"), event("synced", 10), event("stale", 11, "a"))
    assert tell(told, event("reaped", 12, "a", more=True)) == [("reaped", "a")]
    suspect = AgentEvent(AgentEventKind.PRESENT, event("stale", 12, "a").agent, Source(1, 12, 0.0))
    assert tell(told, suspect, event("synced", 12), event("reaped", 13, "a", part=1)) == [("reaped", "a")]
    assert tell(told, event("synced", 13)) == []


def test_a_reap_of_an_earlier_life_does_not_end_the_present_one() -> None:
    """A tombstone that comes late tells of state that was left before."""
    told = ToldAgents()
    tell(told, event("present", 10, "a", incarnation=9), event("synced", 10))
    assert tell(told, event("reaped", 12, "a", incarnation=1)) == [("reaped", "a")]
    assert tell(told, event("present", 12, "a", incarnation=9), event("synced", 12)) == []


def test_after_a_history_that_was_set_back_lists_are_compared() -> None:
    """Whatever their revisions are; and who has told nothing has nothing to compare."""
    told = ToldAgents(99)
    assert not told.forget_revisions()
    told = ToldAgents()
    tell(told, event("present", 50, "a"), event("present", 50, "b"), event("synced", 50))
    assert told.forget_revisions()
    assert told.after is None
    assert tell(told, event("present", 7, "b"), event("present", 7, "c"), event("synced", 7)) == [
        ("reaped", "a"),
        ("joined", "c"),
    ]
    assert told.after == 7
