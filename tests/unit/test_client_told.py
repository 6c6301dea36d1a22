"""What a watch over several streams tells: each thing once, in order, and after which revision it goes on."""

from __future__ import annotations

from election.agent_records import Agent, AgentState, Tombstone
from election.client.told import ToldAgents, ToldLeader
from election.reader import AgentEvent, AgentEventKind, LeaderEvent, LeaderEventKind, Source
from election.records import Leader
from election.token import Token


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


def test_a_stream_that_begins_anew_in_its_middle_tells_the_difference() -> None:
    """What was REAPED since, and what else is different, as if another server went on with it."""
    told = ToldAgents()
    tell(told, event("present", 10, "a"), event("present", 10, "b"), event("present", 10, "c"), event("synced", 10))
    anew = [event("reset", 10), event("reaped", 15, "a"), event("present", 20, "c"), event("synced", 20)]
    assert tell(told, *anew) == [("reaped", "a"), ("reaped", "b")]
    assert told.after == 20
    assert tell(told, event("reset", 7), event("present", 7, "b"), event("synced", 7)) == [
        ("joined", "b"),
        ("reaped", "c"),
    ]
    assert told.after == 7


# --- leaders -----------------------------------------------------------------------------------------------------


def leading(kind: str, revision: int, token: int = 0, address: str = "", cluster: int = 1) -> LeaderEvent:
    leader = Leader("e", "one", address, Token(0, token), "/k", 5, None, {}, 0, proven=True) if token else None
    return LeaderEvent(LeaderEventKind(kind), leader, Source(cluster, revision, 0.0))


def tell_leaders(told: ToldLeader, *events: LeaderEvent) -> list[tuple[str, int]]:
    news = [told.news(each) for each in events]
    return [(new.kind.value, new.leader.token.revision if new.leader else 0) for new in news if new]


def test_a_reset_is_told_unless_the_same_term_goes_on() -> None:
    """Between two of the same token there was no other one; between two times nobody, there may have been."""
    told = ToldLeader()
    assert tell_leaders(told, leading("elected", 10, 10), leading("reset", 20, 10)) == [("elected", 10)]
    assert told.after == 20
    assert tell_leaders(told, leading("reset", 25, 10, "elsewhere")) == [("updated", 10)]
    assert tell_leaders(told, leading("reset", 30, 28)) == [("reset", 28)]
    assert tell_leaders(told, leading("reset", 40), leading("reset", 50)) == [("reset", 0), ("reset", 0)]
    assert tell_leaders(ToldLeader(7), leading("reset", 40, 10)) == [("reset", 10)]


def test_it_goes_on_after_the_last_sign_of_life() -> None:
    """A heartbeat says that everything up to its revision was told."""
    told = ToldLeader(3)
    assert told.after == 3
    tell_leaders(told, leading("elected", 10, 10), leading("heartbeat", 17))
    assert told.after == 17
    assert tell_leaders(told, leading("vacated", 16)) == []
    assert tell_leaders(told, leading("vacated", 18)) == [("vacated", 0)]


def test_leaders_of_a_history_that_was_set_back_are_a_reset() -> None:
    """Whoever leads then, and however the stream says so."""
    for same_token in (10, 12):
        told = ToldLeader()
        tell_leaders(told, leading("elected", 20, 10))
        assert tell_leaders(told, leading("reset", 15, same_token)) == [("reset", same_token)]
        assert told.after == 15
        assert told.forget_revisions()
        assert told.after is None
        assert tell_leaders(told, leading("elected", 13, same_token)) == [("reset", same_token)]
    assert not ToldLeader(9).forget_revisions()
