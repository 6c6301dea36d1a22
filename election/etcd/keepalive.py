"""Many leases, kept alive over one stream.

For leases whose owners can bear to lose one: etcd serves a stream serially, and a renewal of a lease that has expired
and is not revoked yet blocks its stream (etcd: server/lease/lessor.go, Renew). So none is sent for a lease whose
deadline has passed, and a stream that says nothing is replaced. What leadership depends on has a stream of its own,
see `renewals`.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from election.backoff import Backoff
from election.errors import AccessDenied, EtcdError
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.lease import Lease, attempt_s
from election.etcd.transport import RpcFailed, Stream
from election.pb.etcd import rpc_pb2 as rpc

logger = logging.getLogger("election")

_WINDOW = 512
"""The most renewals on their way: few enough that the time of sending, which deadlines count from, is near that of
serving."""
_BATCH = 64
"""The most renewals that are written between two looks at the stream."""
_TURN_S = 0.02
"""What becomes due within a turn is written together."""
_LOOK_S = 1.0
"""The longest time between two looks at the clock, which goes on in a suspend, when timers stand still."""
_RETRY_S, _RETRY_MAX_S = 0.05, 0.25
_SUSPECTED_S = 0.1
"""How much later a renewal is tried again that may be what blocks its stream; it doubles each time."""
_SETTLED_S = 5.0
"""How old a stream has to be before one to etcd's leader takes its place."""


class KeptLease:
    """A lease that is kept alive. `deadline_s`, on the client's clock, moves on with each renewal.

    `gone` says that etcd does not know the lease any more.
    """

    __slots__ = ("deadline_s", "due_at_s", "gone", "id", "margin_s", "renew_s", "suspected")

    def __init__(self, lease: Lease) -> None:
        self.id = lease.id
        self.margin_s = lease.margin_s
        self.renew_s = lease.renew_s
        self.deadline_s = lease.deadline_s
        self.due_at_s = 0.0
        self.suspected = 0
        self.gone = False


@dataclass(slots=True)
class _Line:
    """One stream: the member that serves it, and when each renewal was sent that it has not answered.

    Of each lease at most one is on its way, so that no answer is taken for that of a later request.
    """

    member: int
    stream: Stream[rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse]
    sent_at_s: dict[int, float] = field(default_factory=dict)


class KeepAlive:
    """Keeps leases alive while `run` runs; `lost` tells of those that it could not.

    A renewal moves the deadline of its lease to `sent_at + ttl - margin`, with `sent_at` read before the request was
    written.
    """

    def __init__(self, client: EtcdClient, rng: random.Random) -> None:
        self.answered = 0
        """How many answers of etcd were taken."""
        self._client = client
        self._clock = client.clock
        self._rng = rng
        self._leases: dict[int, KeptLease] = {}
        self._due: list[tuple[float, int]] = []
        """A heap: when to renew which lease. Those that were forgotten are skipped when they come up."""
        self._ends: list[tuple[float, int]] = []
        """A heap of deadlines. One that has moved on is put back when it comes up."""
        self._gone: list[KeptLease] = []
        self._due_earlier = asyncio.Event()
        self._ends_earlier = asyncio.Event()
        self._leader_known_in = 0
        """The raft term in which the stream was brought to etcd's leader."""

    def add(self, lease: Lease) -> KeptLease:
        """Keeps a lease alive from now on."""
        kept = self._leases[lease.id] = KeptLease(lease)
        # Leases that were granted together are renewed evenly over the interval.
        self._renew_at(kept, self._clock.now_s() + lease.renew_s * self._rng.uniform(0.2, 1.0))
        heapq.heappush(self._ends, (kept.deadline_s, kept.id))
        if self._ends[0][1] == kept.id:
            self._ends_earlier.set()
        return kept

    def forget(self, kept: KeptLease) -> None:
        """Renews a lease no more; harmless for one that is not kept alive."""
        self._leases.pop(kept.id, None)

    async def lost(self) -> list[KeptLease]:
        """Waits until leases are lost, and forgets them: etcd does not know them, or their deadlines have passed."""
        while True:
            now_s = self._clock.now_s()
            lost = [kept for kept in self._gone if kept.id in self._leases]
            self._gone.clear()
            while self._ends and self._ends[0][0] <= now_s:
                kept = self._leases.get(heapq.heappop(self._ends)[1])
                if kept is not None and kept.deadline_s > now_s:
                    heapq.heappush(self._ends, (kept.deadline_s, kept.id))
                elif kept is not None and not kept.gone:
                    lost.append(kept)
            if lost:
                for kept in lost:
                    self.forget(kept)
                return lost
            await _wait(self._ends_earlier, self._ends[0][0] - now_s if self._ends else _LOOK_S)

    async def run(self) -> None:
        """Renews until cancelled, on whichever member answers.

        It is the deadlines that end leases which cannot be renewed. What etcd refuses to this user is logged, once
        until a renewal has succeeded again.
        """
        backoff = Backoff(_RETRY_S, _RETRY_MAX_S, self._rng)
        failures = 0
        refused = False
        while True:
            before = self.answered
            moves = False
            try:
                await self._until_due()
                moves = await self._renew_on_one_stream(failures)
            except EtcdError as error:
                if isinstance(error, AccessDenied) and (not refused or self.answered > before):
                    logger.warning("leases cannot be renewed: %s", error)
                refused = isinstance(error, AccessDenied)
            if self.answered > before:
                backoff.reset()
                failures = 0
            if not moves:
                failures += 1
                await self._clock.sleep_s(backoff.next_s())

    # --- one stream --------------------------------------------------------------------------------------------

    async def _renew_on_one_stream(self, failures: int) -> bool:
        """Renews until the stream fails; or until it had better be one to etcd's leader, and then returns True.

        A follower passes each renewal on before it looks at the next one, which is too slow for thousands. After a
        failure the leader may be what failed, so the next member is taken as it comes.

        Raises:
            EtcdError: what another stream would be told as well.
        """
        self._leader_known_in = 0
        if not failures:
            await self._approach_leader()
        line = _Line(*await self._client.open(methods.LEASE_KEEP_ALIVE))
        reading = asyncio.create_task(self._read(line), name="keepalive")
        try:
            moves = await self._write_until_over(line, reading, attempt_s(self._client, failures))
        finally:
            reading.cancel()
            line.stream.cancel()
            for lease_id in line.sent_at_s:
                if (kept := self._leases.get(lease_id)) is not None:
                    self._renew_at(kept, kept.due_at_s)
            await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()
        return moves

    async def _write_until_over(self, line: _Line, reading: asyncio.Task[None], limit_s: float) -> bool:
        opened_at_s, answered, quiet_s = self._clock.now_s(), self.answered, 0.0
        while not reading.done():
            began_s = self._clock.now_s()
            try:
                async with asyncio.timeout(limit_s):
                    written = await self._write_due(line, began_s + limit_s / 2)
            except TimeoutError:
                self._suspect(line)
                return False
            except RpcFailed:
                await asyncio.wait({reading}, timeout=limit_s)  # it is told why
                return False
            if not line.sent_at_s:
                await self._until_due()
            elif written < _BATCH:
                await self._clock.sleep_s(_TURN_S)
            # A pause of this process is no silence of etcd's: it counts as no more than the turn that it was.
            quiet_s += min(self._clock.now_s() - began_s, 2 * _TURN_S)
            if self.answered > answered or not line.sent_at_s:
                answered, quiet_s = self.answered, 0.0
            if quiet_s >= limit_s:
                self._suspect(line)
                return False
            if self._leader_known_in != self._client.raft_term and began_s >= opened_at_s + _SETTLED_S:
                await self._approach_leader()
                if self._client.member != line.member:
                    return True
        return False

    async def _approach_leader(self) -> None:
        await self._client.approach_leader()
        self._leader_known_in = self._client.raft_term

    def _suspect(self, line: _Line) -> None:
        """The member is silent, or the lease that it serves at present blocks it: neither is to come next."""
        self._client.avoid(line.member)
        first = next(iter(line.sent_at_s), None)
        if first is not None and (kept := self._leases.get(first)) is not None:
            del line.sent_at_s[first]
            self._renew_at(kept, self._clock.now_s() + _SUSPECTED_S * (1 << min(kept.suspected, 10)))
            kept.suspected += 1

    async def _write_due(self, line: _Line, until_s: float) -> int:
        """Writes a batch of what is due, as far as there is room for it and time; returns how many."""
        written = 0
        for lease_id in self._due_now(line, until_s):
            await line.stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            written += 1
        return written

    def _due_now(self, line: _Line, until_s: float) -> Iterator[int]:
        """A batch of leases whose renewals are to be written, each at once."""
        for _ in range(_BATCH):
            now_s = self._clock.now_s()
            if not self._due or self._due[0][0] > now_s + _TURN_S or len(line.sent_at_s) >= _WINDOW or now_s > until_s:
                return
            due_at_s, lease_id = heapq.heappop(self._due)
            kept = self._leases.get(lease_id)
            if kept is None or kept.due_at_s != due_at_s or lease_id in line.sent_at_s:
                continue
            if now_s < kept.deadline_s:
                line.sent_at_s[lease_id] = now_s
                yield lease_id

    async def _read(self, line: _Line) -> None:
        """Takes answers until the stream fails, or its member answers from a raft term that is over."""
        while True:
            try:
                answer = await line.stream.read()
            except RpcFailed as failure:
                if (error := self._client.stream_error(failure, line.member)) is not None:
                    raise error from None
                return
            if answer is None or answer.header.raft_term < self._client.raft_term:
                self._client.avoid(line.member)
                return
            self._client.note(answer)
            self._take(answer, line.sent_at_s.pop(answer.ID, None))

    def _take(self, answer: rpc.LeaseKeepAliveResponse, sent_at_s: float | None) -> None:
        self.answered += 1
        kept = self._leases.get(answer.ID)
        if kept is None or sent_at_s is None:
            return
        if answer.TTL <= 0:
            kept.gone = True
            self._gone.append(kept)
            self._ends_earlier.set()
            return
        kept.suspected = 0
        kept.deadline_s = max(kept.deadline_s, sent_at_s + answer.TTL - kept.margin_s)
        # Not all at the whole interval, so that bursts dissolve.
        self._renew_at(kept, sent_at_s + kept.renew_s * self._rng.uniform(0.8, 1.0))

    # --- the clock ---------------------------------------------------------------------------------------------

    def _renew_at(self, kept: KeptLease, due_at_s: float) -> None:
        kept.due_at_s = due_at_s
        heapq.heappush(self._due, (due_at_s, kept.id))
        if self._due[0][1] == kept.id:
            self._due_earlier.set()

    async def _until_due(self) -> None:
        """Waits until a lease is to be renewed."""
        while not self._due or self._due[0][0] > self._clock.now_s() + _TURN_S:
            await _wait(self._due_earlier, self._due[0][0] - self._clock.now_s() if self._due else _LOOK_S)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    """Waits for the event, but no longer than the limit and _LOOK_S, and clears it."""
    try:
        async with asyncio.timeout(min(max(limit_s, 0.0), _LOOK_S)):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
