"""Callers of `Elections.Campaign` in virtual time: the real client and the real server, and a link in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import grpc

from election.api.statuses import Status, error_from, reason_in, status_of
from election.client.conversation import Conversation
from election.client.servers import Servers, ServerUnavailable
from election.clock import Clock
from election.errors import ElectionError
from election.keys import Keyspace
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Source
from election.server.campaigns import Campaigns
from election.store import Store
from tests.simulation.world import Machine

BROKEN = Status(grpc.StatusCode.UNAVAILABLE, "the connection is gone")
_APART_S = 1e-6
"""Two timers of one moment may ring in either order."""


@dataclass
class Replica:
    """A server of the API on a machine of its own."""

    machine: Machine
    campaigns: Campaigns

    @classmethod
    def on(cls, machine: Machine, keyspace: Keyspace, rng: random.Random) -> Replica:
        """One that uses the machine's client of etcd."""
        store = Store(machine.client.config, keyspace.namespace, clock=machine.clock, rng=rng)
        store._client = machine.client
        store._watchdog = cast("Any", None)  # its thread has no virtual time
        reader = SimpleNamespace(namespace=keyspace.namespace, source=lambda: Source(1, 1, 0.0))
        return cls(machine, Campaigns(store, cast("Any", reader)))


@dataclass
class Link:
    """Carries messages in order, each with a delay of its own, and can hold them up."""

    rng: random.Random
    longest_s: float = 0.05
    held_until_s: float = 0.0
    last_s: float = 0.0

    async def carry(self) -> None:
        """Takes as long as a message takes; those of one direction are carried one after the other."""
        now_s = asyncio.get_running_loop().time()
        drawn_s = now_s + self.rng.uniform(0, self.longest_s)
        self.last_s = max(drawn_s, self.held_until_s, self.last_s + _APART_S)
        await asyncio.sleep(self.last_s - now_s)


class Call:
    """A call to a replica, as the caller has it. Messages that are under way when it breaks are lost."""

    def __init__(self, servers: FakeServers, number: int) -> None:
        self._servers, self._number = servers, number
        rng, latency_s = servers.rng, servers.latency_s
        self.up, self.down = Link(rng, latency_s), Link(rng, latency_s)
        self._requests: asyncio.Queue[pb.CampaignRequest | None] = asyncio.Queue()
        self._answers: asyncio.Queue[pb.CampaignResponse | Status | None] = asyncio.Queue()
        self._broken = False
        self._serving = asyncio.create_task(self._serve(servers.replicas[number]))
        self._carrying: set[asyncio.Task[None]] = set()

    async def write(self, message: pb.CampaignRequest) -> None:
        """Sends a message to the replica."""
        if self._broken:
            raise self._error(BROKEN)
        copy = pb.CampaignRequest.FromString(message.SerializeToString())
        self._soon(self.up, self._requests, copy)

    async def read(self) -> Any:
        """The next answer."""
        answer = await self._answers.get()
        if isinstance(answer, Status):
            raise self._error(answer)
        return answer

    def failed(self, why: str) -> ServerUnavailable:
        """The error for a replica that does not do what it has to; the next one is called from now on."""
        self._servers.avoid(self._number)
        return ServerUnavailable(f"replica {self._number}: {why}")

    def _error(self, status: Status) -> ElectionError:
        if status.code is grpc.StatusCode.UNAVAILABLE:
            return self.failed(status.text)
        return error_from(status.code, status.text, reason_in(status.metadata))

    def cancel(self) -> None:
        """The caller wants no more."""
        self.snap()

    def snap(self, *, server_notices: bool = True) -> None:
        """The connection breaks; the replica may not notice."""
        if self._broken:
            return
        self._broken = True
        self._answers.put_nowait(BROKEN)
        if server_notices:
            self._serving.cancel()

    def _soon(self, link: Link, queue: asyncio.Queue[Any], message: object) -> None:
        async def carry() -> None:
            await link.carry()
            if not self._broken:
                queue.put_nowait(message)

        task = asyncio.create_task(carry())
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _serve(self, replica: Replica) -> None:
        async def requests() -> AsyncIterator[pb.CampaignRequest]:
            while (request := await self._requests.get()) is not None:
                yield request

        try:
            answers = replica.campaigns.serve(requests())
            try:
                async for answer in answers:
                    copy = pb.CampaignResponse.FromString(answer.SerializeToString())
                    self._soon(self.down, self._answers, copy)
                self._soon(self.down, self._answers, None)
            finally:
                await answers.aclose()
        except ElectionError as error:
            self._soon(self.down, self._answers, status_of(error))


@dataclass
class FakeServers:
    """Several replicas, to one of which a caller speaks at a time."""

    replicas: list[Replica]
    rng: random.Random
    clock: Clock
    latency_s: float = 0.05
    call_timeout_s: float = 5.0
    attempt_timeout_s: float = 2.0
    calls: list[Call] = field(default_factory=list)
    current: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """One for each replica."""
        return tuple(f"r{number}:1" for number in range(len(self.replicas)))

    def converse(self) -> Conversation[pb.CampaignRequest, pb.CampaignResponse]:
        """A call to the replica that is spoken to at present."""
        self.calls.append(Call(self, self.current))
        return cast("Conversation[pb.CampaignRequest, pb.CampaignResponse]", self.calls[-1])

    def avoid(self, number: int) -> None:
        """Goes on to the next one."""
        if number == self.current:
            self.current = (number + 1) % len(self.replicas)

    def cast(self) -> Servers:
        """As the candidate takes it."""
        return cast("Servers", self)

    async def end(self) -> None:
        """Ends what still runs."""
        for call in self.calls:
            call.snap()
            with suppress(asyncio.CancelledError):
                await call._serving
        for replica in self.replicas:
            await replica.campaigns.close()
