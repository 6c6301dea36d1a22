"""Records: what is written can be read, and what others wrote is shown and never raises."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election.agent_records import AgentRecord, DrainMark, ReapRequest, StateEntry, Tombstone
from election.errors import RecordTooLarge
from election.fields import printable, text_of
from election.pb.etcd.kv_pb2 import KeyValue
from election.records import CANDIDATE_LIMIT, Candidate, CandidateRecord, leader_of
from election.token import Token

NOON = datetime(2026, 1, 2, 12, 0, 0, 123000, tzinfo=UTC)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
times = st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000))


def kv(value: bytes, *, created: int = 5, lease: int = 0xABC) -> KeyValue:
    return KeyValue(key=b"/election/x/campaigns/demo/abc", value=value, create_revision=created, lease=lease)


@given(texts, texts, st.dictionaries(texts, texts, max_size=3), st.integers(-(2**31), 2**31 - 1), st.none() | times)
def test_a_candidates_record_is_read_as_written(
    id: str, address: str, labels: dict[str, str], priority: int, elected_at: datetime | None
) -> None:
    """Whatever is in it."""
    record = CandidateRecord(id, address, labels, priority, elected_at)
    assert CandidateRecord.decode(record.encode()) == record


@given(texts, st.dictionaries(texts, texts, max_size=3), st.none() | times)
def test_an_agents_record_is_read_as_written(address: str, labels: dict[str, str], at: datetime | None) -> None:
    """Whatever is in it."""
    record = AgentRecord("a", address, labels, at)
    assert AgentRecord.decode("a", record.encode()) == record


@given(st.lists(st.builds(StateEntry, key=texts, value=st.binary(max_size=40), mod_revision=st.integers(0, 2**62))))
def test_a_tombstone_keeps_every_byte_that_was_collected(entries: list[StateEntry]) -> None:
    """Also bytes that are not text."""
    tombstone = Tombstone("a", 7, NOON, "c", Token(1, 9), tuple(entries))
    assert Tombstone.decode("a", 7, tombstone.encode()) == tombstone


@given(texts, st.none() | times, st.integers(0, 2**62))
def test_what_operators_ask_for_is_read_as_written(by: str, at: datetime | None, incarnation: int) -> None:
    """Marks and requests."""
    mark, request = DrainMark(by, at), ReapRequest("a", incarnation, by, at)
    assert DrainMark.decode(mark.encode()) == mark
    assert ReapRequest.decode("a", request.encode()) == request


@pytest.mark.parametrize("value", [b"", b"7", b"{}", b'{"v":1}', b'{"v":1,"incarnation":"1"}', b'{"v":2}'])
def test_a_request_to_reap_that_cannot_be_read_is_none(value: bytes) -> None:
    """Nothing is reaped for it; a mark that cannot be read is a mark."""
    assert ReapRequest.decode("a", value) is None
    assert DrainMark.decode(value) == DrainMark("")


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_foreign_values_never_raise(value: bytes) -> None:
    """Anyone can write below the prefix."""
    assert Candidate.of("demo", kv(value)).created == 5
    AgentRecord.decode("a", value)
    Tombstone.decode("a", 1, value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("v", "id", "address", "labels", "priority", "elected_at", "collected", "token", "reaped_at", "registered_at")


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_records_with_fields_of_other_types_never_raise(data: dict[str, object]) -> None:
    """A later version, or a mistake, may write other types."""
    value = json.dumps(data).encode()
    Candidate.of("demo", kv(value))
    AgentRecord.decode("a", value)
    Tombstone.decode("a", 1, value)


def test_a_strangers_value_is_its_name() -> None:
    """`etcdctl elect demo alice` stands as alice."""
    candidate = Candidate.of("demo", kv(b"alice"))
    assert (candidate.id, candidate.foreign, candidate.elected_at) == ("alice", True, None)


def test_a_stranger_without_a_value_is_named_by_its_lease() -> None:
    """Something has to be shown."""
    assert Candidate.of("demo", kv(b"")).id == "abc"


def test_json_of_another_program_is_foreign() -> None:
    """Only our own records can be unproven; anybody else's oldest key leads."""
    assert Candidate.of("demo", kv(b'{"id":"x"}')).foreign


def test_a_strangers_value_cannot_write_to_the_terminal() -> None:
    """Escape sequences are not printed."""
    assert printable(b"\x1b[31mred\n") == "?[31mred?"


def test_the_leader_is_the_oldest_once_it_has_proven_it() -> None:
    """Before its proof, nobody leads, however many wait behind it."""
    waiting = Candidate.of("demo", kv(CandidateRecord("a").encode(), created=5))
    behind = Candidate.of("demo", kv(CandidateRecord("b", elected_at=NOON).encode(), created=6))
    proven = Candidate.of("demo", kv(CandidateRecord("a", elected_at=NOON).encode(), created=5))
    assert leader_of([behind, waiting]) is None
    leader = leader_of([behind, proven])
    assert leader is not None
    assert (leader.id, leader.token, leader.proven) == ("a", Token(0, 5), True)
    assert leader_of([]) is None


def test_a_foreign_oldest_leads_unproven() -> None:
    """Its key is the oldest, which is all that etcd's Election API asks for."""
    leader = leader_of([Candidate.of("demo", kv(b"alice"))])
    assert leader is not None
    assert not leader.proven


def test_a_record_over_the_limit_is_refused() -> None:
    """With its size and the limit."""
    with pytest.raises(RecordTooLarge, match=f"'a' has .* bytes, and {CANDIDATE_LIMIT} are allowed"):
        CandidateRecord("a", labels={"big": "x" * CANDIDATE_LIMIT}).encode()


def test_times_are_rfc_3339() -> None:
    """In UTC, with milliseconds."""
    assert text_of(NOON) == "2026-01-02T12:00:00.123Z"
    assert text_of(None) is None
