"""The relay that drills put before servers: nothing is lost or changes its order, and nothing arrives too early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from election.drill.link import Link
from election.drill.relay import HOST, Relay

SOON_S = 5.0
LARGE = bytes(range(256)) * 100_000


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it gets, and closes its side after the other end did."""
    with suppress(OSError):
        while chunk := await reader.read(64 * 1024):
            writer.write(chunk)
            await writer.drain()
        writer.write(b"the end")
    writer.close()


@asynccontextmanager
async def relayed() -> AsyncGenerator[tuple[Relay, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that echoes, over a relay."""
    server = await asyncio.start_server(echo, HOST)
    async with server, Relay(f"{HOST}:{server.sockets[0].getsockname()[1]}") as relay:
        reader, writer = await asyncio.open_connection(HOST, relay.port)
        try:
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), SOON_S) == b"hello"
            yield relay, reader, writer
        finally:
            writer.transport.abort()


async def is_silent(reader: asyncio.StreamReader, for_s: float = 0.2) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), for_s)
    except TimeoutError:
        return True
    return False


async def test_everything_arrives_in_order_however_much_it_is() -> None:
    """Although neither end reads as fast as the other one sends; and each closes its side when it wants to."""
    async with relayed() as (_, reader, writer):

        async def send() -> None:
            writer.write(LARGE)
            writer.write_eof()
            await writer.drain()

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(reader.read(-1), SOON_S) == LARGE + b"the end"
        await sending


@pytest.mark.parametrize("hold", [Link.cut, Link.hold_requests, Link.hold_answers])
async def test_what_is_held_arrives_late(hold: Callable[[Link], None]) -> None:
    """In order, with what came after it, and with the news that an end has closed."""
    async with relayed() as (relay, reader, writer):
        hold(relay.link)
        writer.write(b"one ")
        await writer.drain()
        assert await is_silent(reader)
        writer.write(b"two ")
        writer.write_eof()
        assert await is_silent(reader)
        relay.mend()
        assert await asyncio.wait_for(reader.read(-1), SOON_S) == b"one two the end"


async def test_a_relay_keeps_little_of_what_is_held() -> None:
    """Who sends has to wait, as the windows of TCP are full."""
    async with relayed() as (relay, reader, writer):
        relay.link.cut()
        writer.write(LARGE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        relay.mend()
        assert await asyncio.wait_for(reader.readexactly(len(LARGE)), SOON_S) == LARGE


async def test_a_delay_is_the_same_for_all_that_is_sent() -> None:
    """Also for what is sent while something else is under way; and what is sent without one does not overtake it."""
    async with relayed() as (relay, reader, writer):
        relay.link.slow(0.2)
        sent_at_s = []
        for number in range(10):
            sent_at_s.append(time.monotonic())
            writer.write(b"%d" % number)
            await asyncio.sleep(0.03)
        for number, at_s in enumerate(sent_at_s):
            assert await asyncio.wait_for(reader.readexactly(1), SOON_S) == b"%d" % number
            assert 0.4 <= time.monotonic() - at_s < 0.6
        writer.write(b"slow ")
        await asyncio.sleep(0.02)
        relay.mend()
        writer.write(b"quick")
        assert await asyncio.wait_for(reader.readexactly(10), SOON_S) == b"slow quick"


async def test_a_connection_that_is_reset_is_reset_at_both_ends() -> None:
    """And the next one is served; but none where all are refused."""
    async with relayed() as (relay, reader, _):
        relay.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
        again, writer = await asyncio.open_connection(HOST, relay.port)
        writer.write(b"x")
        assert await asyncio.wait_for(again.readexactly(1), SOON_S) == b"x"
        relay.refuse()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(again.read(1), SOON_S)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, relay.port)
        writer.transport.abort()


async def test_who_dials_a_server_that_is_gone_is_told_by_a_reset() -> None:
    """As soon as the link works."""
    async with await asyncio.start_server(echo, HOST) as server:
        port = server.sockets[0].getsockname()[1]
    async with Relay(f"{HOST}:{port}") as relay:
        relay.link.cut()
        reader, writer = await asyncio.open_connection(HOST, relay.port)
        assert await is_silent(reader)
        relay.mend()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
        writer.transport.abort()
