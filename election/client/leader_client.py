"""Who leads one election, kept in memory by one watch over the gRPC API, for programs that ask at every step."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from election.applied import Applied
from election.backoff import Backoff
from election.client.client import Client, dial
from election.clock import BootClock, Clock
from election.config import TlsConfig
from election.errors import ElectionError, NoLeader, RolledBack, ViewStale
from election.published import Published
from election.reader import MAX_AGE_S, Answer, LeaderEvent, LeaderEventKind, Source, leader_change
from election.records import Leader

Led = TypeVar("Led", Leader, Leader | None)

logger = logging.getLogger("election")

HEARTBEAT_S = 2.0
"""How often a server says that nothing has happened: what is known is not much older than that."""

_STOPPED_S = 5.0
"""After this long without a message this process was stopped: `Client` goes on at another server sooner."""

_RETRY_MAX_S = 2.0
"""Much less than what makes an answer stale."""

_SILENCE = "no server has said anything since"


@dataclass(frozen=True, slots=True)
class _Known:
    """Who led when a message arrived, how old the message said that to be, and when it arrived."""

    leader: Leader | None
    source: Source
    arrived_at_s: float


class LeaderClient:
    """Follows one election inside `async with`, in one event loop; `current` tells who leads without a call.

    `servers` and how to reach them are as for `dial`; or it is a `Client` that is open for longer than this, which any
    number of these may share. Entering waits for the first message, and raises what `Client.watch_leader` does when
    there is none. From then on it follows until the end of the block, whatever happens to the servers: it goes on at
    another one after the last revision that it was told, and tries again for as long as there is none.

    An answer tells how old it is: what the last message said of its age, and the time since it has arrived, by a
    clock that goes on while the machine is suspended. The way of that message through the network is not in it; and
    a process that was stopped for some seconds may take what has piled up meanwhile for news, until it has read it.
    """

    def __init__(
        self,
        servers: str | Iterable[str] | Client,
        election: str,
        *,
        tls: TlsConfig | None = None,
        token: str | Path | None = None,
        insecure: bool = False,
        max_age_s: float = MAX_AGE_S,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.election = election
        self._owns_client = not isinstance(servers, Client)
        self._client = (
            servers if isinstance(servers, Client) else dial(servers, tls=tls, token=token, insecure=insecure)
        )
        self._max_age_s = max_age_s
        self._heartbeat_s = heartbeat_s
        self._clock = clock or BootClock()
        self._rng = rng or random.Random()
        self._known: Published[_Known | None] = Published(None)
        self._events: Published[Applied[LeaderEvent] | None] = Published(None)  # None: it does not follow
        self._trouble = _SILENCE
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._owns_client:
                await stack.enter_async_context(self._client)
            self._following = asyncio.create_task(self._follow(), name=f"leader of {self.election}")
            stack.push_async_callback(self._end)
            first = asyncio.create_task(self._known.until(lambda known: known is not None))
            try:
                await asyncio.wait({self._following, first}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                first.cancel()
            if self._following.done():
                self._following.result()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        self._known.set(None)
        self._events.set(None)

    @property
    def current(self) -> Answer[Leader | None]:
        """Who leads, None when nobody does, and how old that is; from memory, in any thread, without waiting.

        Raises:
            ViewStale: it is more than `max_age_s` seconds old, so that it might not be true any more.
        """
        known = _open(self._known.value)
        return self._answer(known, known.leader)

    async def watch(self) -> AsyncGenerator[LeaderEvent]:
        """Who leads now (ELECTED or VACATED), and then every change, RESET among them.

        It goes on through times when no server can be reached, and is silent then: `current` tells. It ends with the
        client's block. An event is as old as it is when it is read: as `current` where it is the newest one.

        Raises:
            TooSlow: while reading, by a reader that lags too far behind.
        """
        with self._events.read() as reading:
            told = self._events.value
            if told is not None:
                now = self._dated(told, is_newest=True)
                yield replace(now, kind=leader_change(None, now.leader))
            while told is not None:
                await reading.wait()
                if (told := reading.next()) is not None:
                    yield self._dated(told, is_newest=not reading.is_behind)

    async def wait_for_leader(self, timeout_s: float | None = None) -> Answer[Leader]:
        """Waits until somebody leads who has proven it, and that is not too old to be told.

        Raises:
            NoLeader: it is not so after `timeout_s` seconds; also a TimeoutError.
        """

        def is_led(known: _Known | None) -> bool:
            if known is None or self._age_s(known) > self._max_age_s:
                return known is None
            return known.leader is not None and known.leader.proven

        try:
            async with asyncio.timeout(timeout_s):
                known = _open(await self._known.until(is_led))
        except TimeoutError:
            raise NoLeader(f"after {timeout_s:g} s {self._nobody()}") from None
        assert known.leader is not None
        return self._answer(known, known.leader)

    async def until(self, holds: Callable[[Leader | None], bool]) -> Leader | None:
        """Waits until something holds of who leads, as far as is known, and tells who that is then."""
        await self._known.until(lambda known: known is None or holds(known.leader))
        return _open(self._known.value).leader

    # --- what the servers tell -----------------------------------------------------------------------------------

    async def _follow(self) -> None:
        backoff = Backoff(0.25, _RETRY_MAX_S, self._rng)
        after: int | None = None
        while True:
            try:
                events = self._client.watch_leader(self.election, after=after, heartbeat_s=self._heartbeat_s)
                async with aclosing(events):
                    waits_since_s = self._clock.now_s()
                    async for event in events:
                        if self._clock.now_s() - waits_since_s > max(_STOPPED_S, 3 * self._heartbeat_s):
                            break  # what comes now may have waited for this process for as long
                        self._take(event, resumed=after is not None)
                        after, waits_since_s = event.source.revision, self._clock.now_s()
                        backoff.reset()
            except ElectionError as error:
                if self._known.value is None:
                    raise
                if isinstance(error, RolledBack):
                    after = None
                self._trouble = str(error)
                logger.warning("who leads %s is not known at present: %s", self.election, error)
                await self._clock.sleep_s(backoff.next_s())

    def _take(self, event: LeaderEvent, *, resumed: bool) -> None:
        self._trouble = _SILENCE
        known, now_s = self._known.value, self._clock.now_s()
        if event.kind is LeaderEventKind.HEARTBEAT and known is not None:
            self._known.set(replace(known, source=event.source, arrived_at_s=now_s))
            return
        if known is not None and not resumed:
            event = replace(event, kind=LeaderEventKind.RESET)
        self._known.set(_Known(event.leader, event.source, now_s))
        self._events.set(Applied(event, now_s - event.source.age_s))

    def _dated(self, applied: Applied[LeaderEvent], *, is_newest: bool) -> LeaderEvent:
        known, event = self._known.value, applied.event
        age_s = self._age_s(known) if is_newest and known is not None else self._clock.now_s() - applied.as_of_s
        return replace(event, source=replace(event.source, age_s=age_s))

    def _nobody(self) -> str:
        try:
            leader = self.current.value
        except ViewStale as error:
            return str(error)
        foreign = "" if leader is None else f", but {leader.id} of another program, which proves nothing"
        return f"nobody leads {self.election!r}{foreign}"

    def _age_s(self, known: _Known) -> float:
        return known.source.age_s + self._clock.now_s() - known.arrived_at_s

    def _answer(self, known: _Known, leader: Led) -> Answer[Led]:
        age_s = self._age_s(known)
        if age_s > self._max_age_s:
            raise ViewStale(
                f"who leads {self.election!r} was last known {age_s:.1f} s ago (the limit is {self._max_age_s:g} s): "
                f"{self._trouble}"
            )
        return Answer(leader, replace(known.source, age_s=age_s))


def _open(known: _Known | None) -> _Known:
    if known is None:
        raise RuntimeError("the client is not open: use it inside its block")
    return known
