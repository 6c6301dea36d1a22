"""How old what a client tells of a leader is, where its messages or its reader lag."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from election.client import Client
from election.client.leader_client import LeaderClient
from election.errors import ViewStale
from election.reader import LeaderEvent, LeaderEventKind
from election.views import View
from tests.fake.clock import virtual
from tests.simulation.test_watch_leader import ELECTION, viewing
from tests.simulation.world import world


class Through(Client):
    """A server with this view, whose messages stop while its gate is shut, as flow control has it."""

    def __init__(self, view: View) -> None:
        super().__init__("127.0.0.1:1")
        self.gate = asyncio.Event()
        self.gate.set()
        self._view = view

    async def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        async with aclosing(self._view.watch_leader(election, after=after, heartbeat_s=heartbeat_s)) as events:
            async for event in events:
                yield event
                await self.gate.wait()
                await asyncio.sleep(0.01)


@virtual
async def test_a_term_that_was_over_when_it_was_told_is_not_called_fresh() -> None:
    """It is told late, and the end of it waits behind it: what is known is as old as that."""
    async with viewing(world()) as (machine, view, reign):
        server = Through(view)
        async with LeaderClient(server, ELECTION, max_age_s=3.0, clock=machine.clock) as client:
            server.gate.clear()
            await reign.begin()
            await asyncio.sleep(0.1)  # it is on its way
            begun = await reign.change(address="told late")
            await reign.end()
            await asyncio.sleep(4)
            server.gate.set()
            stale = fresh = 0
            for _ in range(200):
                await asyncio.sleep(0.001)
                try:
                    answer = client.current
                except ViewStale:
                    stale += 1
                    continue
                assert answer.source.revision != begun
                assert answer.value is None
                fresh += 1
            assert stale
            assert fresh


@virtual
async def test_a_reader_of_the_client_that_lags_is_told_how_old_each_event_is() -> None:
    """What newer ones wait behind is as old as when it arrived, and the time since; the newest, as `current`."""
    async with viewing(world()) as (machine, view, reign):
        async with LeaderClient(Through(view), ELECTION, heartbeat_s=1.0, clock=machine.clock) as client:
            events = client.watch()
            assert (await anext(events)).source.age_s == client.current.source.age_s
            begun = await reign.begin()
            await reign.end()
            await asyncio.sleep(5)
            over, now = [await anext(events) for _ in range(2)]
            assert (over.kind, over.source.revision) == (LeaderEventKind.ELECTED, begun)
            assert 4.8 <= over.source.age_s < 7  # it arrived a moment after it was written
            assert now.kind is LeaderEventKind.VACATED
            assert now.source.age_s == client.current.source.age_s < 3
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(1)
        with pytest.raises(StopAsyncIteration):
            await waiting
