"""Calls to an etcd cluster of several members.

Every call has a deadline. A call that is safe to repeat goes on to the next member when one is dead, hung or cut
off; a write that is not safe to repeat is tried again only when the member surely did not begin. Its failure is
otherwise *indefinite*, and the caller has to read back (Jepsen found lost updates in jetcd 0.8.2 for retrying).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, Self

from grpc import StatusCode

from election.clock import BootClock, Clock
from election.config import EtcdConfig
from election.errors import EtcdError, EtcdUnavailable
from election.etcd import methods
from election.etcd.failures import Asked, Remedy, error_from, remedy_for
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import GrpcTransport, Metadata, RpcFailed, Stream, Transport
from election.keys import range_end
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

_LEAST_ATTEMPT_S = 0.05
_APPROACH_S = 0.25
_DRAWS = 3
"""How many lease ids are tried."""
_TOKEN_IS_NEW_S = 3.0
"""So young an auth token is not what keeps members silent."""


class Repeat(Enum):
    """Whether a call may be sent again when it is not known what became of it."""

    SAFE = "its second execution changes nothing"
    NEVER = "its second execution could change something"
    UNSENT = "it goes on for long before it answers, so whatever a member answers, it may have begun"


_REPEATED = {
    Repeat.SAFE: {Remedy.UNSENT, Remedy.OTHER_MEMBER_SURELY, Remedy.OTHER_MEMBER},
    Repeat.NEVER: {Remedy.UNSENT, Remedy.OTHER_MEMBER_SURELY},
    Repeat.UNSENT: {Remedy.UNSENT},
}
"""After which failures a call is sent to another member."""


class EtcdClient:
    """etcd's v3 API over several members. Made in, and used from, one event loop.

    All methods raise `EtcdError` or one of its kinds, and nothing else but CancelledError. Cancelling one cancels
    the call; a write that is cancelled may have happened.
    """

    def __init__(
        self,
        config: EtcdConfig,
        *,
        clock: Clock | None = None,
        transport: Transport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.clock: Clock = clock or BootClock()
        self._transport: Transport = transport or GrpcTransport(config, clock=self.clock)
        self._rng = rng or random.SystemRandom()  # a seed would give two processes the same lease ids
        self._reading: set[asyncio.Task[rpc.TxnResponse]] = set()
        self._member = self._rng.randrange(len(self._transport.endpoints))
        self._token: str | None = None
        self._token_at_s = 0.0
        self._token_lock = asyncio.Lock()
        self._raft_term = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls and connections. Leases are not revoked: their owners do that."""
        if self._reading:
            await asyncio.wait(self._reading)
        await self._transport.close()

    @property
    def raft_term(self) -> int:
        """The highest raft term that any answer has carried; an answer below it comes from a deposed leader."""
        return self._raft_term

    @property
    def member(self) -> int:
        """The member that calls go to at present; for `avoid`."""
        return self._member

    # --- key-value -----------------------------------------------------------------------------------------

    async def get(self, key: bytes, *, revision: int = 0) -> tuple[kv.KeyValue | None, rpc.ResponseHeader]:
        """Reads one key, linearizably, or as it was at a revision; raises Compacted where that is gone."""
        answer = await self.range(rpc.RangeRequest(key=key, revision=revision))
        return (answer.kvs[0] if answer.kvs else None), answer.header

    async def list(self, prefix: bytes) -> rpc.RangeResponse:
        """Reads all keys with a prefix, oldest first, linearizably, at one revision: that of the header."""
        return await self.range(
            rpc.RangeRequest(
                key=prefix,
                range_end=range_end(prefix),
                sort_target=rpc.RangeRequest.CREATE,
                sort_order=rpc.RangeRequest.ASCEND,
            )
        )

    async def range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Reads a range as the request says."""
        return await self.call(methods.RANGE, request)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> rpc.PutResponse:
        """Writes one key. An indefinite failure is not repeated."""
        return await self.call(methods.PUT, rpc.PutRequest(key=key, value=value, lease=lease), repeat=Repeat.NEVER)

    async def delete(self, key: bytes, end: bytes = b"") -> rpc.DeleteRangeResponse:
        """Deletes one key, or a range of them. An indefinite failure is not repeated."""
        return await self.call(
            methods.DELETE_RANGE, rpc.DeleteRangeRequest(key=key, range_end=end), repeat=Repeat.NEVER
        )

    async def txn(
        self,
        compare: Sequence[rpc.Compare],
        success: Sequence[rpc.RequestOp],
        failure: Sequence[rpc.RequestOp] = (),
        *,
        repeat: Repeat = Repeat.NEVER,
        timeout_s: float | None = None,
    ) -> rpc.TxnResponse:
        """Runs one transaction.

        Say `Repeat.SAFE` only when a second execution after a first one that went unnoticed is harmless, and its
        answer can be told apart or means the same.
        """
        request = rpc.TxnRequest(compare=compare, success=success, failure=failure)
        call = self.call(methods.TXN, request, repeat=repeat, timeout_s=timeout_s)
        if all(operation.HasField("request_range") for operation in (*request.success, *request.failure)):
            return await self._unbroken(call)
        return await call

    async def _unbroken(self, call: Coroutine[Any, Any, rpc.TxnResponse]) -> rpc.TxnResponse:
        """Waits for a call that goes on when the wait is cancelled.

        A transaction that only reads, and is cancelled while it does, ends a member of etcd before 3.4.20 and 3.5.5
        with a panic (#14110): whoever could make us give up such a call could take etcd down.
        """
        running = asyncio.create_task(call)
        self._reading.add(running)
        running.add_done_callback(self._read)
        return await asyncio.shield(running)

    def _read(self, running: asyncio.Task[rpc.TxnResponse]) -> None:
        self._reading.discard(running)
        if not running.cancelled():
            running.exception()  # somebody has heard of it, or nobody waits for it any more

    async def compact(self, revision: int) -> None:
        """Forgets the history up to a revision. For tests and drills; operators have etcd's auto-compaction."""
        await self.call(methods.COMPACT, rpc.CompactionRequest(revision=revision, physical=True), repeat=Repeat.NEVER)

    # --- leases --------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> rpc.LeaseGrantResponse:
        """Grants a lease; the answer's TTL is the granted one, which may be longer.

        The id is drawn here and not by etcd, so that the call can be repeated on another member; below 2^53, so that
        it is exact in the JSON of any language. An id that exists already is not taken to be ours, although an
        attempt whose answer was lost may have made it: two candidates must never share a lease, and one that nobody
        renews expires.
        """
        for _ in range(_DRAWS - 1):
            try:
                return await self._grant(ttl_s, timeout_s)
            except EtcdError as error:
                if "lease already exists" not in str(error):
                    raise
        return await self._grant(ttl_s, timeout_s)

    async def _grant(self, ttl_s: int, timeout_s: float | None) -> rpc.LeaseGrantResponse:
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=self._rng.randrange(1, 2**53))
        known = self._raft_term
        answer = await self.call(methods.LEASE_GRANT, request, timeout_s=timeout_s)
        if answer.header.raft_term < known:
            # No deposed leader of etcd can grant a lease: this is a cluster that was restored, and counts anew.
            self._raft_term = answer.header.raft_term
        return answer

    async def lease_revoke(self, lease: int, *, timeout_s: float | None = None) -> rpc.LeaseRevokeResponse:
        """Ends a lease and deletes its keys, in one revision. Raises LeaseNotFound when it is gone already."""
        return await self.call(methods.LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=lease), timeout_s=timeout_s)

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> rpc.LeaseTimeToLiveResponse:
        """Tells how long a lease still lives (TTL -1: it does not), and its keys when asked."""
        return await self.call(methods.LEASE_TIME_TO_LIVE, rpc.LeaseTimeToLiveRequest(ID=lease, keys=keys))

    async def leases(self) -> rpc.LeaseLeasesResponse:
        """Lists all leases of the cluster."""
        return await self.call(methods.LEASE_LEASES, rpc.LeaseLeasesRequest())

    # --- election ------------------------------------------------------------------------------------------

    async def campaign(self, name: bytes, lease: int, value: bytes) -> el.CampaignResponse:
        """Etcd's Campaign, on one member and without a deadline: it queues, and its answer proves nothing.

        It is not sent again after any answer, not even one that refuses the auth token, which may have ended while the
        campaign waited: a second one would write `value` over whatever the key has by then.
        """
        request = el.CampaignRequest(name=name, lease=lease, value=value)
        return await self.call(methods.CAMPAIGN, request, repeat=Repeat.UNSENT, timeout_s=float("inf"))

    async def proclaim(self, leader: el.LeaderKey, value: bytes) -> el.ProclaimResponse:
        """Etcd's Proclaim: a compare-and-set on the key's create revision; repeating it is harmless."""
        return await self.call(methods.PROCLAIM, el.ProclaimRequest(leader=leader, value=value))

    async def leader(self, name: bytes) -> el.LeaderResponse:
        """Etcd's Leader: the oldest key; raises EtcdError when there is none."""
        return await self.call(methods.LEADER, el.LeaderRequest(name=name))

    async def resign(self, leader: el.LeaderKey) -> el.ResignResponse:
        """Etcd's Resign. It answers OK to somebody who does not hold the key, too: read back."""
        return await self.call(methods.RESIGN, el.ResignRequest(leader=leader))

    # --- cluster -------------------------------------------------------------------------------------------

    async def status(self, member: int) -> rpc.StatusResponse:
        """The state of one member, by its index among the endpoints."""
        timeout_s = self.config.attempt_timeout_s
        try:
            return await self._transport.unary(
                member, methods.STATUS, rpc.StatusRequest(), timeout_s=timeout_s, metadata=await self._metadata()
            )
        except RpcFailed as failure:
            raise error_from(failure, self._asked(member), wrote=False) from None

    async def approach_leader(self) -> bool:
        """Lets calls go to the member that leads in etcd, where that can be told at once; does nothing otherwise.

        Returns whether they go there. The leader answers renewals and proposes writes itself, so these depend on no
        other member, and its watches are the first to hear. One status of each member, none through raft; one that
        hangs is waited for no longer than _APPROACH_S.
        """
        asking = [asyncio.create_task(self.status(member)) for member in range(len(self._transport.endpoints))]
        try:
            await asyncio.wait(asking, timeout=_APPROACH_S)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
        found = {number: task.result() for number, task in enumerate(asking) if not _failed(task)}
        newest = max(found.values(), key=lambda status: status.raftTerm, default=None)
        for number, status in found.items():
            if newest is not None and status.header.member_id == newest.leader:
                self._member = number
                return True
        return False

    # --- the way of every call -----------------------------------------------------------------------------

    async def call(
        self,
        method: Method[Req, Resp],
        request: Req,
        *,
        repeat: Repeat = Repeat.SAFE,
        timeout_s: float | None = None,
    ) -> Resp:
        """One call with one deadline, on as many members as it takes and `repeat` allows.

        `timeout_s` bounds all attempts together (`config.call_timeout_s` where it is None; infinity for none).
        """
        budget_s = self.config.call_timeout_s if timeout_s is None else timeout_s
        give_up_at_s = self.clock.now_s() + budget_s
        authenticated = False
        error: EtcdError
        for attempt in range(1_000):  # the deadline ends it; the number is there so that nothing loops for ever
            if attempt >= len(self._transport.endpoints):
                await self.clock.sleep_s(min(0.05 * attempt, 0.25))
            remaining_s = give_up_at_s - self.clock.now_s()
            if attempt and remaining_s < _LEAST_ATTEMPT_S:
                break  # an attempt that can only time out would hide why the others failed
            attempt_s = min(remaining_s, self.config.attempt_timeout_s) if repeat is Repeat.SAFE else remaining_s
            try:
                metadata = await self._metadata()
            except EtcdUnavailable as nobody_asked:
                error = nobody_asked
                continue
            member, token = self._member, self._token
            try:
                return await self._attempt(member, method, request, max(attempt_s, 0.001), metadata)
            except RpcFailed as failure:
                asked = self._asked(member, methods.keys_of(request))
                error, remedy = error_from(failure, asked, wrote=repeat is not Repeat.SAFE), remedy_for(failure)
                if failure.code is StatusCode.DEADLINE_EXCEEDED:
                    self.fell_silent(member)
            over = self.clock.now_s() >= give_up_at_s
            may_begin_anew = repeat is not Repeat.UNSENT and not over
            if remedy is Remedy.AUTHENTICATE and self.config.user is not None and not authenticated and may_begin_anew:
                authenticated = True
                if self._token == token:
                    self.drop_token()
                continue
            if remedy in (Remedy.OTHER_MEMBER, Remedy.OTHER_MEMBER_SURELY, Remedy.UNSENT):
                self.avoid(member)
            if over or remedy not in _REPEATED[repeat]:
                break
        raise error

    async def _attempt(
        self, member: int, method: Method[Req, Resp], request: Req, timeout_s: float, metadata: Metadata
    ) -> Resp:
        limit_s = None if timeout_s == float("inf") else timeout_s
        answer = await self._transport.unary(member, method, request, timeout_s=limit_s, metadata=metadata)
        self.note(answer)
        return answer

    async def open(self, method: Method[Req, Resp]) -> tuple[int, Stream[Req, Resp]]:
        """Opens a stream on the member that is used at present; returns the member, for `avoid`.

        The member ends the stream with UNAVAILABLE when it has had no leader for three election timeouts
        (metadata `hasleader`); a member that hangs says nothing, so readers bound their waits.
        """
        metadata = (*await self._metadata(), ("hasleader", "true"))
        return self._member, self._transport.stream(self._member, method, metadata=metadata)

    def stream_error(self, failure: RpcFailed, member: int, keys: Sequence[bytes] = ()) -> EtcdError | None:
        """The error to raise for a broken stream, or None when opening it again, elsewhere, may help.

        `keys` are those that the stream was to read; an error tells them when etcd does not permit it.
        """
        remedy = remedy_for(failure)
        if remedy is Remedy.GIVE_UP or (remedy is Remedy.AUTHENTICATE and self.config.user is None):
            return error_from(failure, self._asked(member, keys), wrote=False)
        if remedy is Remedy.AUTHENTICATE:
            self.drop_token()
        else:
            self.avoid(member)
        return None

    def drop_token(self) -> None:
        """Gets a new auth token for the next call."""
        self._token = None

    def fell_silent(self, member: int) -> None:
        """The member does not answer: avoids it, and gets a new auth token, unless the present one is quite new.

        An etcd that was restored from a snapshot does not refuse the tokens of before: it waits until its index is
        theirs, so that nothing is ever answered (etcd: server/auth/store.go, isValidSimpleToken).
        """
        self.avoid(member)
        if self.clock.now_s() - self._token_at_s > _TOKEN_IS_NEW_S:
            self.drop_token()

    def avoid(self, member: int) -> None:
        """Uses the next member from now on, unless somebody has moved on already."""
        if self._member == member:
            self._member = (member + 1) % len(self._transport.endpoints)

    def note(self, answer: Any) -> None:
        """Remembers the raft term of an answer."""
        self._raft_term = max(self._raft_term, answer.header.raft_term)

    async def _authenticate(self) -> None:
        """Gets an auth token, unless somebody else has just got one."""
        async with self._token_lock:
            if self._token is not None:
                return
            request = rpc.AuthenticateRequest(name=self.config.user or "", password=self.config.password or "")
            for _ in self._transport.endpoints:
                member = self._member
                try:
                    answer = await self._transport.unary(
                        member, methods.AUTHENTICATE, request, timeout_s=self.config.attempt_timeout_s, metadata=()
                    )
                except RpcFailed as failed:
                    failure = failed
                    if failure.code is StatusCode.INVALID_ARGUMENT or "authentication" in failure.details:
                        break
                    self.avoid(member)
                else:
                    self._token, self._token_at_s = answer.token, self.clock.now_s()
                    return
            raise error_from(failure, self._asked(member), wrote=False)

    def _asked(self, member: int, keys: Sequence[bytes] = ()) -> Asked:
        return Asked(self._transport.endpoints[member], self.config.user, keys)

    async def _metadata(self) -> Metadata:
        if self.config.user is None:
            return ()
        if self._token is None:
            await self._authenticate()
        return (("token", self._token or ""),)


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
