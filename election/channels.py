"""gRPC channels of a client to several addresses; with TLS, new ones after the certificates have changed.

gRPC takes the credentials of a channel once. So a channel is replaced, not changed, and what began on it ends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from election.clock import BootClock, Clock
from election.config import TlsConfig
from election.credentials import Credentials

Options = Sequence[tuple[str, Any]]


class Line:
    """One channel and the number of calls on it. Every call has to be counted: see `carry`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._calls = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    def carry(self, call: grpc.aio.Call) -> None:
        """Counts a call that was made on the channel, until it has ended."""
        self._calls += 1
        call.add_done_callback(self._ended)

    def retire(self) -> None:
        """Closes the channel when its last call has ended, and no sooner."""
        self._retired = True
        self._close_when_idle()

    async def close(self) -> None:
        """Closes the channel now, with all calls on it."""
        self._retired = True
        self._closing = self._closing or asyncio.create_task(self.channel.close())
        await self._closing

    @property
    def is_closed(self) -> bool:
        """Whether the channel is closed."""
        return self._closing is not None and self._closing.done()

    def _ended(self, call: object) -> None:
        self._calls -= 1
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._retired and self._calls == 0 and self._closing is None:
            self._closing = asyncio.create_task(self.channel.close())


class Channels:
    """A channel to each of several addresses. Create it inside the event loop that uses it.

    With TLS, calls that are made after the files have changed go on new channels: the first one up to a second after
    the change. Calls and streams that are on their way stay on theirs, with the certificate that they began with, for
    as long as they last: to end a Campaign would make etcd delete the candidate's key.

    Raises:
        ConfigError: when the TLS files cannot be used at the beginning.
    """

    def __init__(
        self, addresses: Sequence[str], tls: TlsConfig | None, options: Options, *, clock: Clock | None = None
    ) -> None:
        self._addresses = tuple(addresses)
        self._options = options
        self._credentials = None if tls is None else Credentials(tls, clock or BootClock())
        self._used = None if self._credentials is None else self._credentials.now()
        self._lines = self._made()
        self._retired: list[Line] = []

    def __getitem__(self, number: int) -> Line:
        """The line for a new call to an address, by its index."""
        if self._credentials is not None and (now := self._credentials.now()) is not self._used:
            self._used = now
            replaced, self._lines = self._lines, self._made()
            self._retired = [line for line in (*self._retired, *replaced) if not line.is_closed]
            for line in replaced:
                line.retire()
        return self._lines[number]

    async def close(self) -> None:
        """Ends all calls and connections at once."""
        self._credentials = None  # nothing is made anew from now on
        await asyncio.gather(*(line.close() for line in (*self._lines, *self._retired)))

    def _made(self) -> list[Line]:
        return [Line(self._channel(address)) for address in self._addresses]

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._used is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._used, options=self._options)
