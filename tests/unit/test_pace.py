"""How fast the collector may reap."""

from __future__ import annotations

import asyncio

from election.collector.pace import Pace
from tests.fake.clock import VirtualClock, virtual


@virtual
async def test_a_rate_bounds_how_many_are_reaped_in_any_time() -> None:
    """At most a second's worth at once, and the rate in the long run."""
    pace = Pace(10.0, VirtualClock())
    spent = 0
    for _ in range(1_000):
        allowed = pace.allows()
        assert allowed is not None
        pace.spend(allowed)
        spent += allowed
        await asyncio.sleep(0.01)
    assert 95 <= spent <= 111
    await asyncio.sleep(60)
    assert pace.allows() == 10


@virtual
async def test_a_slow_rate_lets_one_go_now_and_then() -> None:
    """It tells when."""
    pace = Pace(0.1, VirtualClock())
    assert pace.allows() == 1
    pace.spend(1)
    assert pace.allows() == 0
    assert 9.9 <= pace.next_s() <= 10.0
    await asyncio.sleep(pace.next_s() + 0.001)
    assert pace.allows() == 1


@virtual
async def test_without_a_rate_any_number_is_fine() -> None:
    """At any time."""
    pace = Pace(None, VirtualClock())
    pace.spend(1_000)
    assert (pace.allows(), pace.next_s()) == (None, 0.0)
