"""The decision who may act, as one pure state machine: `step(state, event) -> state`.

A candidate goes Following -> Campaigning -> Leading -> Leaving -> Following, or ends in Closed. The I/O around it
(`candidate.py`) turns what it learns into events and acts on the states; it decides nothing. A pair of state and
event that is not in the table raises, so that a case nobody thought of is seen and not guessed.

The rules, from etcd's Election API (client/v3/concurrency/election.go) and what it does not check:

* a candidate may prove its leadership when its own key exists and is the oldest;
* it leads only after the proof, a compare-and-set on its key's create revision, and before its deadline;
* its deadline moves with every renewal that etcd confirmed, and with nothing else;
* what it learned about its key from before the key was made says nothing about the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from election.errors import LossReason
from election.token import Token


@dataclass(frozen=True, slots=True)
class Following:
    """Does not stand: at the beginning, and between two attempts."""


@dataclass(frozen=True, slots=True)
class Campaigning:
    """Holds a lease and waits in the queue. `created` is the own key's create revision, 0 until it is known."""

    lease: int
    deadline_s: float
    created: int = 0
    is_oldest: bool = False

    @property
    def may_prove(self) -> bool:
        """The own key is there and the oldest, as far as is known."""
        return self.created > 0 and self.is_oldest


@dataclass(frozen=True, slots=True)
class Leading:
    """Has proven that its key is the oldest. It may act while the clock is before `deadline_s`."""

    lease: int
    deadline_s: float
    token: Token


@dataclass(frozen=True, slots=True)
class Leaving:
    """Must not act any more. The work is stopped and joined, and then the key is released.

    `token` is None when no term was lost, only an attempt. `margin_s` is what was left until the deadline when the
    loss was noticed; it is negative when the process noticed too late, because it was stopped, for example.
    """

    lease: int
    token: Token | None
    reason: LossReason
    noticed_at_s: float
    margin_s: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """Has left for good."""


State = Following | Campaigning | Leading | Leaving | Closed


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """A new attempt begins, with a lease that nothing else uses."""

    lease: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """The watch shows the queue at `revision`: the own key's create revision (0: absent), and whether it is first.

    `epoch` is there when the own record says that it was elected in it: the predecessor has handed over, or the own
    proof is seen before its answer. Either was a compare-and-set through etcd's log on the own key.
    """

    at_s: float
    revision: int
    created: int
    is_oldest: bool
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class CampaignReturned:
    """etcd's Campaign answered that the key with this create revision has become the oldest. It may be wrong."""

    created: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The lease could not be granted, or the Campaign call broke, or hung, before the key was seen."""

    at_s: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Proved:
    """etcd accepted the compare-and-set on the key with this create revision, in this epoch."""

    at_s: float
    token: Token


@dataclass(frozen=True, slots=True)
class ProofRefused:
    """etcd refused the compare-and-set: the key is gone, or is another one."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Renewed:
    """etcd confirmed a renewal of the lease, which took `latency_s`."""

    deadline_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """etcd says that the lease is gone."""

    at_s: float


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The clock has reached the deadline. Sent for the reaction's sake: `check` looks at the clock itself."""

    at_s: float


@dataclass(frozen=True, slots=True)
class WatchSilent:
    """The watch has told nothing for so long that the own key may be gone, although the lease is renewed."""

    at_s: float


@dataclass(frozen=True, slots=True)
class WorkReturned:
    """The work ended by itself."""

    at_s: float


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work raised."""

    at_s: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody asked the candidate to stop leading or standing."""

    at_s: float
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Released:
    """The work is joined, and the lease revoked or left to expire."""


@dataclass(frozen=True, slots=True)
class Departed:
    """The candidate will not stand again."""


Event = (
    LeaseGranted
    | QueueSeen
    | CampaignReturned
    | AttemptFailed
    | Proved
    | ProofRefused
    | Renewed
    | LeaseLost
    | DeadlinePassed
    | WatchSilent
    | WorkReturned
    | WorkFailed
    | Stopped
    | Released
    | Departed
)


class UndefinedTransition(Exception):
    """This event cannot happen in this state: a mistake in the code around the state machine."""


def step(state: State, event: Event) -> State:
    """The state after the event.

    Raises:
        UndefinedTransition: when the pair is not in the table.
    """
    transition = _TABLE.get((type(state), type(event)))
    if transition is None:
        raise UndefinedTransition(f"{type(event).__name__} in {type(state).__name__}")
    return transition(state, event)


def _lost(state: Campaigning | Leading, at_s: float, reason: LossReason, error: BaseException | None = None) -> Leaving:
    token = state.token if isinstance(state, Leading) else None
    return Leaving(state.lease, token, reason, at_s, state.deadline_s - at_s, error)


def _same(state: State, _: Event) -> State:
    return state


def _begin(_: Following, event: LeaseGranted) -> State:
    return Campaigning(event.lease, event.deadline_s)


def _queue_while_campaigning(state: Campaigning, event: QueueSeen) -> State:
    if event.created == 0:
        gone = state.created > 0 and event.revision >= state.created
        return _lost(state, event.at_s, LossReason.KEY_DELETED) if gone else state
    if state.created not in (0, event.created):
        return _lost(state, event.at_s, LossReason.KEY_DELETED)
    seen = replace(state, created=event.created, is_oldest=state.is_oldest or event.is_oldest)
    if event.epoch is None:
        return seen
    if not event.is_oldest:  # handed over by somebody whose queue was not etcd's: it proves nothing, now or later
        return _lost(seen, event.at_s, LossReason.KEY_DELETED)
    return _lead(seen, Token(event.epoch, event.created), event.at_s)


def _queue_while_leading(state: Leading, event: QueueSeen) -> State:
    if event.revision < state.token.revision:
        return state  # the watch has not come to the moment at which the key was made
    held = event.created == state.token.revision and event.is_oldest
    return state if held else _lost(state, event.at_s, LossReason.KEY_DELETED)


def _campaign_returned(state: Campaigning, event: CampaignReturned) -> State:
    return replace(state, created=event.created, is_oldest=True)


def _attempt_failed(state: Campaigning, event: AttemptFailed) -> State:
    if state.created:
        return state  # queued all the same: the watch tells the rest
    return _lost(state, event.at_s, LossReason.KEY_DELETED, event.error)


def _proved(state: Campaigning, event: Proved) -> State:
    if event.token.revision != state.created:
        raise UndefinedTransition(f"a proof for {event.token} while the own key is {state.created}")
    return _lead(state, event.token, event.at_s)


def _lead(state: Campaigning, token: Token, at_s: float) -> State:
    if at_s >= state.deadline_s:
        return _lost(state, at_s, LossReason.EXPIRED)
    return Leading(state.lease, state.deadline_s, token)


def _renewed(state: Campaigning | Leading, event: Renewed) -> State:
    return replace(state, deadline_s=max(state.deadline_s, event.deadline_s))


def _deadline_passed(state: Campaigning | Leading, event: DeadlinePassed) -> State:
    late = event.at_s >= state.deadline_s
    return _lost(state, event.at_s, LossReason.EXPIRED) if late else state


def _loses(reason: LossReason) -> Callable[[Any, Any], State]:
    return lambda state, event: _lost(state, event.at_s, reason)


_IGNORED_WHILE_LEAVING = (
    QueueSeen,
    CampaignReturned,
    AttemptFailed,
    Proved,
    ProofRefused,
    Renewed,
    LeaseLost,
    DeadlinePassed,
    WatchSilent,
    WorkReturned,
    WorkFailed,
    Stopped,
)

_TABLE: dict[tuple[type, type], Callable[[Any, Any], State]] = {
    (Following, LeaseGranted): _begin,
    (Following, AttemptFailed): _same,
    (Following, Stopped): _same,
    (Following, Departed): lambda state, event: Closed(),
    (Campaigning, QueueSeen): _queue_while_campaigning,
    (Campaigning, CampaignReturned): _campaign_returned,
    (Campaigning, AttemptFailed): _attempt_failed,
    (Campaigning, Proved): _proved,
    (Campaigning, ProofRefused): _loses(LossReason.KEY_DELETED),
    (Campaigning, Renewed): _renewed,
    (Campaigning, LeaseLost): _loses(LossReason.EXPIRED),
    (Campaigning, DeadlinePassed): _deadline_passed,
    (Campaigning, WatchSilent): _same,  # it may wait for as long as it likes
    (Campaigning, Stopped): lambda state, event: _lost(state, event.at_s, event.reason),
    (Leading, QueueSeen): _queue_while_leading,
    (Leading, CampaignReturned): _same,
    (Leading, AttemptFailed): _same,
    (Leading, Proved): _same,  # the watch was faster
    (Leading, ProofRefused): _loses(LossReason.KEY_DELETED),
    (Leading, Renewed): _renewed,
    (Leading, LeaseLost): _loses(LossReason.EXPIRED),
    (Leading, DeadlinePassed): _deadline_passed,
    (Leading, WatchSilent): _loses(LossReason.EXPIRED),
    (Leading, WorkReturned): _loses(LossReason.RESIGNED),
    (Leading, WorkFailed): lambda state, event: _lost(state, event.at_s, LossReason.WORK_FAILED, event.error),
    (Leading, Stopped): lambda state, event: _lost(state, event.at_s, event.reason),
    **dict.fromkeys(((Leaving, event) for event in _IGNORED_WHILE_LEAVING), _same),
    (Leaving, Released): lambda state, event: Following(),
    (Closed, Stopped): _same,
    (Closed, Departed): _same,
}
