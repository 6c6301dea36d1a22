"""The way between the processes of the explorer and etcd: it goes on while a process is stopped, and has weather.

What a process has sent arrives although the process is stopped, or has given the call up; what arrives for a process
that is stopped waits in its socket, and can be read when the process goes on, also when the link is cut by then.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any, cast

from google.protobuf.message import Message
from grpc import StatusCode

from election.etcd import methods
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import Metadata, RpcFailed, Stream
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.etcd import FakeEtcd, MemberState
from tests.fake.streams import FakeStream
from tests.fake.transport import FakeTransport
from tests.simulation.processes import Process
from tests.simulation.weather import CLEAR, Moment

_HANGS_S = 60.0
_APART_S = 1e-6


class Way(FakeTransport):
    """The links of one process to all members."""

    def __init__(
        self, etcd: FakeEtcd, process: Process, rng: random.Random, network: contextvars.Context, *, latency_s: float
    ) -> None:
        super().__init__(etcd, latency_s=latency_s)
        self.weather = CLEAR
        self.network = network
        self.process = process
        self.lasts_until_s: dict[int, float] = {}
        """Until when etcd has told the process that leases last at least."""
        self._rng = rng
        self._over = False
        self._stop: tuple[Moment, Callable[[], None]] | None = None

    def stop_at(self, moment: Moment, stop: Callable[[], None]) -> None:
        """Stops the process when that moment comes."""
        self._stop = (moment, stop)

    def clear(self) -> None:
        """Everything passes again, and nobody is stopped any more."""
        self.weather = CLEAR
        self._stop = None
        self.mend()

    def end(self) -> None:
        """The run is over: every call fails, and it is no use to repeat it."""
        self._over = True
        self.break_off()

    def break_off(self) -> None:
        """The process is gone, and with it its connections."""
        self._closed = True
        for stream in list(self._streams):
            stream.cancel()
        self._notice()

    async def sends(self, method: Method[Any, Any], message: Message, *, sent: bool) -> None:
        """The process sends something, or has sent it: it may be stopped here."""
        if self._stop is not None and self._stop[0].fits(method, message, sent=sent):
            _, stop = self._stop
            self._stop = None
            stop()
            await asyncio.sleep(0)

    def delay_s(self, method: Method[Any, Any]) -> float:
        """How long a message takes."""
        slow_s = self.weather.slow_s
        if method.path == methods.WATCH.path:
            slow_s = max(slow_s, self.weather.watch_slow_s)
        return self.latency_s + slow_s * self._rng.random() if slow_s else self.latency_s

    def breaks(self) -> bool:
        """Whether a stream breaks at this message."""
        return bool(self.weather.broken) and self._rng.random() < self.weather.broken

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        """One request, one answer; the request goes on its way whatever becomes of the process."""
        del metadata
        if self._over:
            raise RpcFailed(StatusCode.FAILED_PRECONDITION, "the run is over")
        await self.sends(method, request, sent=False)
        loop = asyncio.get_running_loop()
        asked_at_s = loop.time()
        call = loop.create_task(self._unary(member, method, deepcopy(request)), context=self.network)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await self.sends(method, request, sent=True)
                answer = await asyncio.shield(call)
                if isinstance(answer, rpc.LeaseTimeToLiveResponse):
                    self.lasts_until_s[answer.ID] = max(asked_at_s + answer.TTL, self.lasts_until_s.get(answer.ID, 0.0))
                return cast("Resp", answer)
        except TimeoutError:
            if limit.expired():
                raise statuses.DEADLINE_EXCEEDED.error() from None
            raise
        finally:
            if not call.done() and (method.path == methods.CAMPAIGN.path or not self.weather.slow_s):
                call.cancel()

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        """Opens a stream."""
        stream = WayStream[Req, Resp](self, member, method, needs_leader=("hasleader", "true") in metadata)
        self._streams[stream] = None
        return stream

    async def before(self, member: int, method: Method[Any, Any], request: Message) -> None:
        """What a request goes through before the member sees it."""
        if self._closed:
            raise statuses.CHANNEL_CLOSED.error()
        await asyncio.sleep(self.delay_s(method))
        if self.weather is CLEAR or method.path == methods.CAMPAIGN.path:
            return
        if self._rng.random() < self.weather.refused:
            raise statuses.NO_LEADER.error()
        if self._rng.random() < self.weather.lost:
            raise statuses.SOCKET_CLOSED.error()
        if self._rng.random() < self.weather.twice and self.hears(member) and self.etcd.has_leader(member):
            with suppress(RpcFailed):
                self.execute(member, method, request)

    async def after(self, member: int, method: Method[Any, Any], answer: Message) -> None:
        """What an answer goes through before it is in the process's socket."""
        del member, answer
        await asyncio.sleep(self.delay_s(method))
        if self.weather is not CLEAR and self._rng.random() < self.weather.unanswered:
            if self._rng.random() < 0.5 and method.path != methods.CAMPAIGN.path:
                await asyncio.sleep(_HANGS_S)
            raise statuses.SOCKET_CLOSED.error()


class WayStream(FakeStream[Req, Resp]):
    """A stream whose messages are on their way without the process, in order."""

    _transport: Way

    def __init__(self, way: Way, member: int, method: Method[Req, Resp], *, needs_leader: bool) -> None:
        super().__init__(way, member, method, needs_leader=needs_leader)
        self._received: deque[Message] = deque()
        self._sent_until_s = self._served_until_s = 0.0
        self._limit_s: float | None = None

    async def write(self, request: Req) -> None:
        """Sends one message."""
        await self._transport.sends(self._method, request, sent=False)
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise statuses.CHANNEL_CLOSED.error()
        if self._etcd.members[self._member].state is MemberState.DOWN:
            error = statuses.CANNOT_CONNECT.error()
            self._fail(error)
            raise error
        self._sent_until_s = self._pass(self._reach, deepcopy(request), self._sent_until_s)
        await self._transport.sends(self._method, request, sent=True)

    async def read(self) -> Resp | None:
        """The next message. Cancelling it ends the stream."""
        try:
            while not self._received:
                if self._cancelled:
                    raise asyncio.CancelledError
                if self._error is not None:
                    raise self._error
                if self._etcd.members[self._member].state is MemberState.DOWN:
                    raise statuses.CANNOT_CONNECT.error()
                await self._wait()
            return cast("Resp", self._received.popleft())
        except asyncio.CancelledError:
            self.cancel()
            raise
        except RpcFailed as failed:
            self._fail(failed)
            raise

    def _pass(self, arrive: Callable[[Message], None], message: Message, not_before_s: float) -> float:
        loop = asyncio.get_running_loop()
        at_s = max(
            loop.time() + self._transport.delay_s(self._method), not_before_s + _APART_S
        )  # timers of one time have no order
        loop.call_at(at_s, arrive, message, context=self._transport.network)
        return at_s

    def _reach(self, message: Message) -> None:
        if self._ended:
            return
        if self._transport.breaks():
            self._fail(statuses.SOCKET_CLOSED.error())
            return
        self._requests.append(message)
        self._notice()

    def _send(self, answer: Message) -> None:
        self._served_until_s = self._pass(self._arrive, answer, self._served_until_s)

    def _arrive(self, answer: Message) -> None:
        if not self._ended:
            self._answers.append(answer)
            self._take_in()

    def _take_in(self) -> None:
        """What has arrived is in the process's socket, and stays there."""
        if self._answers and self._transport.is_heard(self._member):
            self._received.extend(self._answers)
            self._answers.clear()
            self._came.give()

    def _notice(self) -> None:
        known = self._etcd.members[self._member]
        if known.state is MemberState.DOWN or known.boots != self._boots:
            self._fail(statuses.SOCKET_CLOSED.error())
            return
        self._watch_leader(known.state)
        if not self._serving and self._requests:
            self._serving = True
            self._serve_all()
            self._serving = False
        self._take_in()
        if (limit_s := self._transport.gives_up_at_s(self._member)) != self._limit_s:
            self._limit_s = limit_s
            self._came.give()
