"""One term of a collector: what it observes, it judges, and what is due, it reaps."""

from __future__ import annotations

import asyncio
import logging
import random

from election.collector.batches import Batches
from election.collector.events import CollectorEvent
from election.collector.observer import Observer
from election.collector.pace import Pace
from election.collector.retention import Retention
from election.collector.suspects import Suspect
from election.collector.warden import Warden
from election.config import CollectorConfig
from election.errors import Deposed, NotLeader
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.published import Published
from election.term import Term

logger = logging.getLogger("election")

_IN_FLIGHT = 2
"""Batches at a time: one is read and planned while etcd commits the other."""

_TURN_S = 0.05
"""All suspects are counted anew in each turn: what changes within so long is looked at together."""

_RETRY_S = 1.0


class Sweep:
    """The work of one term; without a term a rehearsal, which writes nothing."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        config: CollectorConfig,
        retention: Retention,
        term: Term | None,
        *,
        id: str,
        published: Published[CollectorEvent | None],
        rng: random.Random,
        once: bool,
    ) -> None:
        self._clock = client.clock
        self._once = once
        self._observer = observer = Observer(client, keyspace, config, published, rng)
        self._warden = Warden(client, keyspace, config, term, observer.suspects, observer.orders, id=id)
        self._batches = Batches(
            client,
            keyspace,
            config,
            term,
            id=id,
            retention=retention,
            observer=observer,
            warden=self._warden,
            tell=published.set,
        )
        self._pace = Pace(config.rate_per_s, client.clock)
        self._mind_at_s = float("-inf")
        self._done = False
        self._first: set[Suspect] | None = None

    async def run(self) -> bool:
        """Works until it is cancelled, the term is lost, or, with `once`, everything is done, which it tells then."""
        observing = asyncio.create_task(self._observer.run())
        sweeping = asyncio.create_task(self._sweep())
        try:
            await asyncio.wait({observing, sweeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (observing, sweeping):
                task.cancel()
            await asyncio.wait({observing, sweeping})
        for task in (sweeping, observing):
            if not task.cancelled():
                task.result()
        return self._done

    async def _sweep(self) -> None:
        reaping: set[asyncio.Task[None]] = set()
        observer = self._observer
        try:
            while True:
                observer.changed.clear()
                may_reap = observer.ready and await self._mind()
                if may_reap:
                    self._begin(reaping)
                if self._once and observer.ready and not reaping and self._is_done():
                    self._done = True
                    return
                await self._wait(reaping, may_reap=may_reap)
        except (NotLeader, Deposed) as error:  # the candidate hears of it as well: resign, and stand again
            logger.warning("%s", error)
        finally:
            for task in reaping:
                task.cancel()
            if reaping:
                await asyncio.wait(reaping)

    async def _mind(self) -> bool:
        """Minds the breaker, once in a turn: to count thousands takes longer than to reap a batch of them."""
        if self._clock.now_s() >= self._mind_at_s:
            minded = await self._warden.mind()
            self._mind_at_s = self._clock.now_s() + _TURN_S if minded else float("-inf")
            return minded
        return True

    async def _wait(self, reaping: set[asyncio.Task[None]], *, may_reap: bool) -> None:
        """Until something has changed, something is due, or a batch is done; raises what ended the batch."""
        observer, now_s = self._observer, self._clock.now_s()
        times_s = [observer.suspects.next_due_s(ordered=True), observer.orders.breaker_over_at_s]
        if self._may_begin():
            times_s.append(max(observer.suspects.next_due_s(), now_s + self._pace.next_s()))
        if len(reaping) == _IN_FLIGHT:
            times_s = []
        if not may_reap and observer.ready:
            times_s = [now_s + _RETRY_S]
        timeout_s = max(min(times_s, default=float("inf")) - now_s, 0.01)
        changed = asyncio.create_task(observer.changed.wait())
        try:
            await asyncio.wait(
                {changed, *reaping},
                timeout=None if timeout_s == float("inf") else timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if changed.done() and not reaping:
                await self._clock.sleep_s(_TURN_S)
            elif changed.done():
                await asyncio.wait(reaping, timeout=_TURN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        for task in [task for task in reaping if task.done()]:
            reaping.discard(task)
            task.result()

    def _is_done(self) -> bool:
        """Whether those who were missing at first are reaped, are back, or cannot be reaped at present."""
        missing = self._observer.suspects.missing
        if self._first is None:
            self._first = set(missing.values())
        left = {suspect for suspect in self._first if missing.get(suspect.agent) is suspect}
        return left <= self._batches.given_up or self._observer.orders.breaker.open

    # --- reaping ---------------------------------------------------------------------------------------------

    def _begin(self, reaping: set[asyncio.Task[None]]) -> None:
        """Takes those who are due, as far as the breaker and the rate allow."""
        observer, now_s = self._observer, self._clock.now_s()
        while len(reaping) < _IN_FLIGHT:
            if ordered := observer.suspects.take(now_s, self._batches.size, ordered=True):
                reaping.add(asyncio.create_task(self._batches.reap(ordered, None)))
                continue
            allowed = self._pace.allows() if self._may_begin() else 0
            taken = observer.suspects.take(
                now_s, self._batches.size if allowed is None else min(self._batches.size, allowed)
            )
            if not taken:
                return
            self._pace.spend(len(taken))
            reaping.add(asyncio.create_task(self._batches.reap(taken, observer.orders.breaker)))

    def _may_begin(self) -> bool:
        """Whether anybody but those whom an operator has ordered may be reaped now."""
        return not self._observer.orders.breaker.open and not self._observer.is_behind
