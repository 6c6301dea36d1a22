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
_BATCH = 32
"""The most renewals that are written between two looks at the stream."""
_TURN_S = 0.1
"""What becomes due within a turn is written together: one by one costs several times as much."""
_LOOKS = 8
"""How often to look whether a stream is silent before it is taken to be."""
_LOOK_S = 1.0
"""The longest time between two looks at the clock, which goes on in a suspend, when timers stand still."""
_RETRY_S, _RETRY_MAX_S = 0.05, 0.25
_MOST_SUSPECTED = 3
"""How often the time doubles after which a renewal is tried again that may be what blocks its stream: 1 turn to 8."""
_SETTLED_S = 5.0
"""How long a stream that does not go to etcd's leader is used before the leader is looked for."""


class KeptLease:
    """A lease that is kept alive. `deadline_s`, on the client's clock, moves on with each renewal.

    `gone` says that etcd does not know the lease any more.
    """

    __slots__ = ("deadline_s", "gone", "id", "margin_s", "renew_s", "suspected", "turn")

    def __init__(self, lease: Lease) -> None:
        self.id = lease.id
        self.margin_s = lease.margin_s
        self.renew_s = lease.renew_s
        self.deadline_s = lease.deadline_s
        self.turn = 0
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
        self._due: dict[int, list[int]] = {}
        """The leases to renew in each turn; those that were forgotten are skipped when they come up."""
        self._turns: list[int] = []
        """A heap of the turns in which there are any."""
        self._ends: list[tuple[float, int]] = []
        """A heap of deadlines. One that has moved on is put back when it comes up."""
        self._gone: list[KeptLease] = []
        self._wake = asyncio.Event()
        self._ends_earlier = asyncio.Event()
        self._at_leader_in = 0
        """The raft term in which the stream goes to etcd's leader; 0 where that is not known."""

    def add(self, lease: Lease) -> KeptLease:
        """Keeps a lease alive from now on."""
        kept = self._leases[lease.id] = KeptLease(lease)
        # Leases that were granted together are renewed evenly over the interval.
        self._renew_in(kept, _turn(self._clock.now_s() + lease.renew_s * self._rng.uniform(0.2, 1.0)))
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
            while (wait_s := self._until_due_s()) > 0:
                await _wait(self._wake, wait_s)
            before = self.answered
            moves = False
            try:
                moves = await self._renew_on_one_stream(failures)
            except EtcdError as error:
                if isinstance(error, AccessDenied) and (not refused or self.answered > before):
                    logger.warning("leases cannot be renewed: %s", error)
                refused = isinstance(error, AccessDenied)
            if self.answered > before:
                backoff.reset()
                failures = 0
            else:
                failures += 1
            if not moves:
                await self._clock.sleep_s(backoff.next_s())

    # --- one stream --------------------------------------------------------------------------------------------

    async def _renew_on_one_stream(self, failures: int) -> bool:
        """Renews until the stream fails; or until it had better be one to etcd's leader, and then returns True.

        A follower passes each renewal on before it looks at the next one, which is too slow for thousands. But the
        leader may be what fails, so every other attempt takes the next member as it comes.

        Raises:
            EtcdError: what another stream would be told as well.
        """
        self._at_leader_in = 0
        if failures % 2 == 0:
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
                    self._renew_in(kept, kept.turn)
            await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()
        return moves

    async def _write_until_over(self, line: _Line, reading: asyncio.Task[None], limit_s: float) -> bool:
        looked_at_s, answered, quiet_s = self._clock.now_s(), self.answered, 0.0
        reading.add_done_callback(lambda _: self._wake.set())
        while not reading.done():
            began_s = self._clock.now_s()
            batch = self._take_due(line, began_s)
            try:
                async with asyncio.timeout(limit_s):
                    for lease_id in batch:
                        await line.stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            except TimeoutError:
                self._suspect(line)
                return False
            except RpcFailed:
                await asyncio.wait({reading}, timeout=limit_s)  # it is told why
                return False
            look_s = limit_s / _LOOKS if line.sent_at_s else _LOOK_S
            if len(batch) < _BATCH:
                await _wait(self._wake, min(self._until_due_s() if len(line.sent_at_s) < _WINDOW else look_s, look_s))
            # A pause of this process is no silence of etcd's, and counts as no more than a look.
            quiet_s += min(self._clock.now_s() - began_s, look_s)
            if self.answered > answered or not line.sent_at_s:
                answered, quiet_s = self.answered, 0.0
            if quiet_s >= limit_s:
                self._suspect(line)
                return False
            if self._at_leader_in != self._client.raft_term and began_s >= looked_at_s + _SETTLED_S:
                looked_at_s = began_s
                await self._approach_leader()
                if self._at_leader_in and self._client.member != line.member:
                    return True
        return False

    async def _approach_leader(self) -> None:
        found = await self._client.approach_leader()
        self._at_leader_in = self._client.raft_term if found else 0

    def _suspect(self, line: _Line) -> None:
        """The member is silent, or blocked by the lease that it serves at present: neither is to come next."""
        self._client.fell_silent(line.member)
        first, *others = line.sent_at_s or (0,)
        if others and (kept := self._leases.get(first)) is not None:
            del line.sent_at_s[first]
            self._renew_in(kept, _turn(self._clock.now_s()) + (1 << kept.suspected))
            kept.suspected = min(kept.suspected + 1, _MOST_SUSPECTED)

    def _take_due(self, line: _Line, now_s: float) -> list[int]:
        """A batch of leases whose renewals are to be written now, as far as there is room for them."""
        batch: list[int] = []
        room = min(_BATCH, _WINDOW - len(line.sent_at_s))
        while len(batch) < room and self._turns and self._turns[0] * _TURN_S <= now_s:
            turn = self._turns[0]
            lease_ids = self._due[turn]
            while lease_ids and len(batch) < room:
                lease_id = lease_ids.pop()
                kept = self._leases.get(lease_id)
                if kept is None or kept.turn != turn or lease_id in line.sent_at_s:
                    continue
                if now_s < kept.deadline_s:
                    line.sent_at_s[lease_id] = now_s
                    batch.append(lease_id)
            if not lease_ids:
                del self._due[heapq.heappop(self._turns)]
        return batch

    async def _read(self, line: _Line) -> None:
        """Takes answers until the stream fails, or its member answers from a raft term that is over."""
        while True:
            try:
                answer = await line.stream.read()
            except RpcFailed as failure:
                if (error := self._client.stream_error(failure, line.member)) is not None:
                    raise error from None
                return
            if answer is None or (raft_term := answer.header.raft_term) < self._client.raft_term:
                self._client.avoid(line.member)
                return
            if raft_term > self._client.raft_term:
                self._client.note(answer)
            self._take(answer.ID, answer.TTL, line.sent_at_s.pop(answer.ID, None))
            if len(line.sent_at_s) == _WINDOW // 2:
                self._wake.set()

    def _take(self, lease_id: int, ttl_s: int, sent_at_s: float | None) -> None:
        self.answered += 1
        kept = self._leases.get(lease_id)
        if kept is None or sent_at_s is None:
            return
        if ttl_s <= 0:
            kept.gone = True
            self._gone.append(kept)
            self._ends_earlier.set()
            return
        kept.suspected = 0
        kept.deadline_s = max(kept.deadline_s, sent_at_s + ttl_s - kept.margin_s)
        # Not all after the whole interval, so that bursts dissolve.
        self._renew_in(kept, _turn(sent_at_s + kept.renew_s * (0.9 + 0.1 * self._rng.random())))

    # --- the clock ---------------------------------------------------------------------------------------------

    def _renew_in(self, kept: KeptLease, turn: int) -> None:
        kept.turn = turn
        if (lease_ids := self._due.get(turn)) is not None:
            lease_ids.append(kept.id)
            return
        self._due[turn] = [kept.id]
        heapq.heappush(self._turns, turn)
        if self._turns[0] == turn:
            self._wake.set()

    def _until_due_s(self) -> float:
        """How long until a lease is to be renewed."""
        return max(self._turns[0] * _TURN_S - self._clock.now_s(), 0.0) if self._turns else _LOOK_S


def _turn(at_s: float) -> int:
    """The turn in which that moment is."""
    return int(at_s / _TURN_S)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    """Waits for the event, but no longer than the limit and _LOOK_S, and clears it."""
    try:
        async with asyncio.timeout(min(max(limit_s, 0.0), _LOOK_S)):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
