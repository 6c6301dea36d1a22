"""Errors have statuses with stable reasons, and become the errors again that they were."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2 as details  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped]
from grpc import StatusCode

from election.api import statuses
from election.errors import (
    AccessDenied,
    AgentAlive,
    AgentExists,
    AgentLost,
    AgentUnknown,
    BadField,
    BadToken,
    ConfigError,
    Deposed,
    ElectionError,
    EtcdError,
    EtcdUnavailable,
    LossReason,
    NoSpace,
    NotLeader,
    NotYourAgent,
    PermissionDenied,
    RecordTooLarge,
    RolledBack,
    StateExists,
    TokenExpired,
    TooManyRequests,
    TooManyStreams,
    Unauthenticated,
    ViewStale,
)
from election.pb.election.v1 import error_reason_pb2 as reasons
from election.published import TooSlow

STATUSES = [
    (ConfigError("x"), StatusCode.INVALID_ARGUMENT),
    (RecordTooLarge("x"), StatusCode.INVALID_ARGUMENT),
    (ViewStale("x"), StatusCode.UNAVAILABLE),
    (EtcdUnavailable("x"), StatusCode.UNAVAILABLE),
    (TooSlow("x"), StatusCode.RESOURCE_EXHAUSTED),
    (AccessDenied("x"), StatusCode.PERMISSION_DENIED),
    (AgentExists("x"), StatusCode.ALREADY_EXISTS),
    (AgentLost("x"), StatusCode.FAILED_PRECONDITION),
    (Deposed("x"), StatusCode.FAILED_PRECONDITION),
    (NotLeader("x", reason=LossReason.EXPIRED), StatusCode.FAILED_PRECONDITION),
    (NoSpace("x"), StatusCode.FAILED_PRECONDITION),
    (RolledBack("x"), StatusCode.OUT_OF_RANGE),
    (AgentUnknown("x"), StatusCode.NOT_FOUND),
    (AgentAlive("x"), StatusCode.FAILED_PRECONDITION),
    (StateExists("x", keys=("a",)), StatusCode.ALREADY_EXISTS),
    (Unauthenticated("x"), StatusCode.UNAUTHENTICATED),
    (BadToken("x"), StatusCode.UNAUTHENTICATED),
    (TokenExpired("x"), StatusCode.UNAUTHENTICATED),
    (PermissionDenied("x"), StatusCode.PERMISSION_DENIED),
    (NotYourAgent("x"), StatusCode.PERMISSION_DENIED),
    (TooManyRequests("x"), StatusCode.RESOURCE_EXHAUSTED),
    (TooManyStreams("x"), StatusCode.RESOURCE_EXHAUSTED),
    (EtcdError("x"), StatusCode.INTERNAL),
    (ElectionError("x"), StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), STATUSES, ids=lambda value: getattr(value, "name", type(value).__name__))
def test_every_error_has_its_status(error: ElectionError, code: StatusCode) -> None:
    """With its text."""
    assert statuses.status_of(error)[:2] == (code, "x")


def test_a_status_text_is_one_line() -> None:
    """Logs and terminals show it as it is."""
    assert statuses.status_of(ConfigError("a\n  b\tc"))[1] == "a b c"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, ConfigError),
        (StatusCode.UNAVAILABLE, ViewStale),
        (StatusCode.RESOURCE_EXHAUSTED, TooSlow),
        (StatusCode.OUT_OF_RANGE, RolledBack),
        (StatusCode.PERMISSION_DENIED, PermissionDenied),
        (StatusCode.UNAUTHENTICATED, Unauthenticated),
        (StatusCode.ALREADY_EXISTS, AgentExists),
    ],
)
def test_a_status_becomes_the_error_that_it_was(code: StatusCode, kind: type[ElectionError]) -> None:
    """With the text as it was."""
    error = statuses.error_from(code, "the text")
    assert type(error) is kind
    assert str(error) == "the text"


def test_a_status_that_stands_for_no_error_names_itself() -> None:
    """A call that the server does not know, for example."""
    error = statuses.error_from(StatusCode.UNIMPLEMENTED, "Method not found!")
    assert type(error) is ElectionError
    assert str(error) == "the server answered UNIMPLEMENTED: Method not found!"


@pytest.mark.parametrize("error", [error for error, _ in STATUSES], ids=lambda error: type(error).__name__)
def test_a_status_with_its_reason_becomes_the_same_error_again(error: ElectionError) -> None:
    """Also where several errors have one code; those that hold more than a text become the root kind."""
    code, text, metadata = statuses.status_of(error)
    again = statuses.error_from(code, text, *statuses.info_in(metadata))
    if isinstance(error, NotLeader) or type(error) in (EtcdError, ElectionError):
        assert type(again) is ElectionError
    else:
        assert type(again) is type(error)


def test_the_keys_of_a_state_that_exists_come_back() -> None:
    """As many of them as headers have room for."""
    for keys in (("task", "a b"), tuple(f"{i:0128}" for i in range(100))):
        code, text, metadata = statuses.status_of(StateExists("there", keys=keys))
        again = statuses.error_from(code, text, *statuses.info_in(metadata))
        assert isinstance(again, StateExists)
        assert again.keys == keys[:15]
        assert len(metadata[0][1]) < 4096


def test_a_reason_is_told_as_the_standard_has_it() -> None:
    """Any client of google.rpc can read it: the code again, ErrorInfo, and when to try again."""
    (key, value), *more = statuses.status_of(ViewStale("old")).metadata
    assert (key, more) == ("grpc-status-details-bin", [])
    status = RpcStatus.FromString(value)
    assert (status.code, status.message) == (14, "old")
    info, retry = details.ErrorInfo(), details.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("VIEW_STALE", "election.v1")
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1000


def test_who_has_asked_too_much_is_told_when_to_ask_again() -> None:
    """As long as it takes, rather than a guess."""
    status = RpcStatus.FromString(statuses.status_of(TooManyRequests("x", retry_after_s=2.5)).metadata[0][1])
    retry = details.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_a_bad_field_is_named() -> None:
    """So that a form can show it where it belongs."""
    status = RpcStatus.FromString(statuses.status_of(BadField("no", field="election")).metadata[0][1])
    bad = details.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [(each.field, each.description) for each in bad.field_violations] == [("election", "no")]


@pytest.mark.parametrize("value", [b"", b"\xff\xff", RpcStatus(code=5).SerializeToString()])
def test_details_of_somebody_else_give_no_reason(value: bytes) -> None:
    """A proxy may have put them there."""
    assert statuses.reason_in((("other", b"x"), ("grpc-status-details-bin", value))) == ""
    assert statuses.reason_in(None) == ""


def test_the_reasons_have_names_for_good() -> None:
    """Programs compare with them."""
    assert statuses.name_of(reasons.ERROR_REASON_AGENT_LOST) == "AGENT_LOST"
    assert statuses.reason_of(AgentLost("x")) == reasons.ERROR_REASON_AGENT_LOST
