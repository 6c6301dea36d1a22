"""Renewals of leases, one at a time and only when somebody asks for them, over one stream for all.

`KeepAlive` renews by itself what it was given; here nothing is renewed that nobody has asked for. A renewal that was
asked for is sent after that, so whoever asked can count the TTL from when it did.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from election.errors import EtcdError, EtcdUnavailable, LeaseNotFound
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.lease import attempt_s
from election.etcd.transport import RpcFailed, Stream
from election.pb.etcd import rpc_pb2 as rpc

_PAUSE_S = 0.1


class Renewer:
    """Renews leases inside its `async with` block, for any number of tasks.

    etcd serves a stream serially, and a renewal of a lease that has expired and is not revoked yet blocks its stream
    (etcd: server/lease/lessor.go, Renew). So all share one stream but those whose lease may have ended, and those
    whose first attempt has failed: these have one each.
    """

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._shared: _Line | None = None
        self._lines: set[_Line] = set()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in tuple(self._lines):
            await line.close()

    async def renew(self, lease_id: int, *, may_have_ended: bool = False) -> rpc.LeaseKeepAliveResponse:
        """Renews a lease; its answer is etcd's to a request that was sent after this call.

        Cancelling it leaves open whether the lease was renewed.

        Raises:
            LeaseNotFound: the lease has expired or was revoked.
            EtcdError: no member has confirmed it within the client's `call_timeout_s`; it may be renewed all the same.
        """
        clock, failures = self._client.clock, 1 if may_have_ended else 0
        give_up_at_s = clock.now_s() + self._client.config.call_timeout_s
        while (left_s := give_up_at_s - clock.now_s()) > 0:
            limit_s = min(attempt_s(self._client, failures), left_s)
            answer = await (self._on_own_line if failures else self._on_shared_line)(lease_id, limit_s)
            if answer is None:
                failures += 1
                await clock.sleep_s(_PAUSE_S if failures > 1 else 0)
            elif answer.TTL <= 0:
                raise LeaseNotFound(f"lease {lease_id:x} has expired or was revoked")
            else:
                return answer
        raise EtcdUnavailable(f"no member of etcd has renewed lease {lease_id:x} in time")

    async def _on_shared_line(self, lease_id: int, limit_s: float) -> rpc.LeaseKeepAliveResponse | None:
        async with self._opening:
            if self._shared is None or not self._shared.is_open:
                await self._client.approach_leader()  # a follower passes renewals on one after the other
                self._shared = await self._line()
        line = self._shared
        if lease_id in line.asked:  # of two answers, nobody could tell which one is to this request
            return await self._on_own_line(lease_id, limit_s)
        return await line.renew(lease_id, limit_s)

    async def _on_own_line(self, lease_id: int, limit_s: float) -> rpc.LeaseKeepAliveResponse | None:
        line = await self._line()
        try:
            return await line.renew(lease_id, limit_s)
        finally:
            await line.close()

    async def _line(self) -> _Line:
        line = _Line(self._client, *await self._client.open(methods.LEASE_KEEP_ALIVE))
        self._lines.add(line)
        line.reading.add_done_callback(lambda _: self._lines.discard(line))
        return line


class _Line:
    """One stream, and the renewals on it that are not answered, also those that nobody waits for any more."""

    def __init__(
        self, client: EtcdClient, member: int, stream: Stream[rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse]
    ) -> None:
        self.asked: dict[int, asyncio.Future[rpc.LeaseKeepAliveResponse | None]] = {}
        self.reading = asyncio.create_task(self._read(), name="renewals")
        self._client = client
        self._member = member
        self._stream = stream
        self._writing = asyncio.Lock()
        self._sending: set[asyncio.Task[None]] = set()
        self._refusal: EtcdError | None = None

    @property
    def is_open(self) -> bool:
        return not self.reading.done()

    async def renew(self, lease_id: int, limit_s: float) -> rpc.LeaseKeepAliveResponse | None:
        """One renewal; None when this stream will not do it; raises what another stream would be told as well."""
        answer: asyncio.Future[rpc.LeaseKeepAliveResponse | None] = asyncio.get_running_loop().create_future()
        self.asked[lease_id] = answer
        sending = asyncio.create_task(self._send(lease_id, answer), name="renewal")
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        try:
            async with asyncio.timeout(limit_s) as limit:
                found = await answer
        except TimeoutError:
            if not limit.expired():
                raise
            self._client.fell_silent(self._member)
            self._stream.cancel()  # whoever else waits for it tries elsewhere
            self.reading.cancel()
            found = None
        if found is None and self._refusal is not None:
            raise self._refusal
        return found

    async def _send(self, lease_id: int, answer: asyncio.Future[rpc.LeaseKeepAliveResponse | None]) -> None:
        """Sends a request when it is its turn, unless it was given up before.

        It is a task of its own: gRPC ends a stream whose write is cancelled, and others share it.
        """
        with suppress(RpcFailed):  # the reading is told why
            async with self._writing:
                if answer.cancelled():
                    self.asked.pop(lease_id, None)
                    return
                if self.is_open:
                    await self._stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                    return
        if not answer.done():
            answer.set_result(None)

    async def close(self) -> None:
        self.reading.cancel()
        self._stream.cancel()
        for sending in self._sending:
            sending.cancel()
        await asyncio.wait({self.reading, *self._sending})

    async def _read(self) -> None:
        """Takes answers until the stream fails, or its member answers from a raft term that is over."""
        try:
            while (answer := await self._stream.read()) is not None:
                if answer.header.raft_term < self._client.raft_term:
                    break
                self._client.note(answer)
                waiting = self.asked.pop(answer.ID, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            self._client.avoid(self._member)
        except RpcFailed as failure:
            self._refusal = self._client.stream_error(failure, self._member)
        finally:
            self._stream.cancel()
            for waiting in self.asked.values():
                if not waiting.done():
                    waiting.set_result(None)
