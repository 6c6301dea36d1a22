"""Keys: what is built can be parsed, and what others wrote is not taken for ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election.errors import ConfigError
from election.keys import (
    COLLECTOR_ELECTION,
    AliveKey,
    BreakerKey,
    CandidateKey,
    DrainingKey,
    Keyspace,
    ReapRequestKey,
    SessionKey,
    StateKey,
    TombstoneKey,
    check_name,
    range_end,
)

KEYS = Keyspace("prod")
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
numbers = st.integers(0, 2**63 - 1)


@given(names, names, numbers)
def test_every_key_that_is_built_is_parsed_back(name: str, other: str, number: int) -> None:
    """One module builds and parses, so the two cannot disagree."""
    assert KEYS.parse(KEYS.candidate(name, number)) == CandidateKey(name, number)
    assert KEYS.parse(KEYS.alive(name)) == AliveKey(name)
    assert KEYS.parse(KEYS.state(name, other)) == StateKey(name, other)
    assert KEYS.parse(KEYS.draining(name)) == DrainingKey(name)
    assert KEYS.parse(KEYS.session(name)) == SessionKey(name)
    assert KEYS.parse(KEYS.tombstone(name, number)) == TombstoneKey(name, number)
    assert KEYS.parse(KEYS.tombstone(name, 7, number)) == TombstoneKey(name, 7, number)
    assert KEYS.parse(KEYS.breaker) == BreakerKey()
    assert KEYS.parse(KEYS.reap_request(name)) == ReapRequestKey(name)


@given(names, names)
def test_no_name_is_a_folder_of_another(name: str, other: str) -> None:
    """The keys of one election or agent are never below the prefix of another."""
    if name != other:
        assert not KEYS.candidate(other, 1).startswith(KEYS.campaign(name))
        assert not KEYS.state(other, "x").startswith(KEYS.states(name))


@given(st.binary(max_size=60))
def test_foreign_keys_never_raise(tail: bytes) -> None:
    """Anyone can write below the prefix."""
    KEYS.parse(tail)
    KEYS.parse(KEYS.root + tail)
    KEYS.parse(KEYS.campaigns + tail)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/election/other/agents/alive/a",
        b"/election/prod/agents/alive/",
        b"/election/prod/agents/alive/a/b",
        b"/election/prod/agents/state/a",
        b"/election/prod/agents/state/a/b/c",
        b"/election/prod/agents/reaped/a/x",
        b"/election/prod/agents/reaped/a/ 1",
        b"/election/prod/agents/reaped/a/1_0",
        b"/election/prod/agents/reaped/a/1.0",
        b"/election/prod/agents/reaped/a/1.",
        b"/election/prod/agents/reaped/a/.1",
        b"/election/prod/agents/draining/a/b",
        b"/election/prod/agents/session/a/b",
        b"/election/prod/collector/breaker/a",
        b"/election/prod/collector/reap/",
        b"/election/prod/campaigns/_other/1",
        b"/election/prod/campaigns/a",
        "/election/prod/agents/alive/ä".encode(),
    ],
)
def test_keys_that_are_not_ours_are_none(key: bytes) -> None:
    """Not even keys that look almost like ours."""
    assert KEYS.parse(key) is None


def test_a_strangers_candidate_is_a_candidate_without_a_lease_in_its_name() -> None:
    """It stands in the queue, so it has to be counted."""
    assert KEYS.parse(b"/election/prod/campaigns/demo/hand-made") == CandidateKey("demo", None)


def test_the_collectors_election_cannot_be_taken_by_users() -> None:
    """Its name is not a valid name, and yet has keys."""
    with pytest.raises(ConfigError):
        check_name("election", COLLECTOR_ELECTION)
    assert KEYS.parse(KEYS.candidate(COLLECTOR_ELECTION, 255)) == CandidateKey(COLLECTOR_ELECTION, 255)


@pytest.mark.parametrize("name", ["", "a/b", ".a", "-a", "_a", "a b", "a\n", "ä", "x" * 129, "a\x00"])
def test_bad_names_are_refused_with_the_rule(name: str) -> None:
    """The error names what kind of name it is, and what is allowed."""
    with pytest.raises(ConfigError, match=r"agent .* is not a valid name: use 1 to 128 letters"):
        KEYS.alive(name)


def test_a_bad_namespace_is_refused() -> None:
    """Before any key is built from it."""
    with pytest.raises(ConfigError, match="namespace"):
        Keyspace("a/b")


def test_the_end_of_a_prefix_is_just_behind_its_last_key() -> None:
    """As etcd's GetPrefixRangeEnd."""
    assert range_end(b"/a/") == b"/a0"
