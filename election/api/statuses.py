"""The one place where errors become gRPC statuses and back.

Every status carries a google.rpc.ErrorInfo whose reason is a value of ErrorReason; the code says only what kind of
thing went wrong, as https://google.aip.dev/193 has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped]
from grpc import StatusCode

from election.errors import (
    AccessDenied,
    AgentAlive,
    AgentExists,
    AgentLost,
    AgentUnknown,
    BadField,
    BadToken,
    CallerSilent,
    CollectorSilent,
    ConfigError,
    Deposed,
    ElectionError,
    EtcdUnavailable,
    LimitExceeded,
    NoSpace,
    NotLeader,
    NotYourAgent,
    PermissionDenied,
    RecordTooLarge,
    RolledBack,
    SessionMoved,
    ShuttingDown,
    StateExists,
    TokenExpired,
    TooManyRequests,
    TooManyStreams,
    Unauthenticated,
    ViewStale,
)
from election.pb.election.v1 import error_reason_pb2 as pb
from election.published import TooSlow

DOMAIN = "election.v1"
DETAILS_METADATA = "grpc-status-details-bin"
"""The trailing metadata that holds a google.rpc.Status, in every language's gRPC."""

Metadata = tuple[tuple[str, bytes], ...]


class Status(NamedTuple):
    """What `context.abort` takes."""

    code: StatusCode
    text: str
    metadata: Metadata = ()


class _Kind(NamedTuple):
    error: type[ElectionError]
    code: StatusCode
    reason: pb.ErrorReason.ValueType
    retry_s: float = 0.0


# The first that fits is taken; of several with one reason, the first is what a caller gets.
_KINDS = (
    _Kind(RecordTooLarge, StatusCode.INVALID_ARGUMENT, pb.ERROR_REASON_TOO_LARGE),
    _Kind(ConfigError, StatusCode.INVALID_ARGUMENT, pb.ERROR_REASON_BAD_REQUEST),
    _Kind(ViewStale, StatusCode.UNAVAILABLE, pb.ERROR_REASON_VIEW_STALE, 1.0),
    _Kind(EtcdUnavailable, StatusCode.UNAVAILABLE, pb.ERROR_REASON_ETCD_UNAVAILABLE, 1.0),
    _Kind(TooSlow, StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_READER_TOO_SLOW),
    _Kind(RolledBack, StatusCode.OUT_OF_RANGE, pb.ERROR_REASON_HISTORY_SET_BACK),
    _Kind(AccessDenied, StatusCode.PERMISSION_DENIED, pb.ERROR_REASON_ETCD_REFUSED),
    _Kind(AgentUnknown, StatusCode.NOT_FOUND, pb.ERROR_REASON_AGENT_UNKNOWN),
    _Kind(AgentAlive, StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_AGENT_ALIVE),
    _Kind(AgentExists, StatusCode.ALREADY_EXISTS, pb.ERROR_REASON_AGENT_EXISTS),
    _Kind(AgentLost, StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_AGENT_LOST),
    _Kind(SessionMoved, StatusCode.ABORTED, pb.ERROR_REASON_SESSION_MOVED),
    _Kind(CollectorSilent, StatusCode.UNAVAILABLE, pb.ERROR_REASON_COLLECTOR_SILENT),
    _Kind(StateExists, StatusCode.ALREADY_EXISTS, pb.ERROR_REASON_STATE_EXISTS),
    _Kind(Deposed, StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_DEPOSED),
    _Kind(NotLeader, StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_NOT_LEADER),
    _Kind(CallerSilent, StatusCode.ABORTED, pb.ERROR_REASON_CALLER_SILENT),
    _Kind(ShuttingDown, StatusCode.UNAVAILABLE, pb.ERROR_REASON_SHUTTING_DOWN, 0.1),
    _Kind(NoSpace, StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_ETCD_FULL),
    _Kind(BadToken, StatusCode.UNAUTHENTICATED, pb.ERROR_REASON_BAD_TOKEN),
    _Kind(TokenExpired, StatusCode.UNAUTHENTICATED, pb.ERROR_REASON_TOKEN_EXPIRED),
    _Kind(Unauthenticated, StatusCode.UNAUTHENTICATED, pb.ERROR_REASON_NO_IDENTITY),
    _Kind(NotYourAgent, StatusCode.PERMISSION_DENIED, pb.ERROR_REASON_NOT_YOUR_AGENT),
    _Kind(PermissionDenied, StatusCode.PERMISSION_DENIED, pb.ERROR_REASON_ROLE_MISSING),
    _Kind(TooManyRequests, StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_TOO_MANY_REQUESTS),
    _Kind(TooManyStreams, StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_TOO_MANY_STREAMS),
)
_UNKNOWN = _Kind(ElectionError, StatusCode.INTERNAL, pb.ERROR_REASON_INTERNAL)

# For servers that give no reason. A status that stands for several errors gives the one that calls of `Reader` raise.
_BY_CODE: dict[StatusCode, type[ElectionError]] = {
    StatusCode.INVALID_ARGUMENT: ConfigError,
    StatusCode.UNAVAILABLE: ViewStale,
    StatusCode.RESOURCE_EXHAUSTED: TooSlow,
    StatusCode.OUT_OF_RANGE: RolledBack,
    StatusCode.ALREADY_EXISTS: AgentExists,
    StatusCode.PERMISSION_DENIED: PermissionDenied,
    StatusCode.UNAUTHENTICATED: Unauthenticated,
}


_KEYS, _KEYS_TOTAL = "keys", "keys_total"
_KEYS_LIMIT = 2048
"""A status has to fit into the headers that a peer takes, 8 KiB mostly: of more keys, the first are told."""


def status_of(error: ElectionError) -> Status:
    """The status that tells a caller of an error, with its text in one line.

    An error without a status of its own is INTERNAL with its text: it was raised on purpose, and says what is wrong.
    """
    kind = next((kind for kind in _KINDS if isinstance(error, kind.error)), _UNKNOWN)
    field = error.field if isinstance(error, BadField) else ""
    retry_s = error.retry_after_s if isinstance(error, LimitExceeded) else kind.retry_s
    more = _told_of_keys(error.keys) if isinstance(error, StateExists) else {}
    return status(kind.code, kind.reason, str(error), retry_s=retry_s, field=field, more=more)


def _told_of_keys(keys: tuple[str, ...]) -> dict[str, str]:
    told = ""
    for key in keys:
        if len(told) + len(key) > _KEYS_LIMIT:
            break
        told += f"{key}\n"
    return {_KEYS: told, _KEYS_TOTAL: str(len(keys))}


def status(
    code: StatusCode,
    reason: pb.ErrorReason.ValueType,
    text: str,
    *,
    retry_s: float = 0.0,
    field: str = "",
    more: Mapping[str, str] | None = None,
) -> Status:
    """A status with its details: a RetryInfo where `retry_s` is not 0, a BadRequest where a field is named.

    `more` is what the ErrorInfo says beside the reason.
    """
    line = " ".join(text.split())
    told: list[Message] = [details.ErrorInfo(reason=name_of(reason), domain=DOMAIN, metadata=more)]
    if retry_s:
        told.append(details.RetryInfo(retry_delay=Duration(nanos=round(retry_s % 1 * 1e9), seconds=int(retry_s))))
    if field:
        violation = details.BadRequest.FieldViolation(field=field, description=line)
        told.append(details.BadRequest(field_violations=[violation]))
    packed = []
    for detail in told:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    rich = RpcStatus(code=code.value[0], message=line, details=packed)
    return Status(code, line, ((DETAILS_METADATA, rich.SerializeToString()),))


def name_of(reason: pb.ErrorReason.ValueType) -> str:
    """A reason as ErrorInfo has it."""
    return pb.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def reason_of(error: ElectionError) -> pb.ErrorReason.ValueType:
    """The reason that stands for an error."""
    return next((kind.reason for kind in _KINDS if isinstance(error, kind.error)), _UNKNOWN.reason)


class Info(NamedTuple):
    """What an ErrorInfo of ours says; the reason is empty where a server has not given any."""

    reason: str = ""
    more: Mapping[str, str] = MappingProxyType({})


def reason_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The reason in the trailing metadata of a call; empty where a server of ours has not given any."""
    return info_in(metadata).reason


def info_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Info:
    """What the trailing metadata of a call says of its error."""
    for key, value in metadata or ():
        if key != DETAILS_METADATA or not isinstance(value, bytes):
            continue
        try:
            packed = RpcStatus.FromString(value).details
            for detail in packed:
                info = details.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return Info(str(info.reason), dict(info.metadata))
        except DecodeError:
            return Info()
    return Info()


def error_of(error: grpc.aio.AioRpcError) -> ElectionError:
    """The error that the status of a call stands for."""
    info = info_in(error.trailing_metadata())
    return error_from(error.code(), error.details() or "", info.reason, info.more)


def error_from(
    code: StatusCode, text: str, reason: str = "", more: Mapping[str, str] = MappingProxyType({})
) -> ElectionError:
    """The error that a status stands for: by its reason, by its code where there is none that is known here.

    One that stands for none gives ElectionError with the status in its text. `keys` of StateExists are the first ones
    alone where they are too many for a status.
    """
    by_reason = next((kind.error for kind in _KINDS if name_of(kind.reason) == reason), None)
    kind = by_reason or _BY_CODE.get(code)
    if kind is StateExists:
        return StateExists(text, keys=tuple(more.get(_KEYS, "").splitlines()))
    if kind is NotLeader or kind is None:  # it holds more than a text
        return ElectionError(f"the server answered {code.name}: {text}")
    return kind(text)
