"""One client's way to the members of a `FakeEtcd`, and everything that can go wrong on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from enum import Enum
from typing import Any, cast

from google.protobuf.message import Message

from election.etcd import methods
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import Metadata, Stream
from election.pb.etcd import election_pb2 as el
from tests.fake import statuses
from tests.fake.etcd import REQUEST_TIMEOUT_S, FakeEtcd, MemberState
from tests.fake.streams import FakeStream

BeforeCall = Callable[[int, Method[Any, Any], Message], Awaitable[None]]
AfterCall = Callable[[int, Method[Any, Any], Message], Awaitable[None]]

WATCHDOG_S = 15.0
"""gRPC's keepalive, as the real transport sets it, gives up a silent connection after 10 + 5 seconds."""


class Link(Enum):
    """What passes between this client and one member. What does not pass is late, not lost, as with TCP."""

    WHOLE = "everything"
    CUT = "nothing"
    ANSWERS_LOST = "requests"
    REQUESTS_LOST = "answers"

    @property
    def carries_requests(self) -> bool:
        """Whether the member hears the client."""
        return self in (Link.WHOLE, Link.ANSWERS_LOST)

    @property
    def carries_answers(self) -> bool:
        """Whether the client hears the member."""
        return self in (Link.WHOLE, Link.REQUESTS_LOST)


class FakeTransport:
    """A transport to the members of a fake cluster; one for each client.

    `latency_s` is what one message takes in one direction. The hooks are called with the member, the method and the
    message, for calls of one answer and for each message of a stream:

    - `before_call` runs before a member sees a request. It may wait (a slow network), raise RpcFailed (a failure
      that is definite), or call `execute` (the request arrives twice, or arrives although the caller is told
      otherwise).
    - `after_call` runs before the client sees an answer. It may wait, change the answer, or raise RpcFailed (a
      failure that is indefinite: the call was executed).

    A call that is given up before its member has heard it never arrives, unless `arrives_late` says so; then it is
    executed when the member hears the client again.
    """

    def __init__(self, etcd: FakeEtcd, *, latency_s: float = 0.0) -> None:
        self.etcd = etcd
        self.latency_s = latency_s
        self.before_call: BeforeCall | None = None
        self.after_call: AfterCall | None = None
        self.arrives_late: Callable[[Method[Any, Any], Message], bool] | None = None
        self._links = [Link.WHOLE for _ in etcd.members]
        self._silent_since_s: list[float | None] = [None for _ in etcd.members]
        self._late: list[tuple[int, int, Callable[[], object]]] = []
        self._streams: dict[Any, None] = {}
        self._closed = False
        etcd.changed.listen(self._notice)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' addresses."""
        return self.etcd.endpoints

    def set_link(self, member: int, link: Link) -> None:
        """Breaks or mends the way between this client and one member."""
        self._links[member] = link
        self.etcd.changed.give()

    def cut(self, *members: int) -> None:
        """Cuts this client off from the members that are named, or from all."""
        for member in members or range(len(self._links)):
            self.set_link(member, Link.CUT)

    def mend(self) -> None:
        """Lets everything pass again."""
        for member in range(len(self._links)):
            self.set_link(member, Link.WHOLE)

    def execute(self, member: int, method: Method[Any, Any], request: Message) -> Message | None:
        """Executes a call on a member at once, for hooks; the caller's own call is another one."""
        if method.path == methods.CAMPAIGN.path:
            self.etcd.campaign(member, cast("el.CampaignRequest", request))
            return None
        return self.etcd.execute(member, method, request)

    # --- the Transport protocol ----------------------------------------------------------------------------

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        """One request, one answer."""
        del metadata
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return cast("Resp", await self._unary(member, method, deepcopy(request)))
        except TimeoutError:
            if limit.expired():
                raise statuses.DEADLINE_EXCEEDED.error() from None
            raise

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        """Opens a stream."""
        stream = FakeStream[Req, Resp](self, member, method, needs_leader=("hasleader", "true") in metadata)
        self._streams[stream] = None
        return stream

    async def close(self) -> None:
        """Ends all streams; calls that are made afterwards fail."""
        self._closed = True
        for stream in list(self._streams):
            stream.cancel()
        self._notice()
        self.etcd.changed.give()

    # --- the way of a call ---------------------------------------------------------------------------------

    async def _unary(self, member: int, method: Method[Any, Any], request: Message) -> Message:
        boots = self.etcd.members[member].boots
        await self.before(member, method, request)
        if self.etcd.members[member].state is MemberState.DOWN:
            raise statuses.CANNOT_CONNECT.error()
        try:
            await self._until(member, boots, lambda: self.hears(member))
        except BaseException:
            if self.arrives_late is not None and self.arrives_late(method, request):
                self.when_heard(member, boots, lambda: self.execute(member, method, request))
            raise
        if not self.etcd.is_local(method, request):
            await self._consensus(member, boots, method)
        if method.path == methods.CAMPAIGN.path:
            return await self._campaign(member, boots, cast("el.CampaignRequest", request))
        answer = self.etcd.execute(member, method, request)
        return await self._deliver(member, boots, method, answer)

    async def _campaign(self, member: int, boots: int, request: el.CampaignRequest) -> Message:
        campaign = self.etcd.campaign(member, request)
        try:
            await self._until(member, boots, lambda: campaign.over and self.is_heard(member))
            if campaign.answer is None:
                raise campaign.error or statuses.SOCKET_CLOSED.error()
            return await self._deliver(member, boots, methods.CAMPAIGN, campaign.answer)
        except BaseException:
            self.when_heard(member, boots, lambda: self.etcd.cancel_campaign(campaign))
            raise

    async def _deliver(self, member: int, boots: int, method: Method[Any, Any], answer: Message) -> Message:
        await self.after(member, method, answer)
        await self._until(member, boots, lambda: self.is_heard(member))
        return answer

    async def before(self, member: int, method: Method[Any, Any], request: Message) -> None:
        """What a request goes through before the member sees it."""
        if self._closed:
            raise statuses.CHANNEL_CLOSED.error()
        await asyncio.sleep(self.latency_s)
        if self.before_call is not None:
            await self.before_call(member, method, request)

    async def after(self, member: int, method: Method[Any, Any], answer: Message) -> None:
        """What an answer goes through before the client sees it."""
        await asyncio.sleep(self.latency_s)
        if self.after_call is not None:
            await self.after_call(member, method, answer)

    def hears(self, member: int) -> bool:
        """Whether the member gets what this client sends."""
        state = self.etcd.members[member].state
        return state in (MemberState.UP, MemberState.ISOLATED) and self._links[member].carries_requests

    def is_heard(self, member: int) -> bool:
        """Whether this client gets what the member sends."""
        state = self.etcd.members[member].state
        return state in (MemberState.UP, MemberState.ISOLATED) and self._links[member].carries_answers

    def gives_up_at_s(self, member: int) -> float | None:
        """When gRPC declares the connection dead, on the loop's time; None while it is alive."""
        since_s = self._silent_since_s[member]
        return None if since_s is None else since_s + WATCHDOG_S

    def when_heard(self, member: int, boots: int, action: Callable[[], object]) -> None:
        """Lets something happen on the member as soon as it hears this client; never, if it is killed first."""
        self._late.append((member, boots, action))
        self._notice()

    def forget(self, stream: object) -> None:
        """A stream has ended."""
        self._streams.pop(stream, None)

    async def _until(self, member: int, boots: int, reached: Callable[[], bool]) -> None:
        """Waits for something that depends on the member, for as long as the connection lives."""
        while True:
            if self._closed:
                raise statuses.CHANNEL_CLOSED.error()
            if self.etcd.members[member].boots != boots or self.etcd.members[member].state is MemberState.DOWN:
                raise statuses.SOCKET_CLOSED.error()
            if reached():
                return
            try:
                async with asyncio.timeout_at(self.gives_up_at_s(member)):
                    await self.etcd.changed.wait()
            except TimeoutError:
                raise statuses.WATCHDOG.error() from None

    async def _consensus(self, member: int, boots: int, method: Method[Any, Any]) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S) as limit:
                await self._until(member, boots, lambda: self.etcd.has_leader(member))
        except TimeoutError:
            if not limit.expired():
                raise
            await self._until(member, boots, lambda: self.is_heard(member))
            failed = statuses.TIMED_OUT.error()
            raise statuses.as_unknown(failed) if method.path.startswith("/v3electionpb.") else failed from None

    def _notice(self) -> None:
        """Something has changed: keeps the time since when a member is silent, and delivers what was late."""
        now_s = asyncio.get_running_loop().time()
        for member in range(len(self._links)):
            if self.hears(member) and self.is_heard(member):
                self._silent_since_s[member] = None
            elif self._silent_since_s[member] is None:
                self._silent_since_s[member] = now_s
        late, self._late = self._late, []
        for entry in late:
            member, boots, action = entry
            if self.etcd.members[member].boots != boots or self.etcd.members[member].state is MemberState.DOWN:
                continue
            if self.hears(member):
                action()
            else:
                self._late.append(entry)
