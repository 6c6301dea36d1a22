"""One stream of a session: what is asked on it, and the answers by their numbers."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from election.client.servers import ServerUnavailable
from election.errors import ElectionError
from election.pb.election.v1 import election_pb2 as pb


class Wire(Protocol):
    """What a stream is made of: see `election.client.conversation.Conversation`."""

    async def write(self, request: pb.SessionRequest) -> None:
        """Sends one message."""
        ...

    async def read(self) -> pb.SessionResponse | None:
        """The next message, or None when the server has ended the call."""
        ...

    def cancel(self) -> None:
        """Ends the call."""
        ...

    def failed(self, why: str) -> ServerUnavailable:
        """The error for a server that does not do what it has to; the next one is asked from now on."""
        ...


class SessionStream:
    """A stream that is there until `close`; any number of tasks may ask."""

    def __init__(self, wire: Wire) -> None:
        self.error: ElectionError | None = None
        """Why it can be used no more."""
        self.reading = asyncio.create_task(self._read(), name="session")
        """Done when the stream has ended."""
        self._wire = wire
        self._writing = asyncio.Lock()
        self._sequence = 0
        self._asked: dict[int, asyncio.Future[pb.SessionResponse]] = {}

    @property
    def is_over(self) -> bool:
        """Whether it can be used no more."""
        return self.error is not None

    async def ask(self, limit_s: float, **action: Any) -> pb.SessionResponse:
        """Asks for something, and waits for the answer.

        A server that does not answer within `limit_s` is taken to be hung, and the stream is broken. Cancelling the
        wait leaves open what has become of it.

        Raises:
            ElectionError: what the stream has ended with.
        """
        self._sequence = sequence = self._sequence + 1
        answer: asyncio.Future[pb.SessionResponse] = asyncio.get_running_loop().create_future()
        self._asked[sequence] = answer
        try:
            async with asyncio.timeout(limit_s) as limit:
                async with self._writing:
                    if self.error is None:
                        await self._write(pb.SessionRequest(sequence=sequence, **action))
                if self.error is not None and not answer.done():  # an answer can be faster than the end of its write
                    raise self.error
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            raise self.give_up(f"it has said nothing within {limit_s:.1f} s") from None
        finally:
            self._asked.pop(sequence, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # somebody else was told

    async def _write(self, request: pb.SessionRequest) -> None:
        try:
            await self._wire.write(request)
        except ElectionError:
            await asyncio.wait({self.reading})  # it is told why

    def give_up(self, why: str) -> ServerUnavailable:
        """Breaks the stream, since its server is of no use at present; returns the error that says so."""
        error = self._wire.failed(why)
        self.error = self.error or error
        self._wire.cancel()
        self.reading.cancel()
        return error

    async def close(self) -> None:
        """Ends the stream, and changes nothing."""
        self._wire.cancel()
        self.reading.cancel()
        await asyncio.wait({self.reading})

    async def _read(self) -> None:
        error: ElectionError | None = None
        try:
            while (message := await self._wire.read()) is not None:
                waiting = self._asked.get(message.sequence)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except ElectionError as ended:
            error = ended
        finally:
            self.error = error = self.error or error or self._wire.failed("it has ended the session's stream")
            self._wire.cancel()
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(error)
