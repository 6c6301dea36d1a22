"""Collects suspects in batches, and settles what becomes of each: collected, back, changed, or to be tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from election.breaker import Breaker
from election.collector.burial import Burial, Planner, TooMuch, packed
from election.collector.events import CollectorEvent, Reaped, ReapFailed, WouldReap
from election.collector.observer import Observer
from election.collector.reaper import BreakerMoved, Fate, reap
from election.collector.remains import Remains, read, read_all, read_alone
from election.collector.retention import Retention
from election.collector.suspects import Suspect
from election.collector.warden import Warden
from election.config import CollectorConfig
from election.errors import AccessDenied, EtcdError, EtcdUnavailable, LeaseNotFound, NoSpace
from election.etcd.client import EtcdClient
from election.keys import Keyspace, TombstoneKey
from election.term import Term
from election.token import Token

logger = logging.getLogger("election")

_FIRST_BATCH = 8
_LARGEST_BATCH = 100
_BATCH_BYTES = 4 * 1024 * 1024
"""What is read at once, if the agents have stored as much as those before them."""

_SOON_S = 0.1
_RETRY_S = 1.0
_FAILED_S = 60.0


class Batches:
    """Collects in one term; without a term it only tells what would be collected.

    `size` is how many suspects the next batch should have, `given_up` are those for whom nothing can be done now.
    """

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        config: CollectorConfig,
        term: Term | None,
        *,
        id: str,
        retention: Retention,
        observer: Observer,
        warden: Warden,
        tell: Callable[[CollectorEvent], None],
    ) -> None:
        self.size = _FIRST_BATCH
        self.given_up: set[Suspect] = set()
        self._client = client
        self._keyspace = keyspace
        self._config = config
        self._term = term
        self._planner = Planner(keyspace, id, term.token if term else Token(0, 0), config.retention_s)
        self._retention = retention
        self._observer = observer
        self._suspects = observer.suspects
        self._warden = warden
        self._tell = tell

    async def reap(self, suspects: Sequence[Suspect], breaker: Breaker | None) -> None:
        """Collects a batch; in the end each suspect is settled, or due again."""
        pending = dict.fromkeys(suspects)
        sent: Sequence[Burial] = ()
        try:
            burials = []
            for remains in await self._read(suspects):
                if (burial := await self._plan(remains)) is None:
                    del pending[remains.suspect]
                else:
                    burials.append(burial)
            for sent in packed(burials):
                assert self._term is not None  # a rehearsal plans nothing
                fates = await reap(
                    self._client, self._term, self._planner, sent, retention=self._retention, breaker=breaker
                )
                for burial, fate in fates:
                    self._conclude(burial, fate, pending)
        except BreakerMoved as moved:
            self._observer.orders.heard_breaker(moved.breaker, moved.revision)
            self._later(pending, 0.0)
        except EtcdError as error:
            self._fail(pending, sent, error)

    async def _read(self, suspects: Sequence[Suspect]) -> list[Remains]:
        together = [suspect for suspect in suspects if not suspect.alone]
        found = await read(self._client, self._keyspace, together) if together else []
        if found:
            size = sum(remains.size for remains in found) / len(found)
            self.size = min(max(int(_BATCH_BYTES / max(size, 1)), 1), self.size * 2, _LARGEST_BATCH)
        return found + [
            await read_alone(self._client, self._keyspace, suspect) for suspect in suspects if suspect.alone
        ]

    async def _plan(self, remains: Remains) -> Burial | None:
        """What to do for a suspect; None where nothing can be done now, and then it is settled, or due again."""
        suspect, now = remains.suspect, self._client.clock.wall()
        if (unsure := suspect.unsure) is not None:
            suspect.unsure = None
            if TombstoneKey(unsure.agent, unsure.incarnation, unsure.part) in remains.parts:
                self._tell(Reaped(unsure))
        if remains.is_of_another:
            self._suspect_anew(remains)
            return None
        if self._term is None:
            everything = await read_all(self._client, remains) if remains.more else remains
            self.given_up.add(suspect)  # it stays taken
            if everything.values or everything.registration:
                self._tell(WouldReap(self._planner.tombstone(everything, everything.values, now)))
            return None
        try:
            burial = self._planner.plan(remains, now)
        except TooMuch:
            suspect.alone = True
            self._later([suspect], 0.0)
            return None
        except EtcdError as error:
            self._fail([suspect], (), error)
            return None
        if burial is None:
            self._suspects.settle(suspect)
        return burial

    def _suspect_anew(self, remains: Remains) -> None:
        """It has a grace of its own, and no order for another incarnation ends it."""
        record = remains.record
        if self._suspects.missing.get(remains.suspect.agent) is remains.suspect:
            left = record is not None and record.left_at is not None
            now_s = self._client.clock.now_s()
            anew = Suspect(remains.suspect.agent, remains.incarnation, remains.revision, now_s, now_s, left=left)
            self._observer.begin_grace(anew, now_s)

    def _conclude(self, burial: Burial, fate: Fate, pending: dict[Suspect, None]) -> None:
        suspect = burial.suspect
        del pending[suspect]
        match fate:
            case Fate.REAPED:
                self._suspects.settle(suspect)
                if not suspect.ordered:
                    self._warden.note_reaped(suspect)
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
            self.given_up.add(suspect)
        logger.warning("%s: %s", _named(suspects), error)
        self._later(suspects, min(self._config.reconcile_s, _FAILED_S))

    def _later(self, suspects: Iterable[Suspect], after_s: float) -> None:
        at_s = self._client.clock.now_s() + after_s
        for suspect in suspects:
            self._suspects.again(suspect, at_s)


def _named(suspects: Sequence[Suspect]) -> str:
    if len(suspects) == 1:
        return f"agent {suspects[0].agent} could not be reaped"
    return f"{len(suspects)} agents, {suspects[0].agent} among them, could not be reaped"
