"""Servers of the API in virtual time, without sockets: sessions on machines of their own, and the ways to them."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from grpc import StatusCode

from election.api.statuses import error_from, info_in, status_of
from election.client.servers import ServerUnavailable
from election.client.session import Session
from election.clock import Clock
from election.config import AgentConfig
from election.errors import ElectionError
from election.etcd.renewer import Renewer
from election.pb.election.v1 import election_pb2 as pb
from election.server.sessions import Sessions
from election.views import View
from tests.fake.clock import VirtualClock
from tests.fake.notice import Notice
from tests.simulation.world import KEYS, Machine, World

_ELSEWHERE = {StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.UNKNOWN}

Hook = Callable[[pb.SessionResponse], Awaitable[None]]


@dataclass
class Hall:
    """A server. While it is `paused` it does nothing, and what reaches it waits; while it is `down` it is not there."""

    machine: Machine
    sessions: Sessions
    paused: bool = False
    down: bool = False
    changed: Notice = field(default_factory=Notice)
    lines: set[Line] = field(default_factory=set)
    before_answer: Hook | None = None
    """Runs before an answer leaves the server; it may wait, or raise ElectionError, which breaks the stream."""

    def kill(self) -> None:
        """Ends the process: nobody is told anything, and all connections break."""
        self.down = True
        for line in tuple(self.lines):
            line.cut()
        self.changed.give()

    def pause(self) -> None:
        """Stops the process."""
        self.paused = True

    def resume(self) -> None:
        """Starts it again, or lets it go on."""
        self.paused = self.down = False
        self.changed.give()

    async def awake(self) -> None:
        """Waits while it is paused."""
        while self.paused:
            await self.changed.wait()


@dataclass(eq=False)
class Line:
    """One stream between a client and a server; a `Wire`."""

    hall: Hall
    hosts: Hosts
    number: int
    requests: deque[pb.SessionRequest | None] = field(default_factory=deque)
    answers: deque[pb.SessionResponse | ElectionError | None] = field(default_factory=deque)
    came: Notice = field(default_factory=Notice)
    serving: asyncio.Task[None] | None = None
    over: bool = False

    async def write(self, request: pb.SessionRequest) -> None:
        if self.hall.down or self.over:
            raise self.failed("it is down")
        await asyncio.sleep(self.hosts.latency_s)
        self.requests.append(deepcopy(request))
        if self.serving is None:
            self.hall.lines.add(self)
            self.serving = asyncio.create_task(self._serve())
        self.came.give()

    async def read(self) -> pb.SessionResponse | None:
        if self.hall.down:
            raise self.failed("it is down")
        while not self.answers:
            await self.came.wait()
        await asyncio.sleep(self.hosts.latency_s)
        answer = self.answers.popleft()
        if isinstance(answer, ServerUnavailable):
            raise self.failed(str(answer))
        if isinstance(answer, ElectionError):
            raise answer
        return answer

    def cancel(self) -> None:
        """The server notices when it is not paused."""
        if not self.over and self.serving is not None and not self.serving.done():
            self.over = True
            asyncio.get_running_loop().call_soon(self._abandon)

    def failed(self, why: str) -> ServerUnavailable:
        self.hosts.avoid(self.number)
        return ServerUnavailable(why)

    def cut(self) -> None:
        """The process of the server is gone."""
        if self.serving is not None:
            self.serving.cancel()
        self._say(ServerUnavailable("the connection is broken"))

    def _abandon(self) -> None:
        if self.hall.paused:  # it reads what has come first, and then that the caller has gone
            asyncio.get_running_loop().call_later(0.05, self._abandon)
        elif self.serving is not None:
            self.serving.cancel()

    def _say(self, answer: pb.SessionResponse | ElectionError | None) -> None:
        self.answers.append(answer)
        self.came.give()

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        while True:
            while not self.requests:
                await self.came.wait()
            await self.hall.awake()
            request = self.requests.popleft()
            if request is None:
                return
            yield request

    async def _serve(self) -> None:
        try:
            async with aclosing(self.hall.sessions.serve(self._requests())) as answers:
                async for answer in answers:
                    if self.hall.before_answer is not None:
                        await self.hall.before_answer(answer)
                    await self.hall.awake()
                    self._say(answer)
            self._say(None)
        except ElectionError as error:
            await self.hall.awake()
            code, text, metadata = status_of(error)
            self._say(ServerUnavailable(text) if code in _ELSEWHERE else error_from(code, text, *info_in(metadata)))
        finally:
            self.hall.lines.discard(self)


@dataclass
class Hosts:
    """The servers as one client sees them: what `Servers` is to a real one."""

    halls: list[Hall]
    clock: Clock
    rng: random.Random
    call_timeout_s: float = 5.0
    attempt_timeout_s: float = 2.0
    latency_s: float = 0.001
    current: int = 0

    def call(self) -> Line:
        return Line(self.halls[self.current], self, self.current)

    def avoid(self, number: int) -> None:
        if self.current == number:
            self.current = (number + 1) % len(self.halls)

    def session(self, id: str = "w", *, config: AgentConfig | None = None, **more: Any) -> Session:
        return Session(self, self.call, id, config=config, **more)


@asynccontextmanager
async def hall_in(here: World) -> AsyncGenerator[Hall]:
    """A server on a machine of its own, which calls etcd only while it is not paused."""
    async with here.machine() as machine, AsyncExitStack() as stack:
        renewer = await stack.enter_async_context(Renewer(machine.client))
        view = await stack.enter_async_context(View(machine.client, KEYS, rng=here.rng("view")))
        hall = Hall(machine, Sessions(machine.client, renewer, KEYS, view))

        async def wait(*_: object) -> None:
            await hall.awake()

        machine.transport.before_call = machine.transport.after_call = wait
        try:
            yield hall
        finally:
            hall.resume()
            hall.kill()
            tasks = {line.serving for line in hall.lines if line.serving is not None}
            if tasks:
                await asyncio.wait(tasks)


@asynccontextmanager
async def halls_in(here: World, number: int = 2, *, rate: float = 1.0) -> AsyncGenerator[Hosts]:
    """Several servers, and a client whose clock has a rate of its own."""
    async with AsyncExitStack() as stack:
        halls = [await stack.enter_async_context(hall_in(here)) for _ in range(number)]
        yield Hosts(halls, VirtualClock(rate=rate), here.rng("client"))
