"""When the breaker opens and closes: a pure decision over what the collector counts.

Agents die one by one. When many vanish at once, it is the network, etcd or a bad rollout that has gone wrong, and what
the agents stored is needed when they are back (Kubernetes stops evicting pods for the same reason: the node lifecycle
controller's `unhealthy-zone-threshold`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from election.breaker import Breaker, BreakerReason
from election.config import BreakerConfig

_ALL_OF_THEM = 2
"""From this many agents on, none that is alive is a sign of its own."""

_NEARLY_BACK = 0.1

_OPERATORS_OWN = (BreakerReason.OPERATOR, BreakerReason.UNREADABLE)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many agents are alive, how many are missing that did not leave, and how many of these vanished just now.

    `recent` are those who vanished within the last grace, without those whom an operator, or the end of the hold, has
    given up.
    """

    alive: int
    missing: int
    recent: int


@dataclass(frozen=True, slots=True)
class Moment:
    """When it is decided, and by whom.

    `over` says that the breaker has been open for as long as it may be, `settled_at` until when etcd's new leader is
    too new to trust; None when it is not.
    """

    now: datetime
    by: str
    over: bool = False
    settled_at: datetime | None = None


def judge(breaker: Breaker, tally: Tally, config: BreakerConfig | None, moment: Moment) -> Breaker | None:
    """What the breaker becomes; None when it stays as it is.

    What an operator has opened is closed by an operator, or by the time that was given. Without a config the breaker
    never opens by itself, and closes where it had.
    """
    if breaker.open:
        return _of_open(breaker, tally, config, moment)
    if config is None:
        return None
    if cause := _cause(tally, config):
        return _open(cause, tally, moment, moment.now + timedelta(seconds=config.hold_s))
    if moment.settled_at is not None and tally.recent:
        return _open(BreakerReason.ETCD_LEADER_CHANGED, tally, moment, moment.settled_at)
    return None


def accepts(breaker: Breaker) -> int:
    """The revision up to which vanished agents are given up, so that they do not open the breaker again; 0 for none."""
    given_up = not breaker.open and breaker.reason in (BreakerReason.OPERATOR, BreakerReason.HOLD_ENDED)
    return breaker.revision if given_up else 0


def _of_open(breaker: Breaker, tally: Tally, config: BreakerConfig | None, moment: Moment) -> Breaker | None:
    settling = breaker.reason is BreakerReason.ETCD_LEADER_CHANGED
    if settling and config is not None and (cause := _cause(tally, config)):
        return _open(cause, tally, moment, moment.now + timedelta(seconds=config.hold_s))
    if moment.over:
        return _closed(BreakerReason.SETTLED if settling else BreakerReason.HOLD_ENDED, moment)
    if breaker.reason in _OPERATORS_OWN or settling:
        return None
    if config is None or _back(breaker, tally, config):
        return _closed(BreakerReason.RECOVERED, moment)
    return None


def _cause(tally: Tally, config: BreakerConfig) -> BreakerReason | None:
    if tally.recent >= _ALL_OF_THEM and not tally.alive:
        return BreakerReason.NONE_ALIVE
    known = tally.alive + tally.missing
    if tally.recent >= config.agents and tally.recent >= config.share * known:
        return BreakerReason.VANISHED
    return None


def _back(breaker: Breaker, tally: Tally, config: BreakerConfig) -> bool:
    """Whether so few are still missing that they may well be dead: fewer than it takes to open, or a tenth."""
    if not tally.alive and tally.missing >= _ALL_OF_THEM:
        return False
    return tally.missing < config.agents or tally.missing <= breaker.missing * _NEARLY_BACK


def _open(reason: BreakerReason, tally: Tally, moment: Moment, until: datetime) -> Breaker:
    known = tally.alive + tally.missing
    return Breaker(True, reason, tally.recent, known, by=moment.by, at=moment.now, until=until)


def _closed(reason: BreakerReason, moment: Moment) -> Breaker:
    return Breaker(False, reason, by=moment.by, at=moment.now)
