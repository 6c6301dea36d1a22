"""When the breaker opens and closes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from election.breaker import Breaker, BreakerReason
from election.collector.judge import Moment, Tally, accepts, judge
from election.config import BreakerConfig

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = BreakerConfig(agents=3, share=0.5, hold_s=300)
MOMENT = Moment(NOW, "c1")
CLOSED = Breaker()


def tally(alive: int, missing: int, recent: int | None = None) -> Tally:
    return Tally(alive, missing, missing if recent is None else recent)


def opened(reason: BreakerReason, missing: int = 50) -> Breaker:
    return Breaker(True, reason, missing, 100, by="c1", at=NOW, until=NOW + timedelta(seconds=300), revision=9)


@pytest.mark.parametrize(
    ("counted", "reason"),
    [
        (tally(50, 50), BreakerReason.VANISHED),
        (tally(3, 3), BreakerReason.VANISHED),
        (tally(0, 2), BreakerReason.NONE_ALIVE),
        (tally(51, 49), None),
        (tally(2, 2), None),
        (tally(0, 1), None),
        (tally(50, 50, recent=49), None),
        (tally(0, 50, recent=0), None),
        (tally(0, 0), None),
    ],
)
def test_it_opens_when_many_agents_vanish_at_once(counted: Tally, reason: BreakerReason | None) -> None:
    """From a number and a share on, or when of several none is left; those who vanished long ago do not count."""
    verdict = judge(CLOSED, counted, CONFIG, MOMENT)
    assert (verdict.reason if verdict else None) is reason
    if verdict is not None:
        known = counted.alive + counted.missing
        assert verdict == Breaker(
            True, reason, counted.recent, known, by="c1", at=NOW, until=NOW + timedelta(seconds=300)
        )


def test_it_opens_for_a_while_when_agents_vanish_right_after_etcd_has_a_new_leader() -> None:
    """Even for one; without any there is nothing to hold back."""
    settling = replace(MOMENT, settled_at=NOW + timedelta(seconds=7))
    verdict = judge(CLOSED, tally(99, 1), CONFIG, settling)
    assert verdict is not None
    assert (verdict.reason, verdict.until) == (BreakerReason.ETCD_LEADER_CHANGED, NOW + timedelta(seconds=7))
    assert judge(CLOSED, tally(99, 0), CONFIG, settling) is None
    assert judge(CLOSED, tally(99, 1), CONFIG, MOMENT) is None
    still = opened(BreakerReason.ETCD_LEADER_CHANGED)
    assert judge(still, tally(99, 1), CONFIG, MOMENT) is None
    worse = judge(still, tally(50, 50), CONFIG, MOMENT)
    assert worse is not None
    assert worse.reason is BreakerReason.VANISHED
    over = judge(still, tally(99, 1), CONFIG, replace(MOMENT, over=True))
    assert over is not None
    assert (over.open, over.reason) == (False, BreakerReason.SETTLED)


@pytest.mark.parametrize(
    ("counted", "closes"),
    [
        (tally(100, 0), True),
        (tally(98, 2), True),
        (tally(95, 5), True),  # a tenth of the 50
        (tally(94, 6), False),
        (tally(51, 49), False),  # below the threshold, and far from back
        (tally(0, 2), False),
    ],
)
@pytest.mark.parametrize("reason", [BreakerReason.VANISHED, BreakerReason.NONE_ALIVE])
def test_it_closes_when_the_agents_are_back(counted: Tally, closes: bool, reason: BreakerReason) -> None:
    """Nearly all of them: not as soon as the share is below the threshold again."""
    verdict = judge(opened(reason), counted, CONFIG, MOMENT)
    expected = Breaker(False, BreakerReason.RECOVERED, by="c1", at=NOW) if closes else None
    assert verdict == expected


def test_it_closes_when_it_has_been_open_for_long_enough() -> None:
    """Whatever is missing is given up then."""
    verdict = judge(opened(BreakerReason.VANISHED), tally(50, 50), CONFIG, replace(MOMENT, over=True))
    assert verdict == Breaker(False, BreakerReason.HOLD_ENDED, by="c1", at=NOW)


@pytest.mark.parametrize("reason", [BreakerReason.OPERATOR, BreakerReason.UNREADABLE])
def test_what_an_operator_has_opened_stays_open(reason: BreakerReason) -> None:
    """Also when all agents are there, or many vanish; only the time that was given ends it."""
    for counted in (tally(100, 0), tally(0, 100)):
        assert judge(opened(reason), counted, CONFIG, MOMENT) is None
    assert judge(opened(reason), tally(100, 0), None, MOMENT) is None
    over = judge(opened(reason), tally(100, 0), CONFIG, replace(MOMENT, over=True))
    assert over is not None
    assert not over.open


def test_without_a_config_it_never_opens_by_itself() -> None:
    """And closes where a collector with one had opened it."""
    assert judge(CLOSED, tally(0, 100), None, replace(MOMENT, settled_at=NOW)) is None
    closed = judge(opened(BreakerReason.VANISHED), tally(0, 100), None, MOMENT)
    assert closed is not None
    assert not closed.open


@pytest.mark.parametrize("reason", list(BreakerReason))
def test_who_was_given_up_does_not_open_it_again(reason: BreakerReason) -> None:
    """By the operator who closed it, or by the end of the hold; not by agents that came back."""
    given_up = reason in (BreakerReason.OPERATOR, BreakerReason.HOLD_ENDED)
    assert accepts(Breaker(False, reason, revision=7)) == (7 if given_up else 0)
    assert accepts(Breaker(True, reason, revision=7)) == 0
