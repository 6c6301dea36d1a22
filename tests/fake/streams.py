"""Watch and keepalive streams between one client and one member."""

from __future__ import annotations

import asyncio
from collections import deque
from copy import deepcopy
from typing import TYPE_CHECKING, Generic, cast

from google.protobuf.message import Message

from election.etcd import methods
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import RpcFailed
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.etcd import REQUEST_TIMEOUT_S, MemberState
from tests.fake.notice import Notice
from tests.fake.watches import WatchSession

if TYPE_CHECKING:
    from tests.fake.transport import FakeTransport

_ELECTION_TIMEOUTS_WITHOUT_LEADER = 3


class FakeStream(Generic[Req, Resp]):
    """One stream. The member serves its messages one after the other, as soon as it hears them."""

    def __init__(self, transport: FakeTransport, member: int, method: Method[Req, Resp], *, needs_leader: bool) -> None:
        self._transport = transport
        self._etcd = transport.etcd
        self._member = member
        self._method = method
        self._needs_leader = needs_leader
        self._boots = self._etcd.members[member].boots
        self._requests: deque[Message] = deque()
        self._answers: deque[Message] = deque()
        self._watch: WatchSession | None = None
        self._error: RpcFailed | None = None
        self._cancelled = False
        self._serving = False
        self._came = Notice()
        self._no_leader: asyncio.TimerHandle | None = None
        self._unserved: asyncio.TimerHandle | None = None
        self._etcd.changed.listen(self._notice)

    async def write(self, request: Req) -> None:
        """Sends one message. It may wait on the way; that does not show here."""
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise statuses.CHANNEL_CLOSED.error()
        if self._etcd.members[self._member].state is MemberState.DOWN:
            self._fail(statuses.CANNOT_CONNECT.error())
        message = deepcopy(request)
        try:
            await self._transport.before(self._member, self._method, message)
        except RpcFailed as failed:
            self._fail(failed)
        if self._error is not None:
            raise self._error
        self._requests.append(message)
        self._notice()

    async def read(self) -> Resp | None:
        """The next message. Cancelling it ends the stream."""
        try:
            while True:
                if self._etcd.members[self._member].state is MemberState.DOWN:
                    self._fail(statuses.CANNOT_CONNECT.error())
                if self._cancelled:
                    raise asyncio.CancelledError
                if self._answers and self._transport.is_heard(self._member):
                    answer = self._answers.popleft()
                    await self._transport.after(self._member, self._method, answer)
                    return cast("Resp", answer)
                if self._error is not None:
                    raise self._error
                await self._wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        except RpcFailed as failed:
            self._fail(failed)
            raise

    def cancel(self) -> None:
        """Ends the stream."""
        self._cancelled = True
        self._end()

    async def _wait(self) -> None:
        """Waits for something to read; gRPC's keepalive ends a connection that is silent for too long."""
        try:
            async with asyncio.timeout_at(self._transport.gives_up_at_s(self._member)):
                await self._came.wait()
        except TimeoutError:
            raise statuses.WATCHDOG.error() from None

    def _notice(self) -> None:
        """Something has changed: serves what can be served now, and notices when the member is lost."""
        known = self._etcd.members[self._member]
        if known.state is MemberState.DOWN or known.boots != self._boots:
            self._fail(statuses.SOCKET_CLOSED.error())
        self._watch_leader(known.state)
        if not self._serving:  # serving a message can itself change something
            self._serving = True
            self._serve_all()
            self._serving = False
        self._came.give()

    @property
    def _ended(self) -> bool:
        return self._cancelled or self._error is not None

    def _serve_all(self) -> None:
        while self._requests and self._transport.hears(self._member) and not self._ended:
            if not self._serve(self._requests[0]):
                self._limit_serving()
                break
            self._requests.popleft()
            self._unlimit_serving()

    def _serve(self, request: Message) -> bool:
        if self._method.path == methods.WATCH.path:
            if self._watch is None:
                self._watch = self._etcd.open_watch(self._member, self._send)
            self._watch.handle(cast("rpc.WatchRequest", request))
            return True
        answer = self._etcd.renew(self._member, cast("rpc.LeaseKeepAliveRequest", request))
        if answer is None:
            return False
        self._send(answer)
        return True

    def _send(self, answer: Message) -> None:
        self._answers.append(answer)
        self._came.give()

    def _watch_leader(self, state: MemberState) -> None:
        """A member ends a stream that asks for it when it has had no leader for three election timeouts."""
        leaderless = state is MemberState.ISOLATED or not self._etcd.has_quorum
        if leaderless and self._needs_leader and self._no_leader is None and not self._ended:
            limit_s = _ELECTION_TIMEOUTS_WITHOUT_LEADER * self._etcd.election_timeout_s
            self._no_leader = self._later(limit_s, statuses.NO_LEADER.error())
        elif not leaderless and self._no_leader is not None:
            self._no_leader.cancel()
            self._no_leader = None

    def _limit_serving(self) -> None:
        """A renewal without a quorum fails after etcd's own request timeout."""
        if self._unserved is None:
            self._unserved = self._later(REQUEST_TIMEOUT_S, statuses.TIMED_OUT.error())

    def _unlimit_serving(self) -> None:
        if self._unserved is not None:
            self._unserved.cancel()
            self._unserved = None

    def _later(self, delay_s: float, error: RpcFailed) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, self._fail, error)

    def _fail(self, error: RpcFailed) -> None:
        if self._error is None and not self._cancelled:
            self._error = error
            self._end()

    def _end(self) -> None:
        self._etcd.changed.ignore(self._notice)
        self._transport.forget(self)
        if self._watch is not None:
            self._etcd.close_watch(self._watch)
        for timer in (self._no_leader, self._unserved):
            if timer is not None:
                timer.cancel()
        self._came.give()
