"""The errors that this project raises: one small tree.

Every error's text is one line that says what is wrong and, where somebody can act on it, what to do.
"""

from __future__ import annotations

from enum import StrEnum


class ElectionError(Exception):
    """The root: catching this catches everything that the project raises on purpose."""


class ConfigError(ElectionError):
    """A setting, a name or a file that cannot be used; raised before anything was sent."""


class BadField(ConfigError):
    """A field of a request that cannot be used; `field` is its name."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class RecordTooLarge(ConfigError):
    """A record or value over the limit of its kind; nothing was written."""


class EtcdError(ElectionError):
    """A call to etcd failed.

    `indefinite` says whether a write of that call may have happened all the same. It is False for errors that
    etcd raises before it proposes the write, and always False for reads and for calls that are safe to repeat.
    """

    def __init__(self, message: str, *, indefinite: bool = False) -> None:
        super().__init__(message)
        self.indefinite = indefinite


class EtcdUnavailable(EtcdError):
    """No member answered in time, or none has a quorum."""


class LeaseNotFound(EtcdError):
    """The lease has expired or was revoked, or never was."""


class Compacted(EtcdError):
    """The revision asked for is gone; list again."""

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class AnswerTooLarge(EtcdError):
    """What etcd has to answer does not fit into a message; ask for less of it at once."""


class RolledBack(EtcdError):
    """etcd's history is shorter than what was seen of it: it was restored from a snapshot, or is another etcd."""


class NoSpace(EtcdError):
    """etcd's database is full: nothing can be put or granted until an operator makes room."""


class AccessDenied(EtcdError):
    """etcd refused the user, the password, the token or the permission."""


class LossReason(StrEnum):
    """Why a term, or an attempt to win one, ended."""

    EXPIRED = "expired"
    KEY_DELETED = "key_deleted"
    RESIGNED = "resigned"
    STEPPED_DOWN = "stepped_down"
    TRANSFERRED = "transferred"
    WORK_FAILED = "work_failed"
    CLOSED = "closed"

    @property
    def takes_the_key(self) -> bool:
        """Whether the key is gone with the term, or may be at any moment, so that there is nothing to hand over."""
        return self in (LossReason.EXPIRED, LossReason.KEY_DELETED)


class NotLeader(ElectionError):
    """Raised by `Term.check`: this process must not act as the leader any more."""

    def __init__(self, message: str, *, reason: LossReason) -> None:
        super().__init__(message)
        self.reason = reason


class NoLeader(ElectionError, TimeoutError):
    """Nobody leads, or nobody has been known to, for as long as was waited for it."""


class Deposed(ElectionError):
    """A resource refused the token, which is not the leader's any more. Nothing was written."""


class HighWaterError(ElectionError):
    """The highest token seen cannot be read or kept at present: whoever asked must refuse."""


class AgentLost(ElectionError):
    """The agent's lease is gone or may be gone: what it writes now would be refused. It has to register anew."""


class AgentExists(ElectionError):
    """Another live process holds this agent id."""


class SessionMoved(ElectionError):
    """The session of an agent was opened anew, on another stream or server: this one can do nothing for it any more."""


class AgentUnknown(ElectionError):
    """There is nothing of this agent that what was asked for could be done with."""


class AgentAlive(ElectionError):
    """The agent is alive, and what was asked for is done to dead ones alone."""


class StateExists(ElectionError):
    """An agent has state that would have been overwritten, which nobody has asked for. `keys` are its names."""

    def __init__(self, message: str, *, keys: tuple[str, ...]) -> None:
        super().__init__(message)
        self.keys = keys


class CallerSilent(ElectionError):
    """The caller of a campaign has sent nothing for a TTL; nobody stands for it any more."""


class CollectorSilent(ElectionError):
    """No collector has done in time what it was asked for, and it is asked no longer."""


class ShuttingDown(ElectionError):
    """The server is about to end, and begins nothing new."""


class ViewStale(ElectionError):
    """What is in memory is too old to answer from: nothing newer is known of etcd."""


class Unauthenticated(ElectionError):
    """A server of the API does not know who calls: the caller has not said so, in a way that this server takes."""


class BadToken(Unauthenticated):
    """A bearer token is not known, not for this server, or not signed by whom it has to be."""


class TokenExpired(Unauthenticated):
    """A bearer token was good, and its time is over."""


class PermissionDenied(ElectionError):
    """A server of the API knows who calls, and its policy gives them no role that is enough for this."""


class NotYourAgent(PermissionDenied):
    """The caller is another agent, or none."""


class LimitExceeded(ElectionError):
    """A caller asks more of a server of the API than one caller may. `retry_after_s` is when it may ask again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyRequests(LimitExceeded):
    """More requests in a second than one identity may make."""


class TooManyStreams(LimitExceeded):
    """More streams at once than one identity may have."""
