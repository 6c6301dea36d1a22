"""One owner sets, many read, and nobody blocks the owner."""

from __future__ import annotations

import asyncio
import weakref

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
    assert not value.has_readers


async def test_values_are_let_go_when_nobody_has_to_read_them_any_more() -> None:
    """Also those of a reader that hangs and does not notice that it was cut off."""

    class Large:
        pass

    value: Published[Large | None] = Published(None, limit=8)
    hangs, reads = value.read(), value.read()
    seen = []
    for _ in range(40):
        large = Large()
        seen.append(weakref.ref(large))
        value.set(large)
        del large
        reads.next()
    assert sum(each() is not None for each in seen) <= 12
    with pytest.raises(TooSlow, match="more than 8 values"):
        hangs.next()


async def test_a_reader_waits_for_so_long_at_most() -> None:
    """And is told whether there is something to read, also when that came in the same moment."""
    value = Published(0)
    with value.read() as reading:
        assert not await reading.wait(0.0)
        waiting = asyncio.ensure_future(reading.wait(0.0))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(value.set, 1)
        assert await waiting
        assert reading.next() == 1
        assert not reading.is_behind
    assert not value.has_readers
