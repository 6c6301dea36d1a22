"""A TCP relay in front of a server, and what networks do: hold traffic back, one way or both, delay it, refuse it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from election.dev.ports import free_ports

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class Way:
    """One direction of a link: what is sent flows, takes its time, or is held back."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._flows = asyncio.Event()
        self._flows.set()

    def hold(self) -> None:
        """Nothing arrives any more, from this moment on; what was under way is held, too."""
        self._flows.clear()

    def release(self) -> None:
        """What was held arrives now, late and in order, and everything else after it."""
        self._flows.set()

    @property
    def held(self) -> bool:
        """Whether nothing arrives."""
        return not self._flows.is_set()

    async def passed(self) -> None:
        """Returns when what was sent at the call arrives."""
        await asyncio.sleep(self.delay_s)
        while self.held:
            await self._flows.wait()


class Link:
    """The two directions between who dials and who is dialled. Connections may share it, as they do a cable."""

    def __init__(self, requests: Way | None = None, answers: Way | None = None) -> None:
        self.requests = requests or Way()
        self.answers = answers or Way()

    def cut(self) -> None:
        """Holds back both directions."""
        self.hold_requests()
        self.hold_answers()

    def hold_requests(self) -> None:
        """The server hears nothing, and is heard."""
        self.requests.hold()

    def hold_answers(self) -> None:
        """The server hears everything, and is not heard."""
        self.answers.hold()

    def slow(self, delay_s: float) -> None:
        """Everything arrives at least this much later, in each direction."""
        self.requests.delay_s = self.answers.delay_s = delay_s

    def mend(self) -> None:
        """Everything flows again; what was held arrives late, as TCP sends again what nobody has confirmed."""
        self.slow(0.0)
        self.requests.release()
        self.answers.release()

    async def connected(self) -> None:
        """Returns when a handshake is over, for which both directions have to work."""
        while self.requests.held or self.answers.held:
            await self.requests.passed()
            await self.answers.passed()


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
        reader, writer = await asyncio.open_connection(sock=dialled)
        writers = [writer]
        try:
            if (link := self._link_of(dialled)) is None:
                return
            await link.connected()
            answers, requests = await asyncio.open_connection(*self._target)
            writers.append(requests)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(reader, link.requests, requests))
                group.create_task(_pass(answers, link.answers, writer))
            for each in writers:
                each.close()
        except* OSError:
            pass  # one end has reset, or the target does not listen: the other end is told by a reset
        finally:
            for each in writers:
                if not each.is_closing():
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                    each.transport.abort()


async def _pass(source: asyncio.StreamReader, way: Way, sink: asyncio.StreamWriter) -> None:
    """Passes on what one end sends, and that it has closed (by returning) or reset (by raising)."""
    try:
        while chunk := await source.read(_CHUNK):
            await way.passed()
            if not sink.is_closing():  # that it is gone is told by the other way, or held there
                sink.write(chunk)
                with suppress(OSError):
                    await sink.drain()
    except OSError:
        await way.passed()
        raise
    await way.passed()
    sink.write_eof()
