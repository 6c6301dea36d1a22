"""One call of `Elections.Campaign`, as the caller has it: when it sent which message, and what came back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from election.client.conversation import Conversation
from election.client.servers import Servers
from election.clock import Clock
from election.errors import ElectionError
from election.pb.election.v1 import election_pb2 as pb

Call = Conversation[pb.CampaignRequest, pb.CampaignResponse]


class CampaignCall:
    """Open inside `opened`, and used once. `beat_s` is the longest time between two messages to the server.

    Two tasks write and read, and are cancelled by nobody else: gRPC ends a call whose read or write is cancelled.
    """

    def __init__(self, servers: Servers, converse: Callable[[], Call], clock: Clock, beat_s: float) -> None:
        self.heard = False
        """Whether the server has answered anything."""
        self._servers = servers
        self._converse = converse
        self._clock = clock
        self._beat_s = beat_s
        self._call: Call | None = None
        self._outgoing: asyncio.Queue[pb.CampaignRequest] = asyncio.Queue()
        self._incoming: asyncio.Queue[tuple[pb.CampaignResponse, float] | ElectionError] = asyncio.Queue()
        self._sent_at_s: dict[int, float] = {}

    @asynccontextmanager
    async def opened(self, stand: pb.CampaignRequest.Stand) -> AsyncGenerator[None]:
        """Stands, and resigns at the end of the block, when no work may run any more.

        It ends when the server has released the key, or has not done so within the call timeout.
        """
        call = self._call = self._converse()
        self.say(pb.CampaignRequest(stand=stand))
        writing = asyncio.create_task(self._write(call))
        reading = asyncio.create_task(self._read(call))
        try:
            yield
        finally:
            try:
                self.say(pb.CampaignRequest(resign=pb.CampaignRequest.Resign()))
                await asyncio.wait({reading}, timeout=self._servers.call_timeout_s)
            finally:
                call.cancel()
                writing.cancel()
                reading.cancel()
                await asyncio.wait({writing, reading})

    def say(self, message: pb.CampaignRequest) -> None:
        """Sends a message soon; every one is a heartbeat, and is answered."""
        self._outgoing.put_nowait(message)

    async def answer(self) -> tuple[pb.CampaignResponse, float]:
        """The next answer, and when the message was sent that it counts from.

        Raises:
            ServerUnavailable: the server is gone, or does not answer heartbeats; another one may do better.
            ElectionError: what the server has ended the call for.
        """
        assert self._call is not None
        try:
            async with asyncio.timeout(self._beat_s + self._servers.attempt_timeout_s):
                came = await self._incoming.get()
        except TimeoutError:
            raise self._call.failed("it does not answer heartbeats") from None
        if isinstance(came, ElectionError):
            raise came
        return came

    async def _write(self, call: Call) -> None:
        sequence = 0
        while True:
            try:
                async with asyncio.timeout(self._beat_s):
                    message = await self._outgoing.get()
            except TimeoutError:
                message = pb.CampaignRequest(heartbeat=pb.CampaignRequest.Heartbeat())
            sequence += 1
            message.sequence = sequence
            self._sent_at_s[sequence] = self._clock.now_s()  # before it is written
            try:
                await call.write(message)
            except ElectionError:
                return  # the reader hears why

    async def _read(self, call: Call) -> None:
        try:
            while (answer := await call.read()) is not None:
                self.heard = True
                for earlier in [each for each in self._sent_at_s if each < answer.sequence]:
                    del self._sent_at_s[earlier]
                if answer.sequence not in self._sent_at_s:
                    raise call.failed(f"it answers message {answer.sequence}, which was not sent")
                self._incoming.put_nowait((answer, self._sent_at_s[answer.sequence]))
        except ElectionError as error:
            self._incoming.put_nowait(error)
        else:
            self._incoming.put_nowait(ElectionError("the server has ended the campaign"))
