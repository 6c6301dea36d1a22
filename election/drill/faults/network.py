"""Faults of the network: between the members of etcd, and between them and their clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import combinations, pairwise

from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.faults.members import healed, leader_of
from election.drill.peers import Peers
from election.drill.relay import Relay

_SLOW_S = (0.05, 0.4)

# --- between members -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _partition_leader(stage: Stage) -> AsyncGenerator[None]:
    leader = await leader_of(stage.site)
    stage.on(leader.name)
    async with healed(stage):
        stage.site.peers.isolate(leader)
        yield


@asynccontextmanager
async def _partition_ring(stage: Stage) -> AsyncGenerator[None]:
    """Leaves a ring, in which each member meets only its neighbours: with five of them, each meets a majority.

    A ring of three has all links, so one of the leader's is cut: the two that it joined meet only by the third.
    """
    members = stage.site.cluster.members
    leader = (await leader_of(stage.site)).index
    others = [member.index for member in members if member.index != leader]
    ring = [leader, *stage.rng.sample(others, len(others))]
    kept = {frozenset(pair) for pair in pairwise(ring if len(ring) == 3 else [*ring, leader])}
    stage.on(" - ".join(members[index].name for index in ring))
    async with healed(stage):
        for pair in combinations(ring, 2):
            if frozenset(pair) not in kept:
                stage.site.peers.part(*pair)
        yield


@asynccontextmanager
async def _partition_one_way(stage: Stage) -> AsyncGenerator[None]:
    leader = await leader_of(stage.site)
    cut = stage.rng.choice((Peers.deafen, Peers.mute))
    stage.on(f"{leader.name} {'hears nothing' if cut is Peers.deafen else 'is not heard'}")
    async with healed(stage):
        cut(stage.site.peers, leader)
        yield


@asynccontextmanager
async def _slow_peers(stage: Stage) -> AsyncGenerator[None]:
    delay_s = stage.rng.uniform(*_SLOW_S)
    stage.on(f"all members, by {delay_s * 1000:.0f} ms")
    async with healed(stage):
        stage.site.peers.slow(delay_s)
        yield


# --- between members and clients -----------------------------------------------------------------------------


def _client(stage: Stage) -> tuple[str, list[Relay]]:
    """A process, and its links."""
    if not stage.site.clients:
        raise Nobody("no process has a link to etcd")
    name = stage.rng.choice(sorted(stage.site.clients))
    return name, stage.site.clients[name]


@asynccontextmanager
async def _mended(links: Sequence[Relay]) -> AsyncGenerator[None]:
    """Mends the links after the block, however that ends."""
    try:
        yield
    finally:
        for link in links:
            link.mend()


@asynccontextmanager
async def _partition_client_from_one(stage: Stage) -> AsyncGenerator[None]:
    name, links = _client(stage)
    index = stage.rng.randrange(len(links))
    stage.on(f"{name} from {stage.site.names[index]}")
    async with _mended(links):
        links[index].link.cut()
        yield


def _done_to_client(do: Callable[[Relay], None]) -> Callable[[Stage], AbstractAsyncContextManager[None]]:
    """Does it to all links of one process."""

    @asynccontextmanager
    async def act(stage: Stage) -> AsyncGenerator[None]:
        name, links = _client(stage)
        stage.on(name)
        async with _mended(links):
            for link in links:
                do(link)
            yield

    return act


@asynccontextmanager
async def _slow_clients(stage: Stage) -> AsyncGenerator[None]:
    links = [link for each in stage.site.clients.values() for link in each]
    if not links:
        raise Nobody("no process has a link to etcd")
    delay_s = stage.rng.uniform(*_SLOW_S)
    stage.on(f"all processes, by {delay_s * 1000:.0f} ms")
    async with _mended(links):
        for each in links:
            each.link.slow(delay_s)
        yield


def _of_peers(name: str, about: str, act: Callable[[Stage], AbstractAsyncContextManager[None]]) -> Fault[Stage]:
    return Fault(name, about, Lane.ETCD, (2.0, 6.0), act)


def _of_clients(name: str, about: str, act: Callable[[Stage], AbstractAsyncContextManager[None]]) -> Fault[Stage]:
    return Fault(name, about, Lane.CLIENTS, (1.0, 6.0), act)


def _cut(relay: Relay) -> None:
    relay.link.cut()


def _hold_answers(relay: Relay) -> None:
    relay.link.hold_answers()


NETWORK: tuple[Fault[Stage], ...] = (
    _of_peers("partition-leader", "the leader in etcd is cut off from all other members", _partition_leader),
    _of_peers("partition-ring", "each member meets its neighbours in a ring, and no others", _partition_ring),
    _of_peers("partition-one-way", "the leader in etcd hears the others or is heard, not both", _partition_one_way),
    _of_peers("slow-peers", "all between members takes 50 to 400 ms longer", _slow_peers),
    _of_clients("partition-client-from-one", "a process cannot reach one member", _partition_client_from_one),
    _of_clients("partition-client-from-all", "a process can reach no member", _done_to_client(_cut)),
    _of_clients("one-way-client", "members hear a process, which hears no answer", _done_to_client(_hold_answers)),
    _of_clients("slow-clients", "all between processes and members takes 50 to 400 ms longer", _slow_clients),
    Fault(
        "reset-clients", "all connections of a process are reset", Lane.CLIENTS, (0, 1), _done_to_client(Relay.reset)
    ),
)
