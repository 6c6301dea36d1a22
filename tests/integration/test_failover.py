"""A server of the API is killed under a crowd: everybody is back at another one, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

from election.client import Client
from election.config import AgentConfig
from election.dev.etcd import EtcdCluster
from election.errors import ElectionError
from election.reader import LeaderEventKind
from election.store import Store, connect
from election.term import Term
from tests.integration.test_campaigns import First, served

WATCHERS, SESSIONS, CLIENTS = 1_000, 200, 10
TERMS = 12
KILL_AT, GAP_S = 4, 2.5
WAIT_S = 60.0


async def test_a_thousand_watchers_and_two_hundred_sessions_outlive_their_server(
    etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """No term is missed, every session keeps its lease and incarnation, and no agent is reaped."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(connect(etcd_cluster.endpoints, namespace=namespace))
        servers = [await stack.enter_async_context(served(store, collect=True)) for _ in range(2)]
        addresses = [address for _, address in servers]
        made = [Client(addresses, call_timeout_s=20, attempt_timeout_s=5, rng=First()) for _ in range(CLIENTS)]
        clients = [await stack.enter_async_context(client) for client in made]
        config = AgentConfig(ttl_s=20)
        sessions = [clients[number % CLIENTS].session(f"w{number}", config=config) for number in range(SESSIONS)]
        await asyncio.gather(*(stack.enter_async_context(session) for session in sessions))
        before = [session.check() for session in sessions]
        reign = await stack.enter_async_context(reigning(store))
        crowd = await stack.enter_async_context(watching(clients))
        for number in range(TERMS):
            if number == KILL_AT:
                servers.sort(key=lambda server: sum(client.address == server[1] for client in clients))
                (other, spared), (crowded, _) = servers
                other.send_signal(signal.SIGSTOP)  # nobody is told the next terms when they begin
                asyncio.get_running_loop().call_later(GAP_S, other.send_signal, signal.SIGCONT)
                crowded.kill()
            await reign.next()
        async with asyncio.timeout(WAIT_S):
            while any(tokens[-1] != reign.tokens[-1] for tokens in crowd):
                await asyncio.sleep(0.1)
        assert {client.address for client in clients} == {spared}
        missed = [tokens for tokens in crowd if tokens != reign.tokens]
        assert not missed, f"{len(missed)} of {WATCHERS} have missed a term: {missed[0]} of {reign.tokens}"
        await asyncio.sleep(config.ttl_s)  # who had not come back would be dead by now
        assert [session.check() for session in sessions] == before
        assert not (await store.client.list(store.keyspace.reaped_prefix)).kvs


class Reign:
    """Two candidates that hand the leadership to each other; `tokens` are those of all terms so far."""

    def __init__(self, store: Store) -> None:
        self.tokens: list[int] = []
        self.candidates = [store.candidate("crowded", id=name) for name in ("a", "b")]

    async def work(self, term: Term) -> None:
        self.tokens.append(int(term.token))
        await asyncio.Event().wait()

    async def next(self) -> None:
        """The next term begins, or the next two where a candidate that was slow to begin hands over at once."""
        before = len(self.tokens)
        async with asyncio.timeout(WAIT_S):
            while len(self.tokens) == before:
                for candidate in self.candidates:
                    with suppress(ElectionError):  # it does not lead, or nobody waits yet
                        candidate.hand_over()
                await asyncio.sleep(0.2)


@asynccontextmanager
async def reigning(store: Store) -> AsyncIterator[Reign]:
    """Somebody leads, and somebody waits."""
    reign = Reign(store)
    standing = [asyncio.create_task(candidate.lead(reign.work)) for candidate in reign.candidates]
    try:
        await reign.next()
        yield reign
    finally:
        for task in standing:
            task.cancel()
        await asyncio.wait(standing)


@asynccontextmanager
async def watching(clients: list[Client]) -> AsyncIterator[list[list[int]]]:
    """What each watcher has been told: the token of every term, in order. It fails as soon as one gives up."""
    crowd: list[list[int]] = [[] for _ in range(WATCHERS)]

    async def watch(client: Client, tokens: list[int]) -> None:
        async with aclosing(client.watch_leader("crowded")) as events:
            async for event in events:
                assert event.kind is not LeaderEventKind.RESET, "something may have been missed"
                if event.kind is LeaderEventKind.ELECTED and event.leader is not None:
                    tokens.append(int(event.leader.token))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch(clients[n % len(clients)], tokens)) for n, tokens in enumerate(crowd)]
        async with asyncio.timeout(WAIT_S):
            while not all(crowd):
                await asyncio.sleep(0.1)
        yield crowd
        assert not any(task.done() for task in tasks), "a watcher has given up"
        for task in tasks:
            task.cancel()
