"""Following a leader through the API: real servers, each a process, that are killed, stopped and started again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from election import (
    CandidateConfig,
    ConfigError,
    ElectionError,
    LeaderClient,
    NoLeader,
    ServerUnavailable,
    Store,
    Token,
    ViewStale,
    blocking,
    connect,
    dial,
    leader_channel,
)
from election.candidate import Candidate
from election.clock import BootClock
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.leadership import Leading
from election.reader import LeaderEvent, LeaderEventKind, Source
from election.server.access.gate import AccessConfig
from election.server.access.tokens import new_token
from election.server.serving import GrpcServer
from election.term import Term
from tests.integration.ran import until
from tests.integration.test_cli import Cli, Running
from tests.integration.test_grpc_api import ScriptedReader
from tests.integration.test_grpc_api import elected as leads

T = TypeVar("T")

WAIT_S = 20.0
ELECTION = "scheduler"
QUICK = CandidateConfig(ttl_s=3, retry_max_s=0.5)
BEAT_S = 1.0

pytestmark = pytest.mark.etcd


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


@dataclass
class Terms:
    """Two candidates that hand over to each other, and the tokens of their terms."""

    candidates: dict[str, Candidate]
    tokens: list[Token]

    @property
    def leader(self) -> str:
        names = [name for name, candidate in self.candidates.items() if isinstance(candidate.state, Leading)]
        return names[0] if names else ""

    async def change(self) -> None:
        """One term ends, and the next one begins."""
        count = len(self.tokens)
        while len(self.tokens) == count:
            for candidate in self.candidates.values():
                with suppress(ElectionError):  # it does not lead, or the other one does not wait yet
                    candidate.hand_over()
                    break
            await asyncio.sleep(0.02)


@asynccontextmanager
async def terms(store: Store) -> AsyncIterator[Terms]:
    tokens: list[Token] = []

    async def work(term: Term) -> None:
        tokens.append(term.token)
        await asyncio.Event().wait()

    candidates = {name: store.candidate(ELECTION, id=name, address=f"{name}:1", config=QUICK) for name in "ab"}
    standing = [asyncio.create_task(candidate.lead(work)) for candidate in candidates.values()]
    try:
        await until(lambda: len(tokens) == 1)
        yield Terms(candidates, tokens)
    finally:
        for candidate in candidates.values():
            candidate.leave()
        await soon(asyncio.gather(*standing))


@pytest.fixture
async def store(single_etcd: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    async with connect(single_etcd.endpoints, namespace=namespace) as made:
        yield made


async def serve(cli: Cli, port: int = 0) -> tuple[Running, str]:
    """A server of the API, and its address."""
    running = cli.start("serve", "--grpc-port", str(port), "--no-collect", "-o", "json")
    return running, str((await running.until("serving"))["grpc"])


async def serve_twice(cli: Cli) -> dict[str, Running]:
    """Two servers by their addresses."""
    started = [await serve(cli) for _ in range(2)]
    return {address: running for running, address in started}


@asynccontextmanager
async def watched(client: LeaderClient) -> AsyncIterator[list[LeaderEvent]]:
    """What a watch tells inside the block."""
    seen: list[LeaderEvent] = []

    async def watch() -> None:
        async for event in client.watch():
            seen.append(event)  # noqa: PERF401 (it never ends)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def elected(events: list[LeaderEvent]) -> list[Token]:
    """The terms that were told, in order; no event stands for terms that were missed."""
    assert LeaderEventKind.RESET not in [event.kind for event in events]
    return [event.leader.token for event in events if event.kind is LeaderEventKind.ELECTED and event.leader]


async def test_who_leads_is_known_without_a_call(cli: Cli, store: Store) -> None:
    """With an age that is never more than the heartbeat and what the server needs; vacancies and terms are told."""
    _, address = await serve(cli)
    async with LeaderClient(address, ELECTION, heartbeat_s=BEAT_S) as client, watched(client) as seen:
        assert client.current.value is None
        with pytest.raises(NoLeader, match=r"after 0\.1 s nobody leads 'scheduler'") as raised:
            await client.wait_for_leader(0.1)
        assert isinstance(raised.value, TimeoutError)
        waiting = asyncio.create_task(client.wait_for_leader(WAIT_S))
        async with terms(store) as rivals:
            answer = await soon(waiting)
            assert (answer.value.token, answer.value.proven) == (rivals.tokens[0], True)
            ages = []
            for _ in range(30):
                now = client.current
                assert now.value == answer.value
                ages.append(now.source.age_s)
                await asyncio.sleep(0.1)
            assert max(ages) < BEAT_S + 1.5  # etcd says once a second to the server that nothing happens
            assert max(ages) > 0.2
            await rivals.change()
            await until(lambda: elected(seen) == rivals.tokens)
        await until(lambda: client.current.value is None)
        await until(lambda: seen[-1].kind is LeaderEventKind.VACATED)
        assert seen[0].kind is LeaderEventKind.VACATED
    with pytest.raises(RuntimeError, match="not open"):
        client.current  # noqa: B018


async def test_the_watch_ends_with_the_client(cli: Cli) -> None:
    """And several clients share the connection of one."""
    _, address = await serve(cli)
    async with dial(address) as shared:
        async with LeaderClient(shared, ELECTION) as client, LeaderClient(shared, "other") as other:
            assert (client.current.value, other.current.value) == (None, None)
            watching = asyncio.create_task(listed(client))
            waiting = asyncio.create_task(client.wait_for_leader())
            await asyncio.sleep(0.1)
        assert [event.kind for event in await soon(watching)] == [LeaderEventKind.VACATED]
        with pytest.raises(RuntimeError, match="not open"):
            await soon(waiting)
        assert (await shared.leader(ELECTION)).value is None


async def listed(client: LeaderClient) -> list[LeaderEvent]:
    return [event async for event in client.watch()]


async def test_it_shows_the_token_that_it_is_given(tmp_path: Path) -> None:
    """To servers that take it; the channel to the leader and the client for threads pass it on as well."""
    token, line = new_token("dashboard")
    tokens = tmp_path / "tokens"
    tokens.write_text(str(line))
    reader = ScriptedReader(iter([[leads(7, 7)]] * 3))
    async with GrpcServer(reader, port=0, access=AccessConfig(token_file=tokens)) as server:
        with pytest.raises(ElectionError, match="no identity"):
            async with LeaderClient(server.address, "e"):
                pass
        async with LeaderClient(server.address, "e", token=token) as client:
            assert client.current.value is not None
        async with leader_channel(server.address, "e", token=token) as channel:
            assert channel.leader.current.value is not None
        assert await asyncio.to_thread(led, server.address, token)


def led(server: str, token: str) -> bool:
    with blocking.LeaderClient(server, "e", token=token) as client:
        return client.current.value is not None


async def test_what_cannot_be_followed_is_an_error_at_once(cli: Cli) -> None:
    """A name that is none, and servers that are not there."""
    _, address = await serve(cli)
    with pytest.raises(ConfigError, match="is not a valid name"):
        async with LeaderClient(address, "a/b"):
            pass
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 cannot answer"):
        async with LeaderClient("127.0.0.1:1", ELECTION):
            pass


async def test_no_term_is_missed_when_its_server_is_killed(cli: Cli, store: Store) -> None:
    """It goes on at another one, which tells what happened meanwhile; three times, while terms change."""
    servers = await serve_twice(cli)
    async with (
        terms(store) as rivals,
        LeaderClient(list(servers), ELECTION, heartbeat_s=BEAT_S) as client,
        watched(client) as seen,
    ):
        await until(lambda: elected(seen) == rivals.tokens)
        for _ in range(3):
            address = client._client.address
            servers[address].kill()
            for _ in range(3):
                await rivals.change()
            await until(lambda: elected(seen) == rivals.tokens)
            assert client._client.address != address
            servers[address], _ = await serve(cli, int(address.rpartition(":")[2]))
            await rivals.change()  # a server knows what has happened since it was started
            await until(lambda: elected(seen) == rivals.tokens)


async def test_its_age_grows_while_its_server_hangs_and_it_goes_on_elsewhere(cli: Cli, store: Store) -> None:
    """Though the connection stands; and nothing that happened meanwhile is missed, nor told late."""
    servers = await serve_twice(cli)
    async with (
        terms(store) as rivals,
        LeaderClient(list(servers), ELECTION, heartbeat_s=BEAT_S) as client,
        watched(client) as seen,
    ):
        await until(lambda: elected(seen) == rivals.tokens)
        address = client._client.address
        servers[address].send(signal.SIGSTOP)
        try:
            stopped_at_s = time.monotonic()
            await asyncio.sleep(BEAT_S * 1.5)
            assert client.current.source.age_s > time.monotonic() - stopped_at_s - BEAT_S
            assert client.current.source.age_s > 0.5
            await rivals.change()
            await until(lambda: elected(seen) == rivals.tokens, timeout_s=6)
            assert client.current.source.age_s < 2 * BEAT_S
            assert client._client.address != address
        finally:
            servers[address].send(signal.SIGCONT)


async def test_what_is_too_old_is_not_told(cli: Cli, store: Store) -> None:
    """The only server hangs: the answer grows old, and then there is none; it is back with the server."""
    running, address = await serve(cli)
    async with (
        terms(store) as rivals,
        LeaderClient(address, ELECTION, max_age_s=2.5, heartbeat_s=BEAT_S) as client,
        watched(client) as seen,
    ):
        await until(lambda: elected(seen) == rivals.tokens)
        running.send(signal.SIGSTOP)
        try:
            stopped_at_s = time.monotonic()
            with pytest.raises(ViewStale, match=r"last known \d\.\d s ago \(the limit is 2\.5 s\)"):
                await grown_old(client, 2.5)
            assert time.monotonic() < stopped_at_s + 4
            assert time.monotonic() > stopped_at_s + 0.3
            with pytest.raises(NoLeader, match="the limit is"):
                await client.wait_for_leader(0.1)
            for _ in range(2):
                await rivals.change()
            await asyncio.sleep(11)  # more than `Client` itself would wait
        finally:
            running.send(signal.SIGCONT)
        await until(lambda: elected(seen) == rivals.tokens)
        assert (await soon(client.wait_for_leader())).value.token == rivals.tokens[-1]


async def grown_old(client: LeaderClient, limit_s: float) -> None:
    """Asks until it is refused; what is told before is within the limit."""
    while True:
        assert client.current.source.age_s <= limit_s
        await asyncio.sleep(0.01)


async def test_a_server_that_was_there_before_the_other_is_believed(cli: Cli, store: Store) -> None:
    """Its revisions are lower, since it has seen what happens in its namespace alone: they are as true."""
    _, first_address = await serve(cli)
    async with terms(store) as rivals:
        for _ in range(20):
            await store.client.put(b"/elsewhere", b"")
        second, second_address = await serve(cli)
        async with dial([second_address, first_address]) as shared:
            while shared.address != second_address:
                shared._servers._avoid(shared._servers._current)
            async with LeaderClient(shared, ELECTION, heartbeat_s=BEAT_S) as client:
                assert client.current.source.revision > 0
                second.kill()
                await until(lambda: shared.address == first_address)
                await asyncio.sleep(3 * BEAT_S)
                assert client.current.source.age_s < BEAT_S + 1.5
                await rivals.change()
                leader = (await soon(client.wait_for_leader())).value
                await until(lambda: (client.current.value or leader).token == rivals.tokens[-1])


async def test_servers_that_have_forgotten_say_so(cli: Cli, store: Store) -> None:
    """All were started anew and terms have passed: RESET, with who leads now."""
    running, address = await serve(cli)
    async with (
        terms(store) as rivals,
        LeaderClient(address, ELECTION, heartbeat_s=BEAT_S) as client,
        watched(client) as seen,
    ):
        await until(lambda: elected(seen) == rivals.tokens)
        running.kill()
        await rivals.change()
        await rivals.change()
        await serve(cli, int(address.rpartition(":")[2]))
        await until(lambda: seen[-1].kind is LeaderEventKind.RESET)
        leader = seen[-1].leader
        assert leader is not None
        assert leader.token == rivals.tokens[-1]
        assert client.current.value == leader


class Suspended(BootClock):
    """The clock of a machine that was suspended, of which asyncio's does not know."""

    skipped_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.skipped_s


class PiledUp(ScriptedReader):
    """Has told of one leader, and then a heartbeat; who asks anew is told of another one."""

    async def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        if after is None:
            yield leads(7, 7)
            await self.go_on.wait()
            yield LeaderEvent(LeaderEventKind.HEARTBEAT, None, Source(1, 7, 0.0))
        else:
            yield leads(9, 9)
        await asyncio.Event().wait()


async def test_what_waited_while_the_machine_was_suspended_is_no_news() -> None:
    """It was sent before nobody knows when: the server is asked anew, and nothing is told before it has answered."""
    clock, reader = Suspended(), PiledUp()
    async with GrpcServer(reader, port=0) as server, LeaderClient(server.address, "e", clock=clock) as client:
        leader = client.current.value
        assert leader is not None
        assert leader.token == Token(0, 7)
        clock.skipped_s = 60.0
        reader.go_on.set()
        told = None
        async with asyncio.timeout(WAIT_S):
            while told is None:
                with suppress(ViewStale):
                    told = client.current.value
                await asyncio.sleep(0)
        assert told.token == Token(0, 9)


FOLLOWER = """
import asyncio, json, sys, time
from election import LeaderClient, ViewStale

async def main(address, election):
    async with LeaderClient(address, election, heartbeat_s=1.0) as client:
        told = None
        while True:
            try:
                answer = client.current
                now = (str(answer.value.token) if answer.value else "", answer.source.age_s)
            except ViewStale:
                now = ("stale", 0.0)
            if now[0] != told or now[1] < 0.1:
                told = now[0]
                print(json.dumps([time.monotonic(), *now]), flush=True)
            await asyncio.sleep(0)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_was_stopped_does_not_take_what_piled_up_for_news(cli: Cli, store: Store) -> None:
    """For twelve seconds heartbeats have come, and a change of leader after them: the old leader is not told as new."""
    _, address = await serve(cli)
    async with terms(store) as rivals:
        command = bound_to_this_process((sys.executable, "-c", FOLLOWER, address, ELECTION))
        out = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert out.stdout is not None
        try:
            old = str(rivals.tokens[-1])
            while json.loads(await soon(out.stdout.readline()))[1] != old:
                pass
            out.send_signal(signal.SIGSTOP)
            await asyncio.sleep(12)
            await rivals.change()
            changed_at_s = time.monotonic()
            await asyncio.sleep(1)
            out.send_signal(signal.SIGCONT)
            woken_at_s = time.monotonic()
            while True:
                at_s, token, age_s = json.loads(await soon(out.stdout.readline()))
                if token == str(rivals.tokens[-1]):
                    break
                assert at_s < woken_at_s or token == "stale" or age_s > at_s - changed_at_s, (token, age_s)
        finally:
            out.kill()
            await out.wait()


def test_without_asyncio_any_thread_may_ask(cli: Cli, single_etcd: EtcdCluster, namespace: str) -> None:
    """The same answers, from memory; watches end with the client, also those of other threads."""
    _, address = asyncio.run(serve(cli))
    seen: list[LeaderEvent] = []
    with blocking.connect(single_etcd.endpoints, namespace=namespace) as store:
        with blocking.LeaderClient(address, ELECTION, heartbeat_s=BEAT_S) as client:
            with pytest.raises(NoLeader):
                client.wait_for_leader(0.1)
            watching = threading.Thread(target=lambda: seen.extend(client.watch()))
            watching.start()
            with store.candidate(ELECTION, id="a", config=QUICK).lead() as term:
                answer = client.wait_for_leader(WAIT_S)
                assert answer.value.token == term.token
                began_at_s = time.perf_counter()
                for _ in range(1000):
                    assert client.current.value == answer.value
                assert time.perf_counter() - began_at_s < 0.5  # no calls: 1000 of these would take longer
                time.sleep(2.5)
                assert client.current.source.age_s < BEAT_S + 1.5
            spin(lambda: client.current.value is None)
            first = next(iter(client.watch()))
            assert first.kind is LeaderEventKind.VACATED
        watching.join(WAIT_S)
        assert not watching.is_alive()
    kinds = [event.kind for event in seen]
    assert kinds == [LeaderEventKind.VACATED, LeaderEventKind.ELECTED, LeaderEventKind.VACATED]
    with pytest.raises(ConfigError), blocking.LeaderClient(address, "a/b"):
        pass
    with pytest.raises(RuntimeError, match="inside `with`"):
        blocking.LeaderClient(address, ELECTION).wait_for_leader()


def spin(holds: Callable[[], bool]) -> None:
    give_up_at_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at_s
        time.sleep(0.01)
