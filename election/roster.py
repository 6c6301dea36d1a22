"""What the agents of one store share: their renewals, the looks whether they are alive, and the way back of the lost.

No agent has a task of its own. The roster has one, with a handful below it, for as long as there are agents.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from election.backoff import Backoff
from election.config import AgentConfig
from election.errors import AgentExists, EtcdError, LeaseNotFound, LossReason
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.keepalive import KeepAlive, KeptLease
from election.etcd.lease import Lease, let_go
from election.registration import Registration

logger = logging.getLogger("election")

_AT_ONCE = 64
"""How many lost agents register again at the same time."""
_LOOKED_AT = 100
"""How many liveness keys are read in one transaction; etcd takes 128 operations."""
_LOOK_S = 1.0
_TURN_S = 0.02
_NAMED = 5
"""How many lost agents a line of the log names."""


class Enrolled(Protocol):
    """What a roster has to know of an agent."""

    id: str
    config: AgentConfig
    alive_key: bytes

    async def register(self) -> tuple[Registration, Lease]:
        """Registers with etcd, and nothing else; raises AgentExists or EtcdError."""
        ...

    def begin(self, registration: Registration, lease: KeptLease) -> None:
        """It is registered, and the lease is kept alive."""
        ...

    def lose(self, reason: LossReason) -> None:
        """The registration is over."""
        ...

    def fail(self, error: BaseException | None) -> None:
        """Nobody keeps it alive any more: because of an error that nobody expected, or because the store is closed."""
        ...


@dataclass(slots=True, eq=False)
class _Place:
    """An agent in the roster. `registration` is None while it is lost; `returning` is its way back."""

    agent: Enrolled
    backoff: Backoff
    registration: Registration | None
    lease: KeptLease
    returning: asyncio.Task[None] | None = None
    refused: bool = False


class Roster:
    """Keeps the agents of one store alive; used in one event loop. The client has to outlive them."""

    def __init__(self, client: EtcdClient, *, rng: random.Random | None = None) -> None:
        self._client = client
        self._clock = client.clock
        self._rng = rng or random.Random()
        self._keepalive = KeepAlive(client, self._rng)
        self._places: dict[Enrolled, _Place] = {}
        self._registered: dict[int, _Place] = {}
        """Those that are registered, by their leases."""
        self._looks: list[tuple[float, int]] = []
        """A heap: when to look after which lease's key. Those that are not registered any more are skipped."""
        self._returns: list[tuple[float, int, _Place]] = []
        """A heap: when to register whom again. Those that have left are skipped."""
        self._numbers = itertools.count()
        self._returning: set[asyncio.Task[None]] = set()
        self._somebody_is_lost = asyncio.Event()
        self._trouble: type[Exception] | None = None
        self._task: asyncio.Task[BaseException | None] | None = None

    async def enter(self, agent: Enrolled) -> None:
        """Registers an agent, and keeps it alive until it leaves; raises as `register` does."""
        registration, lease = await agent.register()
        backoff = Backoff(agent.config.retry_s, agent.config.retry_max_s, self._rng)
        place = self._places[agent] = _Place(agent, backoff, registration, self._keepalive.add(lease))
        self._begin(place, registration)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="agents")

    async def leave(self, agent: Enrolled) -> None:
        """Keeps an agent alive no more; what it has in etcd stays. Harmless when it has left.

        Cancelling the wait does not bring it back.
        """
        if (place := self._places.pop(agent, None)) is None:
            return
        self._let(place)
        ending: set[asyncio.Task[None] | asyncio.Task[BaseException | None]] = set()
        if place.returning is not None:
            ending.add(place.returning)
        task = self._task
        if not self._places and task is not None:
            self._task = None
            ending.add(task)
        for each in ending:
            each.cancel()
        if ending:
            await asyncio.wait(ending)
        if task in ending and not task.cancelled() and (error := task.result()) is not None:
            agent.fail(error)

    async def close(self) -> None:
        """Ends everything; the agents that are left are told so."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait({task})

    def lose(self, agent: Enrolled, registration: Registration) -> None:
        """An agent has found that its liveness key is gone. Harmless when this registration is over."""
        place = self._places.get(agent)
        if place is not None and place.registration == registration:
            self._lose([place], LossReason.KEY_DELETED)

    # --- inside ------------------------------------------------------------------------------------------------

    async def _run(self) -> BaseException | None:
        """Runs until cancelled; an error that nobody expected is told to every agent, and returned."""
        error: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keepalive.run())
                group.create_task(self._notice())
                group.create_task(self._look())
                group.create_task(self._bring_back_all(group))
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]
            logger.error("agents are not kept alive any more", exc_info=error)
        finally:
            if self._task is asyncio.current_task():
                self._task = None
                places, self._places = self._places, {}
                for place in places.values():
                    self._let(place)
                    place.agent.fail(error)
        return error

    def _begin(self, place: _Place, registration: Registration) -> None:
        place.registration = registration
        self._registered[place.lease.id] = place
        self._look_later(place)
        place.agent.begin(registration, place.lease)

    def _let(self, place: _Place) -> None:
        self._keepalive.forget(place.lease)
        self._registered.pop(place.lease.id, None)
        place.registration = None

    # --- losing ------------------------------------------------------------------------------------------------

    async def _notice(self) -> None:
        """Tells those agents whose leases are gone, or could not be renewed in time."""
        while True:
            lost = await self._keepalive.lost()
            self._lose([self._registered[lease.id] for lease in lost], LossReason.EXPIRED)

    async def _look(self) -> None:
        """Looks after each agent's liveness key once per TTL at least: nothing else would tell that it is gone."""
        while True:
            batch = self._to_look_after()
            if not batch:
                await self._clock.sleep_s(_LOOK_S)
                continue
            read = [txn.head(place.agent.alive_key) for place, _ in batch]
            try:
                answer = await self._client.txn([], read, repeat=Repeat.SAFE)
            except EtcdError:
                continue  # they are taken to be there while etcd cannot tell
            found = [response.response_range.kvs for response in answer.responses]
            gone = [
                place
                for (place, registration), kvs in zip(batch, found, strict=True)
                if place.registration is registration
                and answer.header.revision >= registration.incarnation  # an older answer knows nothing of it
                and not (kvs and kvs[0].lease == registration.lease)
            ]
            self._lose(gone, LossReason.KEY_DELETED)

    def _to_look_after(self) -> Sequence[tuple[_Place, Registration]]:
        batch: list[tuple[_Place, Registration]] = []
        now_s = self._clock.now_s()
        while self._looks and self._looks[0][0] <= now_s and len(batch) < _LOOKED_AT:
            place = self._registered.get(heapq.heappop(self._looks)[1])
            if place is not None and place.registration is not None:
                batch.append((place, place.registration))
                self._look_later(place)
        return batch

    def _look_later(self, place: _Place) -> None:
        later_s = place.agent.config.ttl_s * self._rng.uniform(0.5, 1.0)
        heapq.heappush(self._looks, (self._clock.now_s() + later_s, place.lease.id))

    def _lose(self, places: Iterable[_Place], reason: LossReason) -> None:
        names = []
        for place in places:
            self._let(place)
            heapq.heappush(self._returns, (self._clock.now_s(), next(self._numbers), place))
            names.append(place.agent.id)
            place.agent.lose(reason)
        if names:
            shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            logger.warning("%d agents have lost their registrations (%s): %s", len(names), reason.value, shown)
            self._somebody_is_lost.set()

    # --- coming back -------------------------------------------------------------------------------------------

    async def _bring_back_all(self, group: asyncio.TaskGroup) -> None:
        """Lets lost agents register again, some of them at once."""
        while True:
            while self._returns and self._returns[0][0] <= self._clock.now_s() and len(self._returning) < _AT_ONCE:
                place = heapq.heappop(self._returns)[2]
                if self._places.get(place.agent) is place:
                    place.returning = group.create_task(self._bring_back(place), name=f"agent {place.agent.id}")
                    self._returning.add(place.returning)
                    place.returning.add_done_callback(self._returning.discard)
            if self._returns:
                await self._clock.sleep_s(_TURN_S)
            else:
                self._somebody_is_lost.clear()
                await self._somebody_is_lost.wait()

    async def _bring_back(self, place: _Place) -> None:
        """Ends the old lease, so that its key cannot be in the way, and registers; or tries again later."""
        agent = place.agent
        if not agent.config.register_again:
            if not place.lease.gone:
                await let_go(self._client, place.lease.id, whose=f"agent {agent.id}")
            return
        try:
            if not place.lease.gone:
                with suppress(LeaseNotFound):
                    await self._client.lease_revoke(place.lease.id)
                place.lease.gone = True
            registration, lease = await agent.register()
        except (EtcdError, AgentExists) as error:
            self._complain(place, error)
            later_s = self._clock.now_s() + place.backoff.next_s()
            heapq.heappush(self._returns, (later_s, next(self._numbers), place))
            self._somebody_is_lost.set()
        else:
            place.lease = self._keepalive.add(lease)
            place.backoff.reset()
            place.refused, self._trouble = False, None
            self._begin(place, registration)

    def _complain(self, place: _Place, error: Exception) -> None:
        """Logs why agents do not come back: the same trouble with etcd once, however many have it."""
        if isinstance(error, AgentExists):
            told, place.refused = place.refused, True
        else:
            told, self._trouble = self._trouble is type(error), type(error)
        if not told:
            logger.warning("agent %s cannot register: %s", place.agent.id, error)
