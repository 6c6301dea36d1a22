"""A TCP relay in front of a server: what it passes on goes over a link, and connections can be reset and refused."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from election.dev.ports import free_ports
from election.drill.link import Link, Way

HOST = "127.0.0.1"
_UNDER_WAY = 128 * 1024
"""How many bytes of one end a relay keeps that do not arrive yet; the rest waits in the kernel."""

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class Relay:
    """Listens on a port of its own and passes everything on to `target`, HOST:PORT, over `link`.

    It lives in the event loop that enters it, so a fault takes effect between two steps of the test that calls it.
    A cut is one of packets, not of connections: they stay open at both ends, neither end learns that the other one
    has closed, and new ones are accepted, by the kernel, but come to nothing before both directions work again.
    What is sent meanwhile waits in the kernel's buffers, of the sender and of this process.

    `link_of` tells the link of a connection, by the socket that was accepted, where not all have the same one;
    None resets the connection.
    """

    def __init__(self, target: str, *, link_of: Callable[[socket.socket], Link | None] | None = None) -> None:
        self.link = Link()
        self.port = free_ports(1, HOST)[0]
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._link_of = link_of or (lambda _: self.link)
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where to dial instead of the target, HOST:PORT."""
        return f"{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connections = set(self._connections)
        self.refuse()
        if connections:
            await asyncio.wait(connections)

    def refuse(self) -> None:
        """Resets all connections and refuses new ones, until `mend`."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self) -> None:
        """Resets all connections, as when one end has given up after a cut; what was held is lost."""
        for connection in self._connections:
            # Not at once: a task that is cancelled before its first step would leave its socket open.
            asyncio.get_running_loop().call_soon(connection.cancel)

    def mend(self) -> None:
        """Takes new connections again, if they were refused, and mends the link."""
        self.link.mend()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((HOST, self.port))
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            dialled, _ = listener.accept()
            connection = asyncio.create_task(self._serve(dialled))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _serve(self, dialled: socket.socket) -> None:
        """Relays one connection until both ends have closed it, or one has reset it."""
        dialled.setblocking(False)
        ends: list[_End] = []
        loop = asyncio.get_running_loop()
        over: asyncio.Future[bool] = loop.create_future()
        try:
            if (link := self._link_of(dialled)) is None:
                return
            await link.connected()
            _, answers = await loop.create_connection(lambda: _End(link.answers, over), *self._target)
            ends.append(answers)
            _, requests = await loop.connect_accepted_socket(lambda: _End(link.requests, over), dialled)
            ends.append(requests)
            requests.meet(answers)
            answers.meet(requests)
            if await over:
                for end in ends:
                    end.transport.close()
        except OSError:
            pass  # the target does not listen: who dials is told by a reset
        finally:
            if len(ends) < 2:
                with suppress(OSError):
                    dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                dialled.close()
            for end in ends:
                end.reset()


class _End(asyncio.Protocol):
    """One end of a connection: what arrives here is sent to the other end, in order, and when its way lets it pass.

    `over` becomes True once both ends have closed and know it of each other, False once one is to be reset.
    """

    transport: asyncio.Transport

    def __init__(self, way: Way, over: asyncio.Future[bool]) -> None:
        self.closed = False
        self._way = way
        self._over = over
        self._other: _End | None = None
        self._other_is_full = False
        self._late: deque[tuple[float, bytes | None]] = deque()  # when it is due; None stands for a reset
        self._late_bytes = 0

    def meet(self, other: _End) -> None:
        """From now on, what arrives here is sent there."""
        self._other = other
        self._go_on()

    def reset(self) -> None:
        """Resets the connection at this end, unless it is closing in order."""
        if not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._send(data)

    def eof_received(self) -> bool:
        """Called by the event loop. The other direction may go on."""
        self._send(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, also after this side has ended the connection itself."""
        self._send(None)

    def pause_writing(self) -> None:
        """Called by the event loop when this end takes nothing more for now."""
        if self._other is not None:
            self._other._other_is_full = True
            self._other._throttle()

    def resume_writing(self) -> None:
        """Called by the event loop when this end takes more again."""
        if self._other is not None:
            self._other._other_is_full = False
            self._other._throttle()

    def _send(self, what: bytes | None) -> None:
        if self._other is not None and not (self._late or self._way.delay_s or self._way.held):
            self._deliver(self._other, what)
            return
        self._late.append((asyncio.get_running_loop().time() + self._way.delay_s, what))
        self._late_bytes += len(what or b"")
        self._throttle()
        if len(self._late) == 1:
            self._go_on()

    def _go_on(self) -> None:
        """Delivers what is due. When something is left, this is called again once that is due, or released."""
        loop = asyncio.get_running_loop()
        while self._late and self._other is not None:
            due_at_s, what = self._late[0]
            if self._way.held:
                self._way.when_released(self._go_on)
                return
            if due_at_s > loop.time():
                loop.call_at(due_at_s, self._go_on)
                return
            self._late.popleft()
            self._late_bytes -= len(what or b"")
            self._deliver(self._other, what)
            self._throttle()

    def _deliver(self, other: _End, what: bytes | None) -> None:
        if what:
            if not other.transport.is_closing():  # that it is gone is told by its own way, or held there
                other.transport.write(what)
        elif what is None:
            self._end(orderly=False)
        else:
            self.closed = True
            with suppress(OSError):
                other.transport.write_eof()
            if other.closed:
                self._end(orderly=True)

    def _end(self, *, orderly: bool) -> None:
        if not self._over.done():
            self._over.set_result(orderly)

    def _throttle(self) -> None:
        """Reads no more than this relay and the other end can take."""
        if self._other_is_full or self._late_bytes >= _UNDER_WAY:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
