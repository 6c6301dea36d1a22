"""One term of a collector: what it observes, it judges, and what is due, it reaps."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from election.collector.burial import Burial, Planner, TooMuch, packed
from election.collector.events import CollectorEvent, Reaped, ReapFailed, WouldReap
from election.collector.judge import Moment, Tally, accepts, judge
from election.collector.observer import Observer
from election.collector.pace import Pace
from election.collector.reaper import BreakerMoved, Fate, reap
from election.collector.remains import Remains, read, read_all, read_alone
from election.collector.retention import Retention
from election.collector.suspects import Suspect
from election.config import CollectorConfig
from election.errors import AccessDenied, Deposed, EtcdError, EtcdUnavailable, LeaseNotFound, NoSpace, NotLeader
from election.etcd.client import EtcdClient
from election.etcd.txn import get, modified_at, put
from election.fencing.txn import fenced_txn
from election.keys import Keyspace, TombstoneKey
from election.published import Published
from election.records import Breaker, BreakerReason
from election.term import Term
from election.token import Token

logger = logging.getLogger("election")

_FIRST_BATCH = 8
_LARGEST_BATCH = 100
_BATCH_BYTES = 4 * 1024 * 1024
"""What is read at once, if the agents have stored as much as those before them."""

_IN_FLIGHT = 2
"""Batches at a time: one is read and planned while etcd commits the other."""

_TURN_S = 0.05
"""All suspects are counted anew in each turn: what changes within so long is looked at together."""

_RETRY_S = 1.0
_SHORTEST_WINDOW_S = 1.0

_SOON_S = 0.1
_FAILED_S = 60.0


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
        self._client = client
        self._keyspace = keyspace
        self._config = config
        self._retention = retention
        self._term = term
        self._planner = Planner(keyspace, id, term.token if term else Token(0, 0), config.retention_s)
        self._tell = published.set
        self._once = once
        self._observer = Observer(client, keyspace, config, published, rng)
        self._pace = Pace(config.rate_per_s, client.clock)
        self._batch = _FIRST_BATCH
        self._raft_term = client.raft_term
        self._settled_at_s = float("-inf")
        self._owed: Breaker | None = None
        """What has to be written over the breaker of its revision, however long that cannot be done."""
        self._done = False
        self._first: set[Suspect] | None = None
        self._given_up: set[Suspect] = set()
        self._buried: deque[Suspect] = deque()
        """Those who were reaped so soon that they still count for the breaker."""

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
                may_reap = observer.ready and await self._mind_breaker()
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

    async def _wait(self, reaping: set[asyncio.Task[None]], *, may_reap: bool) -> None:
        """Until something has changed, something is due, or a batch is done; raises what ended the batch."""
        observer, now_s = self._observer, self._client.clock.now_s()
        times_s = [observer.suspects.next_due_s(ordered=True), observer.breaker_over_at_s]
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
                await self._client.clock.sleep_s(_TURN_S)
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
        return left <= self._given_up or self._observer.breaker.open

    # --- the breaker -----------------------------------------------------------------------------------------

    async def _mind_breaker(self) -> bool:
        """Opens or closes the breaker, if it has to be; whether it is known that it is as it should be."""
        clock, observer = self._client.clock, self._observer
        now_s, now = clock.now_s(), clock.wall()
        if self._client.raft_term > self._raft_term:
            self._settled_at_s = now_s + self._config.grace_s if self._raft_term else now_s
            self._raft_term = self._client.raft_term
        moment = Moment(
            now,
            self._planner.collector,
            over=now_s >= observer.breaker_over_at_s,
            settled_at=now + timedelta(seconds=self._settled_at_s - now_s) if self._settled_at_s > now_s else None,
        )
        new = judge(observer.breaker, self._tally(now_s), self._config.breaker, moment)
        if new is None and self._owed is not None and self._owed.revision == observer.breaker.revision:
            owed = self._owed
            new = replace(owed, at=now, until=now + (owed.until - owed.at) if owed.until and owed.at else owed.until)
        if new is None:
            return True
        if self._term is None:
            gone_at = (suspect.gone_at for suspect in observer.suspects.missing.values())
            seen_at = max(observer.breaker_seen_at, *gone_at, 0)
            observer.heard_breaker(replace(new, revision=seen_at), seen_at)
        else:
            self._owed = replace(new, revision=observer.breaker.revision) if new.open else None
            if not await self._write_breaker(self._term, new):
                return False
            self._owed = None
        if new.reason is BreakerReason.RECOVERED:
            observer.suspects.postpone(now_s + self._config.grace_s)
        return True

    def _tally(self, now_s: float) -> Tally:
        accepted = accepts(self._observer.breaker)
        recent_s = now_s - max(self._config.grace_s, _SHORTEST_WINDOW_S)
        suspects = self._observer.suspects
        while self._buried and self._buried[0].since_s < recent_s:
            self._buried.popleft()
        gone = itertools.chain(suspects.missing.values(), self._buried)
        dead = [each for each in gone if not each.left and each.gone_at > accepted]
        return Tally(len(suspects.alive), len(dead), sum(each.since_s >= recent_s for each in dead))

    async def _write_breaker(self, term: Term, new: Breaker) -> bool:
        key = self._keyspace.breaker
        try:
            answer = await fenced_txn(
                self._client,
                term,
                [modified_at(key, self._observer.breaker.revision)],
                [put(key, new.encode())],
                [get(key)],
            )
        except EtcdError as error:
            logger.warning("the breaker could not be written, and nothing is reaped meanwhile: %s", error)
            return False
        revision = answer.header.revision
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs
            self._observer.heard_breaker(Breaker.of(found[0] if found else None), revision)
            return False
        self._observer.heard_breaker(replace(new, revision=revision), revision)
        return True

    # --- reaping ---------------------------------------------------------------------------------------------

    def _begin(self, reaping: set[asyncio.Task[None]]) -> None:
        """Takes those who are due, as far as the breaker and the rate allow."""
        observer, now_s = self._observer, self._client.clock.now_s()
        while len(reaping) < _IN_FLIGHT:
            if ordered := observer.suspects.take(now_s, self._batch, ordered=True):
                reaping.add(asyncio.create_task(self._reap(ordered, None)))
                continue
            allowed = self._pace.allows() if self._may_begin() else 0
            taken = observer.suspects.take(now_s, self._batch if allowed is None else min(self._batch, allowed))
            if not taken:
                return
            self._pace.spend(len(taken))
            reaping.add(asyncio.create_task(self._reap(taken, observer.breaker)))

    def _may_begin(self) -> bool:
        """Whether anybody but those whom an operator has ordered may be reaped now."""
        return not self._observer.breaker.open and not self._observer.is_behind

    async def _reap(self, suspects: Sequence[Suspect], breaker: Breaker | None) -> None:
        """Collects a batch; in the end each suspect is settled, or due again."""
        pending = dict.fromkeys(suspects)
        sent: Sequence[Burial] = ()
        try:
            burials = [burial for each in await self._read(suspects) if (burial := await self._plan(each, pending))]
            for sent in packed(burials):
                if self._term is None:
                    continue
                fates = await reap(
                    self._client, self._term, self._planner, sent, retention=self._retention, breaker=breaker
                )
                for burial, fate in fates:
                    self._conclude(burial, fate, pending)
        except BreakerMoved as moved:
            self._observer.heard_breaker(moved.breaker, moved.revision)
            self._later(pending, 0.0)
        except EtcdError as error:
            self._fail(pending, sent, error)

    async def _read(self, suspects: Sequence[Suspect]) -> list[Remains]:
        together = [suspect for suspect in suspects if not suspect.alone]
        found = await read(self._client, self._keyspace, together) if together else []
        if found:
            size = sum(remains.size for remains in found) / len(found)
            self._batch = min(max(int(_BATCH_BYTES / max(size, 1)), 1), self._batch * 2, _LARGEST_BATCH)
        return found + [
            await read_alone(self._client, self._keyspace, suspect) for suspect in suspects if suspect.alone
        ]

    async def _plan(self, remains: Remains, pending: dict[Suspect, None]) -> Burial | None:
        """The burial of a suspect that there is something to do for, and that can be done now."""
        suspect, now = remains.suspect, self._client.clock.wall()
        if (unsure := suspect.unsure) is not None:
            suspect.unsure = None
            if TombstoneKey(unsure.agent, unsure.incarnation, unsure.part) in remains.parts:
                self._tell(Reaped(unsure))
        if remains.is_of_another:
            del pending[suspect]
            self._suspect_anew(remains)
            return None
        if self._term is None:
            everything = await read_all(self._client, remains) if remains.more else remains
            del pending[suspect]  # it stays taken
            self._given_up.add(suspect)
            if everything.values or everything.registration:
                self._tell(WouldReap(self._planner.tombstone(everything, everything.values, now)))
            return None
        try:
            burial = self._planner.plan(remains, now)
        except TooMuch:
            burial = None
            del pending[suspect]
            suspect.alone = True
            self._later([suspect], 0.0)
        except EtcdError as error:
            burial = None
            del pending[suspect]
            self._fail([suspect], (), error)
        else:
            if burial is None:
                del pending[suspect]
                self._observer.suspects.settle(suspect)
        return burial

    def _suspect_anew(self, remains: Remains) -> None:
        """It has a grace of its own, and no order for another incarnation ends it."""
        suspects, record = self._observer.suspects, remains.record
        if suspects.missing.get(remains.suspect.agent) is remains.suspect:
            left = record is not None and record.left_at is not None
            now_s = self._client.clock.now_s()
            anew = Suspect(remains.suspect.agent, remains.incarnation, remains.revision, now_s, now_s, left=left)
            self._observer.begin_grace(anew, now_s)

    def _conclude(self, burial: Burial, fate: Fate, pending: dict[Suspect, None]) -> None:
        suspect = burial.suspect
        del pending[suspect]
        match fate:
            case Fate.REAPED:
                self._observer.suspects.settle(suspect)
                if not suspect.ordered:
                    self._buried.append(suspect)
                self._tell(Reaped(burial.tombstone))
            case Fate.PARTED:
                self._later([suspect], 0.0)
                self._tell(Reaped(burial.tombstone))
            case Fate.CHANGED:
                suspect.alone = True
                self._later([suspect], _SOON_S)
            case Fate.RETURNED:  # the watch will tell
                self._later([suspect], max(self._config.grace_s, _RETRY_S))

    def _fail(self, pending: Iterable[Suspect], sent: Sequence[Burial], error: EtcdError) -> None:
        suspects = list(pending)
        if error.indefinite:
            for burial in sent:
                burial.suspect.unsure, burial.suspect.alone = burial.tombstone, True
        if isinstance(error, EtcdUnavailable | LeaseNotFound):
            logger.warning("%d agents could not be reaped yet: %s", len(suspects), error)
            self._later(suspects, _RETRY_S)
            return
        if len(suspects) > 1 and not isinstance(error, NoSpace | AccessDenied):
            for suspect in suspects:  # the one that cannot be reaped must not hold up the others
                suspect.alone = True
            self._later(suspects, 0.0)
            return
        for suspect in suspects:
            self._tell(ReapFailed(suspect.agent, str(error)))
            self._given_up.add(suspect)
        logger.warning("%s: %s", _named(suspects), error)
        self._later(suspects, min(self._config.reconcile_s, _FAILED_S))

    def _later(self, suspects: Iterable[Suspect], after_s: float) -> None:
        at_s = self._client.clock.now_s() + after_s
        for suspect in suspects:
            self._observer.suspects.again(suspect, at_s)


def _named(suspects: Sequence[Suspect]) -> str:
    if len(suspects) == 1:
        return f"agent {suspects[0].agent} could not be reaped"
    return f"{len(suspects)} agents, {suspects[0].agent} among them, could not be reaped"
