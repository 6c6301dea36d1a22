"""The model of a namespace: what keys amount to, how many of each state there are, and what is left of the reaped."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from election.agent_records import Agent, AgentRecord, AgentState, StateEntry, Tombstone
from election.keys import REGISTRATION, AliveKey, DrainingKey, Keyspace, StateKey, TombstoneKey
from election.model import AgentKey, Model
from election.pb.etcd.kv_pb2 import KeyValue
from election.token import Token

KEYS = Keyspace("test")


def put(model: Model, key: AgentKey, revision: int, value: bytes = b"") -> Tombstone | None:
    return model.put(key, KeyValue(create_revision=revision, mod_revision=revision, value=value))


def tombstone(id: str, incarnation: int, **labels: str) -> bytes:
    entries = (StateEntry("task", b"x" * 500, 5),)
    record = AgentRecord(id, "here:1", labels)
    return Tombstone(id, incarnation, None, "c", Token(0, 7), entries, agent_record=record).encode()


def shown(model: Model, id: str = "a") -> Agent:
    agent = model.agent(id)
    assert agent is not None
    return agent


def test_a_life_from_the_registration_to_the_tombstone() -> None:
    """In each state the agent has the incarnation and the labels that it had when it lived."""
    model = Model()
    record = AgentRecord("a", "here:1", {"zone": "x"}).encode()
    put(model, AliveKey("a"), 5, record)
    put(model, StateKey("a", REGISTRATION), 5, record)
    put(model, StateKey("a", "task"), 6)
    alive = Agent("a", AgentState.ALIVE, 5, 0, "here:1", {"zone": "x"}, None, ("task",))
    assert shown(model) == alive
    put(model, DrainingKey("a"), 7)
    assert shown(model).state is AgentState.DRAINING
    model.delete(AliveKey("a"), KeyValue())
    assert shown(model) == Agent("a", AgentState.SUSPECT, 5, 0, "here:1", {"zone": "x"}, None, ("task",))
    for name in (REGISTRATION, "task"):
        model.delete(StateKey("a", name), KeyValue())
    assert model.agent("a") is None
    put(model, TombstoneKey("a", 5), 8, tombstone("a", 5, zone="x"))
    assert shown(model) == Agent("a", AgentState.REAPED, 5, 0, "here:1", {"zone": "x"})
    assert model.present() == ()
    assert list(model.agents()) == [shown(model)]


def test_the_incarnation_of_a_suspect_is_the_one_that_its_record_says() -> None:
    """It is written later than the liveness key when the agent leaves, or when a part of its state is collected."""
    model = Model()
    put(model, StateKey("a", REGISTRATION), 9, AgentRecord("a", incarnation=5).encode())
    assert (shown(model).state, shown(model).incarnation) == (AgentState.SUSPECT, 5)
    put(model, StateKey("b", "task"), 10)
    assert shown(model, "b").incarnation == 0


def test_a_reaped_agent_is_what_its_newest_tombstone_says() -> None:
    """Also when that is not the one of the highest incarnation, and when the newest is forgotten first."""
    model = Model()
    put(model, TombstoneKey("a", 9), 10, tombstone("a", 9, zone="old"))
    put(model, TombstoneKey("a", 0), 20, tombstone("a", 0, zone="new"))
    assert (shown(model).incarnation, dict(shown(model).labels)) == (0, {"zone": "new"})
    model.delete(TombstoneKey("a", 0), KeyValue())
    assert (shown(model).incarnation, dict(shown(model).labels)) == (9, {"zone": "old"})


def test_tombstones_after_a_revision_are_in_order() -> None:
    """One that is put again is the last one; of one that is gone nothing is known; values are not remembered."""
    model = Model()
    for revision, name in enumerate("abcd", 10):
        kept = put(model, TombstoneKey(name, 1), revision, tombstone(name, 1))
        assert kept is not None
        assert kept.collected[0].value == b"x" * 500
    put(model, TombstoneKey("a", 1), 14, tombstone("a", 1))
    model.delete(TombstoneKey("c", 1), KeyValue())
    assert [(kept.key.agent, kept.revision) for kept in model.kept_after(10)] == [("b", 11), ("d", 13), ("a", 14)]
    assert model.kept_after(14) == ()
    assert model.size_of(TombstoneKey("a", 1), 14) == len(tombstone("a", 1))
    assert model.size_of(TombstoneKey("a", 1), 10) is None
    assert b"x" * 500 not in repr(model).encode()


keys = st.one_of(
    st.builds(AliveKey, st.sampled_from("abc")),
    st.builds(StateKey, st.sampled_from("abc"), st.sampled_from(["task", REGISTRATION])),
    st.builds(DrainingKey, st.sampled_from("abc")),
    st.builds(TombstoneKey, st.sampled_from("abc"), st.integers(0, 2)),
)


@given(st.lists(st.tuples(st.booleans(), keys), max_size=40))
def test_the_counts_are_those_of_the_agents(steps: list[tuple[bool, AgentKey]]) -> None:
    """After whatever was put and deleted; and nobody is remembered of whom nothing is left."""
    model = Model()
    for revision, (is_put, key) in enumerate(steps, 1):
        if is_put:
            put(model, key, revision)
        else:
            model.delete(key, KeyValue(mod_revision=revision))
        counted = {state: count for state, count in model.agents_by_state.items() if count}
        assert counted == Counter(agent.state for agent in model.agents())
    for agent in "abc":
        for name in ("task", REGISTRATION):
            model.delete(StateKey(agent, name), KeyValue())
        for incarnation in range(3):
            model.delete(TombstoneKey(agent, incarnation), KeyValue())
        model.delete(AliveKey(agent), KeyValue())
        model.delete(DrainingKey(agent), KeyValue())
    assert model == Model(agents_by_state=model.agents_by_state)
    assert not any(model.agents_by_state.values())
