"""Three elections on one cluster, whose terms are to outlive what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from election import Candidate, CandidateConfig, LossReason, Token, connect
from election.dev.etcd import EtcdCluster, Member
from election.etcd.client import EtcdClient
from tests.integration.ran import CLOCK, STEADY, Ran, leading, leads, queued_anew, reason, standing, until


def use(client: EtcdClient, member: Member) -> None:
    """Lets the client's next calls go to this member."""
    while client.member != member.index:
        client.avoid(client.member)


@dataclass
class Rivals:
    """Three elections, each with a leader that talks to another member and somebody who waits."""

    cluster: EtcdCluster
    config: CandidateConfig
    leaders: list[Candidate]
    clients: list[EtcdClient]
    tokens: list[Token]

    @asynccontextmanager
    async def through(self) -> AsyncIterator[None]:
        """What happens in this block costs no leader its term: each is leader at every look, and renews after it."""

        async def look() -> None:
            while True:
                for leader, held in zip(self.leaders, self.tokens, strict=True):
                    assert leader.is_leader, f"{leader.id} lost its term: {leader.loss} of {held}"
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(look())
            yield
            # A deadline this late is that of a renewal which was sent after the fault.
            deadline_s = CLOCK.now_s() + self.config.ttl_s - self.config.margin_s
            await until(lambda: all(leading(leader).deadline_s > deadline_s for leader in self.leaders))
            looking.cancel()
        assert [leading(leader).token for leader in self.leaders] == self.tokens

    async def heal(self) -> None:
        """Everything runs again."""
        for member in self.cluster.members:
            member.resume()
            await member.start()
        await self.cluster.wait_healthy()


@asynccontextmanager
async def rivals(
    cluster: EtcdCluster,
    namespace: str,
    *,
    config: CandidateConfig = STEADY,
    ways: Sequence[Sequence[str]] | None = None,
) -> AsyncIterator[Rivals]:
    """Rivals who all hand over at the end, because strangers delete the leaders' keys: so every watch still works.

    `ways` has the addresses at which each leader dials the members, where they are not the members' own.
    """
    async with AsyncExitStack() as stack:
        leaders, clients, waiting, rans = [], [], [], []
        for member in cluster.members:
            endpoints = ways[member.index] if ways else cluster.endpoints
            near = await stack.enter_async_context(connect(endpoints, namespace=namespace))
            far = await stack.enter_async_context(connect(cluster.endpoints, namespace=namespace))
            use(near.client, member)
            election, ran = f"e{member.index}", Ran()
            leader = near.candidate(election, id=f"{member.name}-leader", config=config)
            second = far.candidate(election, id=f"{member.name}-second", config=config)
            await stack.enter_async_context(standing(ran, leader, second))
            await leads(ran, leader)
            leaders.append(leader)
            clients.append(near.client)
            waiting.append(second)
            rans.append(ran)
        held = [leading(leader) for leader in leaders]
        yield Rivals(cluster, config, leaders, clients, [state.token for state in held])
        for leader, state in zip(leaders, held, strict=True):
            await far.client.delete(far.keyspace.candidate(leader.election, state.lease))
        for leader, state, second, ran in zip(leaders, held, waiting, rans, strict=True):
            assert await leads(ran, second) is second
            assert leading(second).token > state.token
            await queued_anew(leader, state.token.revision)
            assert reason(leader) is LossReason.KEY_DELETED
        for ran in rans:
            ran.check()


async def followers(cluster: EtcdCluster) -> list[Member]:
    leader = await cluster.leader()
    return [member for member in cluster.members if member is not leader]
