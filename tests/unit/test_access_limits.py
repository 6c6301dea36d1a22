"""How much one caller may ask: each has a rate and streams of its own, and what is remembered is bounded."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from election.errors import ConfigError, TooManyRequests, TooManyStreams
from election.server.access.caller import Caller
from election.server.access.limits import Limits, LimitsConfig
from tests.unit.handclock import HandClock

ALICE, BOB = Caller(("cert:alice",)), Caller(("cert:bob",))


def asked(limits: Limits, caller: Caller, times: int) -> int:
    """How many of so many requests get through."""
    through = 0
    for _ in range(times):
        try:
            limits.request(caller)
        except TooManyRequests:
            continue
        through += 1
    return through


def test_a_second_of_the_rate_may_come_at_once() -> None:
    """And then as many as the rate lets through; what others ask takes nothing from it."""
    clock = HandClock()
    limits = Limits(LimitsConfig(requests_per_s=10), clock)
    assert asked(limits, ALICE, 25) == 10
    clock.at_s += 0.25
    assert asked(limits, ALICE, 25) == 2
    assert asked(limits, BOB, 25) == 10
    clock.at_s += 60
    assert asked(limits, ALICE, 25) == 10


def test_the_error_says_when_to_ask_again() -> None:
    """Who waits that long gets through."""
    clock = HandClock()
    limits = Limits(LimitsConfig(requests_per_s=4), clock)
    assert asked(limits, ALICE, 4) == 4
    with pytest.raises(TooManyRequests, match=r"^cert:alice has made more than 4 requests in a second") as raised:
        limits.request(ALICE)
    assert raised.value.retry_after_s == pytest.approx(0.25)
    clock.at_s += raised.value.retry_after_s
    limits.request(ALICE)


def test_callers_without_an_identity_are_told_apart_by_their_machine() -> None:
    """Not by their port, which is new with every connection."""
    limits = Limits(LimitsConfig(requests_per_s=1), HandClock())
    assert asked(limits, Caller(peer="ipv4:10.0.0.1:1000"), 2) == 1
    assert asked(limits, Caller(peer="ipv4:10.0.0.1:2000"), 2) == 0
    assert asked(limits, Caller(peer="ipv4:10.0.0.2:1000"), 2) == 1
    assert asked(limits, Caller(peer="ipv6:%5B::1%5D:1000"), 2) == 1


def test_without_a_rate_nothing_is_counted() -> None:
    """Which is how a library is used."""
    assert asked(Limits(LimitsConfig(), HandClock()), ALICE, 1000) == 1000


def test_what_is_remembered_is_bounded() -> None:
    """Callers that have used nothing for a second are forgotten first, which loses nothing; a busy one is kept."""
    clock = HandClock()
    limits = Limits(LimitsConfig(requests_per_s=2), clock, remembered=100)
    for number in range(90):
        limits.request(Caller((f"cert:{number}",)))
    clock.at_s += 1.5
    assert asked(limits, ALICE, 9) == 2
    for number in range(50):
        limits.request(Caller((f"token:{number}",)))
    assert len(limits._full_at_s) <= 100
    assert asked(limits, ALICE, 9) == 0
    for number in range(1000):
        limits.request(Caller((f"jwt:{number}",)))
        assert len(limits._full_at_s) <= 100


def test_each_caller_has_so_many_streams() -> None:
    """One that ends makes room for another, also one that fails."""
    limits = Limits(LimitsConfig(streams=2), HandClock())
    with ExitStack() as stack:
        stack.enter_context(limits.stream(ALICE))
        with pytest.raises(ZeroDivisionError), limits.stream(ALICE):
            raise ZeroDivisionError
        stack.enter_context(limits.stream(ALICE))
        with pytest.raises(TooManyStreams, match=r"^cert:alice has 2 streams open, and may have 2"):
            stack.enter_context(limits.stream(ALICE))
        stack.enter_context(limits.stream(BOB))
    assert limits._streams == {}
    with limits.stream(ALICE):
        pass


@pytest.mark.parametrize(
    "given",
    [
        {"requests_per_s": 0.5},
        {"requests_per_s": float("nan")},
        {"requests_per_s": float("inf")},
        {"streams": 0},
        {"message_bytes": 10},
        {"message_bytes": 2**31},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
    ],
)
def test_limits_that_cannot_be_are_refused(given: dict[str, float]) -> None:
    """Before a server begins."""
    with pytest.raises(ConfigError):
        LimitsConfig(**given)  # type: ignore[arg-type]
