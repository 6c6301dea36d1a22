"""The collector: stands for an election of its own, and while it leads, reaps each suspect when its grace is over.

Any number of collectors may run, and the one that leads the election `_collector` works.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

from election.candidate import Candidate
from election.collector.events import CollectorEvent
from election.collector.retention import Retention
from election.collector.sweep import Sweep
from election.config import CandidateConfig, CollectorConfig
from election.epoch import EpochGuard
from election.errors import LossReason
from election.etcd.client import EtcdClient, Repeat
from election.etcd.txn import names
from election.keys import COLLECTOR_ELECTION, Keyspace
from election.machine import Transition
from election.published import Published
from election.term import Term


class Collector:
    """Stands for the election of collectors and collects while it leads; made by `Store.collector`."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        *,
        id: str,
        config: CollectorConfig | None = None,
        candidate_config: CandidateConfig | None = None,
        guard: EpochGuard | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._config = config or CollectorConfig()
        self._rng = rng or random.Random()
        self._published: Published[CollectorEvent | None] = Published(None)
        self._retention = Retention(client, self._config.retention_s)
        self._rehearsing: asyncio.Task[bool] | None = None
        self._left = False
        self.candidate = Candidate(
            client, keyspace, COLLECTOR_ELECTION, id=id, config=candidate_config, guard=guard, rng=self._rng
        )

    def events(self) -> AsyncGenerator[CollectorEvent | None]:
        """What this collector does from now on; first the last thing that it did, or None."""
        return self._published.values()

    def transitions(self) -> AsyncGenerator[Transition]:
        """How this collector stands in the election of collectors."""
        return self.candidate.transitions()

    async def run(self, *, once: bool = False) -> None:
        """Collects whenever this collector leads, until `leave`; raises and is cancelled as `Candidate.lead`.

        With `once` it returns when every agent that was missing at first has been reaped, has come back or cannot be
        reaped at present, or when the breaker is open; it waits for its turn while another collector works, and stands
        again where its term is lost before. An error in its work is raised then, and that etcd cannot be read.
        """
        done = False
        if once:
            await self._look()

        async def work(term: Term) -> None:
            nonlocal done
            done = await self._sweep(term, once=once).run()

        try:
            while True:
                await self.candidate.lead(work, once=once, reraise=once)
                if not once or done or self._left:
                    return
        finally:
            await self._retention.release()

    async def rehearse(self, *, once: bool = False) -> None:
        """Tells what would be reaped (WouldReap), without standing and without writing anything, until `leave`.

        `once` is as with `run`. What the breaker would do is told as well, and nobody else hears of it.

        Raises:
            EtcdError: etcd cannot be used at first. Later such failures are waited out.
        """
        await self._look()
        if self._left:
            return
        rehearsing = self._rehearsing = asyncio.create_task(self._sweep(None, once=once).run())
        try:
            await asyncio.wait({rehearsing})
        finally:
            rehearsing.cancel()
            await asyncio.wait({rehearsing})
        if not rehearsing.cancelled():
            rehearsing.result()

    def leave(self) -> None:
        """Asks `run` or `rehearse` to return. It is final."""
        self._left = True
        self.candidate.leave(LossReason.RESIGNED)
        if self._rehearsing is not None:
            self._rehearsing.cancel()

    async def _look(self) -> None:
        """Raises what would keep this collector from seeing anything, such as a permission that it lacks."""
        operations = [names(prefix, limit=1) for prefix in (self._keyspace.collector, self._keyspace.agents)]
        await self._client.txn([], operations, repeat=Repeat.SAFE)

    def _sweep(self, term: Term | None, *, once: bool) -> Sweep:
        return Sweep(
            self._client,
            self._keyspace,
            self._config,
            self._retention,
            term,
            id=self.candidate.id,
            published=self._published,
            rng=self._rng,
            once=once,
        )
