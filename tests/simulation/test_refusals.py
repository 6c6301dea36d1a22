"""What a candidate does when etcd refuses its user something: it is told once, and stops in time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from election.config import EtcdConfig
from election.errors import AccessDenied, EtcdUnavailable, LossReason
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import RpcFailed
from election.leadership import Leading
from tests.fake.clock import virtual
from tests.fake.transport import FakeTransport
from tests.simulation.world import leads, standing, world


def refuse(transport: FakeTransport, *refused: Method[Any, Any]) -> None:
    """Lets etcd permit all but these methods."""

    async def before(member: int, method: Method[Req, Resp], request: Message) -> None:
        if method in refused:
            raise RpcFailed(StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

    transport.before_call = before


@virtual
async def test_a_leader_that_may_not_read_any_more_stops_although_its_lease_is_renewed() -> None:
    """Nobody would tell it that its key is gone; an outage of the watch that is shorter costs nothing."""
    here = world()
    async with standing(here, ["a", "b"]) as [a, b]:
        await leads(a)
        for outage_s in (8, 40):
            assert a.candidate.is_leader
            refuse(a.transport, methods.WATCH, methods.RANGE)
            a.transport.cut(0, 1, 2)
            await asyncio.sleep(0.5)
            a.transport.mend()
            await asyncio.sleep(outage_s)
            a.transport.before_call = None
        assert not a.candidate.is_leader
        assert a.candidate.loss is not None
        assert a.candidate.loss.reason is LossReason.EXPIRED
        assert a.candidate.loss.margin_s > 0
        await leads(b)
    here.check_spans()


@virtual
async def test_a_leader_whose_renewals_are_refused_says_so_once_and_stops_at_its_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It tries again until then, and says it again only after a renewal that succeeded."""
    here = world()
    async with standing(here, ["a"]) as [node]:
        await leads(node)
        for times in (1, 2):
            refuse(node.transport, methods.LEASE_KEEP_ALIVE)
            await asyncio.sleep(4)
            assert node.candidate.is_leader
            assert [record.getMessage()[:6] for record in caplog.records].count("lease ") == times
            node.transport.before_call = None
            await asyncio.sleep(4)
            assert node.candidate.is_leader
        state = node.candidate.state
        assert isinstance(state, Leading)
        refuse(node.transport, methods.LEASE_KEEP_ALIVE)
        await asyncio.sleep(10)
        assert node.candidate.loss is not None
        assert node.candidate.loss.reason is LossReason.EXPIRED
        node.transport.before_call = None
    here.check_spans()


@virtual
async def test_a_candidate_who_may_not_stand_is_told_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first attempt raises it; later ones are logged, and made again until it is permitted."""
    here = world()
    async with here.node("a") as node:
        refuse(node.transport, methods.CAMPAIGN)
        with pytest.raises(AccessDenied, match="no permission for /election/sim/campaigns/demo/"):
            await node.candidate.lead(here.work)

        node.transport.before_call = None
        standing = asyncio.create_task(node.candidate.lead(here.work))
        await leads(node)
        refuse(node.transport, methods.CAMPAIGN)
        assert isinstance(node.candidate.state, Leading)
        await node.client.lease_revoke(node.candidate.state.lease)
        await asyncio.sleep(10)
        assert not node.candidate.is_leader
        assert any(record.getMessage().startswith("a cannot stand for 'demo': ") for record in caplog.records)
        node.transport.before_call = None
        await leads(node)
        node.candidate.leave()
        await standing
    here.check_spans()


@virtual
async def test_a_call_that_cannot_get_a_token_tries_again_until_its_deadline() -> None:
    """Nothing was sent, so also a call that must not be repeated; one link that is reset costs nobody an attempt."""
    here = world()
    here.etcd.users["me"] = "secret"
    transport = FakeTransport(here.etcd)
    config = EtcdConfig(transport.endpoints, user="me", password="secret", call_timeout_s=5)
    refused = 0

    async def reset(member: int, method: Method[Req, Resp], request: Message) -> None:
        nonlocal refused
        if method.path == methods.AUTHENTICATE.path and refused < 4:
            refused += 1
            raise RpcFailed(StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer (104)")

    transport.before_call = reset
    async with EtcdClient(config, clock=here.etcd.clock, transport=transport) as client:
        await client.put(b"/election/key", b"")
        assert refused == 4
    refused = -(10**6)
    async with EtcdClient(config, clock=here.etcd.clock, transport=transport) as client:
        began_s = here.etcd.clock.now_s()
        with pytest.raises(EtcdUnavailable):
            await client.put(b"/election/key", b"")
        assert 4 < here.etcd.clock.now_s() - began_s < 6
