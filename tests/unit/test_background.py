"""The thread with an event loop: what becomes of what runs there when it is closed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from election.background import Background
from election.errors import ElectionError


def test_what_ends_by_itself_ends_before_the_loop() -> None:
    """As the calls of gRPC do that were cancelled: it writes a traceback for those that cannot."""
    background, ended, kept = Background(), threading.Event(), set()

    async def end() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)
        ended.set()

    async def begin() -> None:
        kept.add(asyncio.create_task(end()))

    background.call(begin())
    background.close()
    assert ended.is_set()


def test_what_still_runs_ends_where_it_is() -> None:
    """It is not cancelled, since work may run for it in another thread; whoever waits for it is told."""
    background, begun, cancelled = Background(), threading.Event(), threading.Event()

    async def run() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = background.begin(run())
    assert begun.wait(10)
    background.close()
    with pytest.raises(ElectionError, match="closed while it was used"):
        running.result()
    assert not cancelled.is_set()
    with pytest.raises(ElectionError, match="this is closed"):
        background.begin(run())
