"""The one place where a gRPC status of etcd becomes one of our errors.

etcd's Election API answers every error as UNKNOWN with only a text (etcd: server/etcdserver/api/v3election), so
texts are matched here, and nowhere else. The texts are those of etcd's api/v3rpc/rpctypes/error.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from grpc import StatusCode

from election.errors import (
    AccessDenied,
    AnswerTooLarge,
    Compacted,
    EtcdError,
    EtcdUnavailable,
    LeaseNotFound,
    NoSpace,
)
from election.etcd.transport import RpcFailed
from election.keys import namespace_root
from election.unreachable import reason_in_one_line


class Remedy(Enum):
    """What can be done about a failed attempt."""

    OTHER_MEMBER = "try another member, if the call may be repeated"
    OTHER_MEMBER_SURELY = "try another member: this one did not begin"
    UNSENT = "try another member: nothing has reached this one"
    AUTHENTICATE = "get a new auth token and try again: etcd refused before it began"
    GIVE_UP = "the answer would be the same anywhere"


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked a member for what: what somebody has to know whom etcd refuses it."""

    member: str
    user: str | None = None
    keys: Sequence[bytes] = ()


_SHOWN_KEYS = 3
# etcd raises these before it proposes anything, so the call surely did not happen.
_NOT_BEGUN = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
)
_NOT_SENT = (
    "failed to connect to all addresses",
    "Connection refused",
    "connections to all backends failing",
    "connection attempt timed out before receiving SETTINGS frame",
)
# The Election API answers these as UNKNOWN; the KV API gives them a code that says the same.
_UNDECIDED = (
    "etcdserver: request timed out",
    "etcdserver: leader changed",
    "etcdserver: server stopped",
    "context deadline exceeded",
    "context canceled",
)
_REFUSALS = ("etcdserver:", "election:", '"leader" field')
_NOBODY = "etcdserver: user name is empty"
_STALE_TOKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    _NOBODY,
)
_NOT_PERMITTED = "etcdserver: permission denied"
_NOT_AUTHENTICATED = "etcdserver: authentication failed"
_NO_USERS = "etcdserver: authentication is not enabled"
_DENIED = (_NOT_PERMITTED, _NOT_AUTHENTICATED, _NO_USERS)
_UNDECIDED_CODES = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
}


def remedy_for(failure: RpcFailed) -> Remedy:
    """What to do about a failed attempt on one member."""
    code, text = failure.code, failure.details
    if _has(text, _STALE_TOKEN) or code is StatusCode.UNAUTHENTICATED:
        return Remedy.AUTHENTICATE
    if _has(text, _NOT_SENT):
        return Remedy.UNSENT
    if _has(text, _NOT_BEGUN):
        return Remedy.OTHER_MEMBER_SURELY
    if code is StatusCode.UNKNOWN and not _has(text, _UNDECIDED):
        return Remedy.GIVE_UP
    return Remedy.OTHER_MEMBER if code in _UNDECIDED_CODES else Remedy.GIVE_UP


def error_from(failure: RpcFailed, asked: Asked, *, wrote: bool) -> EtcdError:
    """The error to raise when no remedy is left.

    `wrote` says that the call was a write that must not be repeated: then a failure that does not say whether it
    happened is marked indefinite.
    """
    code, text, member = failure.code, failure.details, asked.member
    if "requested lease not found" in text:
        return LeaseNotFound("etcd does not know the lease: it has expired or was revoked")
    if "required revision has been compacted" in text:
        return Compacted("etcd has compacted the revision asked for", compact_revision=0)
    if "message larger than max" in text:  # gRPC's own words, from this end of the call
        return AnswerTooLarge(f"the answer of etcd at {member} is too large: {reason_in_one_line(text)}")
    if "database space exceeded" in text:
        return NoSpace(
            f"etcd at {member} is full (NOSPACE alarm): nothing can be written or elected until somebody compacts "
            "and defragments it and disarms the alarm (etcdctl compact, defrag, alarm disarm)"
        )
    if code in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED) or _has(text, (*_STALE_TOKEN, *_DENIED)):
        return AccessDenied(f"etcd at {member} refused access: {_refusal(text, asked)}")
    if _undecided(failure):
        indefinite = wrote and remedy_for(failure) is Remedy.OTHER_MEMBER
        hint = " (it may have written all the same)" if indefinite else ""
        return EtcdUnavailable(f"etcd at {member} cannot be reached or has no quorum: {reason_in_one_line(text)}{hint}",
                               indefinite=indefinite)  # fmt: skip
    known = code is not StatusCode.UNKNOWN or text.startswith(_REFUSALS)
    return EtcdError(
        f"etcd at {member} refused the call: {code.name}: {reason_in_one_line(text)}", indefinite=wrote and not known
    )


def _refusal(text: str, asked: Asked) -> str:
    """Who was refused what, and what would help, in one line."""
    user = "the user of the client certificate" if asked.user is None else f"user {asked.user!r}"
    if _NOBODY in text:
        return "it wants to know the user, and none is given: check --user, or the client certificate's name"
    if _NO_USERS in text:
        return f"it has no users (authentication is not enabled), and {user} is given: leave it out"
    if _NOT_AUTHENTICATED in text:
        return f"{user} does not exist there, or the password is wrong"
    if _NOT_PERMITTED not in text:
        return f"{user}: {reason_in_one_line(text)}"
    keys = list(dict.fromkeys(key.decode(errors="replace") for key in asked.keys))
    if not keys:
        return f"{user} has no permission for this, or for a key of this lease"
    shown = ", ".join(keys[:_SHOWN_KEYS]) + (", ..." if len(keys) > _SHOWN_KEYS else "")
    roots = {namespace_root(key) for key in asked.keys}
    prefix = root.decode(errors="replace") if len(roots) == 1 and (root := roots.pop()) else "PREFIX"
    return (
        f"{user} has no permission for {shown}: grant it to one of the user's roles "
        f"(etcdctl role grant-permission --prefix=true ROLE readwrite {prefix})"
    )


def _undecided(failure: RpcFailed) -> bool:
    return remedy_for(failure) in (Remedy.OTHER_MEMBER, Remedy.OTHER_MEMBER_SURELY, Remedy.UNSENT)


def _has(text: str, needles: tuple[str, ...]) -> bool:
    return any(needle in text for needle in needles)
