"""A call that streams in both directions, to one of several servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import grpc.aio

from election.api.statuses import error_of
from election.bidi import BidiCall
from election.client.servers import ELSEWHERE, Req, Resp, Server, Servers, ServerUnavailable
from election.errors import ElectionError

BothWays = Callable[[Server], grpc.aio.StreamStreamMultiCallable[Req, Resp]]


class Conversation(Generic[Req, Resp]):
    """A call to the server that is asked at present. Use it from one task for each direction.

    Reading and writing raise ServerUnavailable for what may be different on another server, which is asked from then
    on, and else the error that the server has ended the call with. To cancel one of them breaks the call.
    """

    def __init__(self, servers: Servers, method: BothWays[Req, Resp]) -> None:
        self._servers = servers
        self._number, server = servers.present()
        call = method(server)(metadata=servers.metadata())
        server.line.carry(call)
        self._call = BidiCall(call)

    async def write(self, request: Req) -> None:
        """Sends one message."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise self._error_of(error) from None

    async def read(self) -> Resp | None:
        """The next message, or None when the server has ended the call."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._error_of(error) from None

    def cancel(self) -> None:
        """Ends the call; safe at any time, and more than once."""
        self._call.cancel()

    def failed(self, why: str) -> ServerUnavailable:
        """The error for a server that does not do what it has to; the next one is asked from now on."""
        return self._servers.failed(self._number, why)

    def _error_of(self, error: grpc.aio.AioRpcError) -> ElectionError:
        if error.code() in ELSEWHERE:
            return self.failed(error.details() or error.code().name)
        return error_of(error)
