"""etcd's refusals, with the codes and texts of its api/v3rpc/rpctypes/error.go."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from election.etcd.transport import RpcFailed


@dataclass(frozen=True, slots=True)
class Status:
    """One gRPC status that etcd, or gRPC itself, may answer."""

    code: StatusCode
    text: str

    def error(self) -> RpcFailed:
        """The error that a transport raises for it."""
        return RpcFailed(self.code, self.text)


def as_unknown(failed: RpcFailed) -> RpcFailed:
    """The same as the Election API answers it: without the code."""
    return RpcFailed(StatusCode.UNKNOWN, failed.details)


EMPTY_KEY = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
REQUEST_TOO_LARGE = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
COMPACTED = Status(StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REVISION = Status(StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NO_SPACE = Status(StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")

LEASE_NOT_FOUND = Status(StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS = Status(StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
LEASE_TTL_TOO_LARGE = Status(StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL")

MISSING_LEADER_KEY = Status(StatusCode.UNKNOWN, '"leader" field must be provided')
ELECTION_NOT_LEADER = Status(StatusCode.UNKNOWN, "election: not leader")
ELECTION_NO_LEADER = Status(StatusCode.UNKNOWN, "election: no leader")

NO_LEADER = Status(StatusCode.UNAVAILABLE, "etcdserver: no leader")
TIMED_OUT = Status(StatusCode.UNAVAILABLE, "etcdserver: request timed out")
NOT_LEADER = Status(StatusCode.FAILED_PRECONDITION, "etcdserver: not leader")
BAD_TRANSFEREE = Status(StatusCode.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
AUTH_FAILED = Status(StatusCode.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
AUTH_NOT_ENABLED = Status(StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")

# What gRPC says by itself.
CANNOT_CONNECT = Status(StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused")
SOCKET_CLOSED = Status(StatusCode.UNAVAILABLE, "Socket closed")
WATCHDOG = Status(StatusCode.UNAVAILABLE, "keepalive watchdog timeout")
DEADLINE_EXCEEDED = Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
CHANNEL_CLOSED = Status(StatusCode.CANCELLED, "Channel closed.")
