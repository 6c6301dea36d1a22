"""Faults of etcd's members: they die, stand still, end in order, and wait for their disks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from election.dev.etcd import Member
from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.site import Site
from election.drill.vocabulary import Done
from election.errors import EtcdUnavailable

_TERMINATE_S = 10.0
_STALL_S, _FLOW_S = (0.1, 1.5), (0.02, 0.3)


async def leader_of(site: Site) -> Member:
    """The member that leads in etcd; raises Nobody where none does."""
    try:
        return await site.cluster.leader()
    except EtcdUnavailable as error:
        raise Nobody(str(error)) from None


@asynccontextmanager
async def healed(stage: Stage) -> AsyncGenerator[None]:
    """Heals all members after the block, however that ends."""
    try:
        yield
    finally:
        try:
            for member in stage.site.cluster.members:
                if member.paused:
                    stage.note(Done.WOKEN, member.name)
        finally:
            await stage.site.heal()


def names(members: Sequence[Member]) -> str:
    """Whom a fault is done to, in one text."""
    return ", ".join(sorted(member.name for member in members))


# --- whom it is done to --------------------------------------------------------------------------------------


async def _leader(stage: Stage) -> list[Member]:
    return [await leader_of(stage.site)]


async def _follower(stage: Stage) -> list[Member]:
    leader = await leader_of(stage.site)
    return [stage.rng.choice([member for member in stage.site.cluster.members if member is not leader])]


async def _majority(stage: Stage) -> list[Member]:
    members = stage.site.cluster.members
    return stage.rng.sample(members, len(members) // 2 + 1)


async def _all(stage: Stage) -> list[Member]:
    return list(stage.site.cluster.members)


Chosen = Callable[[Stage], Awaitable[list[Member]]]


# --- what is done to them ------------------------------------------------------------------------------------


def _done_to(chosen: Chosen, do: Callable[[Member], None]) -> Callable[[Stage], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def act(stage: Stage) -> AsyncGenerator[None]:
        members = await chosen(stage)
        stage.on(names(members))
        async with healed(stage):
            for member in members:
                do(member)
            yield

    return act


@asynccontextmanager
async def _restart(stage: Stage) -> AsyncGenerator[None]:
    """Lets the leader end as an operator does; what it is about to answer, it answers, and then it is down."""
    leader = await leader_of(stage.site)
    stage.on(leader.name)
    async with healed(stage):
        try:
            leader.terminate()
            await leader.wait_ended(_TERMINATE_S)
            yield
        finally:
            leader.kill()


@asynccontextmanager
async def _stall(stage: Stage) -> AsyncGenerator[None]:
    """Stops and continues the leader again and again, which is all that others see of a disk that hangs."""
    leader = await leader_of(stage.site)
    stage.on(leader.name)
    async with healed(stage):
        stalling = asyncio.create_task(_stall_until_cancelled(stage, leader))
        try:
            yield
        finally:
            stalling.cancel()
            await asyncio.wait({stalling})


async def _stall_until_cancelled(stage: Stage, member: Member) -> None:
    rng = random.Random(stage.rng.random())
    while True:
        member.pause()
        await asyncio.sleep(rng.uniform(*_STALL_S))
        stage.note(Done.WOKEN, member.name)
        member.resume()
        await asyncio.sleep(rng.uniform(*_FLOW_S))


def _kill(name: str, about: str, chosen: Chosen) -> Fault[Stage]:
    return Fault(name, about, Lane.ETCD, (1.0, 4.0), _done_to(chosen, Member.kill))


def _pause(name: str, about: str, chosen: Chosen) -> Fault[Stage]:
    return Fault(name, about, Lane.ETCD, (1.0, 6.0), _done_to(chosen, Member.pause))


MEMBERS: tuple[Fault[Stage], ...] = (
    _kill("kill-etcd-leader", "the member that leads in etcd gets SIGKILL", _leader),
    _kill("kill-etcd-follower", "a member that does not lead in etcd gets SIGKILL", _follower),
    _kill("kill-etcd-majority", "so many members get SIGKILL that etcd has no quorum", _majority),
    _kill("kill-etcd-all", "all members get SIGKILL", _all),
    _pause("pause-etcd-leader", "the member that leads in etcd stands still (SIGSTOP)", _leader),
    _pause("pause-etcd-follower", "a member that does not lead in etcd stands still (SIGSTOP)", _follower),
    _pause("pause-etcd-majority", "so many members stand still (SIGSTOP) that etcd has no quorum", _majority),
    Fault("restart-etcd-leader", "the leader in etcd gets SIGTERM and is started again", Lane.ETCD, (0.5, 2), _restart),
    Fault("fsync-stall", "the leader in etcd stands still for short times, as by its disk", Lane.ETCD, (3, 6), _stall),
)
