"""One owner sets, many read, and nobody blocks the owner."""

from __future__ import annotations

import asyncio

import pytest

from election import published
from election.published import Published, TooSlow


async def test_a_reader_gets_the_present_value_and_every_later_one() -> None:
    """In order, also those that were set before it first looked."""
    value = Published(0)
    values = value.values()
    for number in (1, 2, 3):
        value.set(number)
    assert [await anext(values) for _ in range(4)] == [0, 1, 2, 3]
    await values.aclose()


async def test_until_sees_a_value_that_was_there_only_for_a_moment() -> None:
    """It is looked at when it is set, not when the waiter runs."""
    value = Published(0)
    waiting = asyncio.ensure_future(value.until(lambda number: number == 1))
    await asyncio.sleep(0)
    value.set(1)
    value.set(2)
    assert await waiting == 1


async def test_a_reader_that_is_too_slow_is_cut_off_and_others_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded."""
    monkeypatch.setattr(published, "QUEUE_LIMIT", 3)
    value = Published(0)
    slow, fast = value.values(), value.values()
    assert await anext(slow) == await anext(fast) == 0
    for number in range(1, 6):
        value.set(number)
        assert await anext(fast) == number
    with pytest.raises(TooSlow):
        await anext(slow)


async def test_a_reader_that_has_gone_is_forgotten() -> None:
    """And costs nothing any more."""
    value = Published(0)
    values = value.values()
    await anext(values)
    await values.aclose()
    assert value._readers == []
