"""Faults that operators of etcd bring about, or have to be called for: each is harmless to who is prepared for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from election.dev.etcd import Member
from election.drill.faults.fault import Fault, Lane, Nobody, Stage
from election.drill.faults.members import healed, leader_of
from election.drill.site import Site
from election.errors import Compacted, EtcdError
from election.etcd import methods
from election.pb.etcd import rpc_pb2 as rpc

_PATIENCE_S = 20.0
_POLL_S = 0.1
_REFUSING_VERSIONS = tuple(f"3.5.{number}" for number in range(6))
"""A member that joins by a snapshot may refuse everybody, and ends no lease when it leads (etcd #13134, #14571)."""


async def _member_ids(site: Site) -> dict[str, int]:
    """The ids of all members of the cluster, by their peer URLs."""
    request = rpc.MemberListRequest(linearizable=True)
    listed = await site.control.call(methods.MEMBER_LIST, request, timeout_s=_PATIENCE_S)
    return {url: each.ID for each in listed.members for url in each.peerURLs}


@asynccontextmanager
async def _compact(stage: Stage) -> AsyncGenerator[None]:
    """Up to what the history has, since its observer must miss nothing."""
    revision = stage.observed
    stage.on(f"revision {revision}")
    async with healed(stage):
        with suppress(Compacted):  # nothing was written since it was done before
            await stage.site.control.compact(revision)
        yield


@asynccontextmanager
async def _defragment(stage: Stage) -> AsyncGenerator[None]:
    """One member after the other, as operators do it: each serves nobody meanwhile."""
    stage.on("all members")
    async with healed(stage):
        for member in stage.site.cluster.members:
            async with stage.site.client_of(member) as client:
                await client.call(methods.DEFRAGMENT, rpc.DefragmentRequest(), timeout_s=_PATIENCE_S)
        yield


@asynccontextmanager
async def _fill_up(stage: Stage) -> AsyncGenerator[None]:
    control = stage.site.control
    _, header = await control.get(stage.keyspace.root)
    alarm = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=header.member_id, alarm=rpc.NOSPACE)
    disarm = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=header.member_id, alarm=rpc.NOSPACE)
    stage.on("all members")
    try:
        await control.call(methods.ALARM, alarm)
        yield
    finally:
        await control.call(methods.ALARM, disarm, timeout_s=_PATIENCE_S)
        await stage.site.heal()


@asynccontextmanager
async def _move_leader(stage: Stage) -> AsyncGenerator[None]:
    site = stage.site
    leader = await leader_of(site)
    to = stage.rng.choice([member for member in site.cluster.members if member is not leader])
    moving = rpc.MoveLeaderRequest(targetID=(await _member_ids(site))[to.peer_url])
    stage.on(f"{leader.name} to {to.name}")
    async with healed(stage), site.client_of(leader) as client:
        async with asyncio.timeout(_PATIENCE_S):
            while await site.cluster.leader() is leader:
                with suppress(EtcdError):  # it refuses while the other one is behind
                    await client.call(methods.MOVE_LEADER, moving)
        yield


@asynccontextmanager
async def _replace_member(stage: Stage) -> AsyncGenerator[None]:
    """A machine is lost with its disk, and a new one takes its place.

    That takes etcd five seconds when others have not been connected for as long, and seven more when what the new one
    tells of itself is lost among the changes that it catches up with.
    """
    site = stage.site
    if site.user and site.cluster.version in _REFUSING_VERSIONS:
        raise Nobody(f"a new member of etcd {site.cluster.version} may refuse all users")
    member = stage.rng.choice(site.cluster.members)
    lost = (await _member_ids(site))[member.peer_url]
    stage.on(member.name)
    try:
        member.kill()
        async with asyncio.timeout(_PATIENCE_S):
            while member.peer_url in await _member_ids(site):
                with suppress(EtcdError):  # it may have been removed by a call that has failed
                    await site.control.call(methods.MEMBER_REMOVE, rpc.MemberRemoveRequest(ID=lost))
        yield
    finally:
        async with asyncio.timeout(_PATIENCE_S):
            await _add_anew(site, member)
        await site.heal()


async def _add_anew(site: Site, member: Member) -> None:
    """Adds a member in the place of one that was removed; does nothing where it was not."""
    if member.peer_url in await _member_ids(site):
        return
    member.wipe()
    while member.peer_url not in await _member_ids(site):
        with suppress(EtcdError):  # etcd refuses until all others have been connected for five seconds
            await site.control.call(methods.MEMBER_ADD, rpc.MemberAddRequest(peerURLs=[member.peer_url]))
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _expire_tokens(stage: Stage) -> AsyncGenerator[None]:
    """Sets the password of the processes to what it is: the members forget all tokens of a user when they do that."""
    assert stage.site.user is not None
    name, password = stage.site.user
    stage.on(name)
    async with healed(stage):
        change = rpc.AuthUserChangePasswordRequest(name=name, password=password)
        await stage.site.control.call(methods.USER_CHANGE_PASSWORD, change)
        yield


_AT_ONCE_S = (0.5, 1.5)
"""For what is over as soon as it is done."""

OPERATIONS: tuple[Fault[Stage], ...] = (
    Fault("compact", "etcd forgets all history", Lane.ETCD, _AT_ONCE_S, _compact),
    Fault("defragment", "each member in turn rewrites its database", Lane.ETCD, _AT_ONCE_S, _defragment),
    Fault("no-space", "the alarm NOSPACE is raised: nothing can be put or granted", Lane.ETCD, (1, 4), _fill_up),
    Fault("move-etcd-leader", "another member is told to lead in etcd", Lane.ETCD, _AT_ONCE_S, _move_leader),
    Fault(
        "replace-member",
        "a member and its data are lost, a new one takes its place",
        Lane.ETCD,
        (1, 4),
        _replace_member,
    ),
    Fault(
        "auth-token-expired",
        "the members know no token of the processes any more",
        Lane.ETCD,
        _AT_ONCE_S,
        _expire_tokens,
        needs_users=True,
    ),
)
