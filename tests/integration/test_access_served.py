"""What callers hold through a server with a policy: sessions and terms of their own, over real etcd and real TLS."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from election.agent_records import AgentState
from election.bidi import BidiCall
from election.client import dial
from election.dev.etcd import EtcdCluster
from election.errors import PermissionDenied
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.server.access.gate import AccessConfig
from election.server.serving import GrpcServer
from election.store import Store, connect
from election.term import Term
from tests.integration.served_access import calling, need_openssl, outcome
from tests.integration.test_etcd_client import Authority

pytestmark = pytest.mark.etcd

POLICY = """
[[allow]]
role = "agent"
identities = ["cert:agent-*"]
agent = "agent-*"
[[allow]]
role = "candidate"
identities = ["cert:orchestrator"]
elections = ["scheduler"]
[[allow]]
role = "admin"
identities = ["cert:operator"]
"""
WAIT_S = 15.0


@dataclass(frozen=True)
class Site:
    """A server, and who makes certificates."""

    store: Store
    server: GrpcServer
    authority: Authority
    policy: Path


@pytest.fixture
async def site(tmp_path: Path, single_etcd: EtcdCluster, namespace: str) -> AsyncIterator[Site]:
    """That demands certificates, and lets in who the policy says."""
    need_openssl()
    authority = Authority.make(tmp_path, "authority")
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    tls = authority.sign("server")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(connect(single_etcd.endpoints, namespace=namespace))
        view = await stack.enter_async_context(store.view())
        server = GrpcServer(
            view, port=0, cert=tls.cert, key=tls.key, store=store,
            client_ca=authority.certificate, access=AccessConfig(policy),
        )  # fmt: skip
        yield Site(store, await stack.enter_async_context(server), authority, policy)


def opening(agent: str) -> pb.SessionRequest:
    """The first message of a session."""
    opened = pb.SessionRequest.Open(agent=agent, secret=secrets.token_bytes(32), ttl=Duration(seconds=5))
    return pb.SessionRequest(sequence=1, open=opened)


async def test_an_agent_holds_a_session_under_its_own_id_alone(site: Site) -> None:
    """Under another one nothing is registered; and it ends when the policy takes it away, with the lease as it was."""
    async with calling(site.server.port, site.authority.sign("agent-7")) as caller:
        agents = services.AgentsStub(caller.channel)
        for other in ("agent-8", "agent-77", "agents/agent-8"):
            call = BidiCall(agents.Session())
            await call.write(opening(other))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            refused = outcome(raised.value)
            assert (refused.code, refused.reason) == (StatusCode.PERMISSION_DENIED, "NOT_YOUR_AGENT")
        call = BidiCall(agents.Session())
        await call.write(opening("agents/agent-7"))
        opened = await call.read()
        assert isinstance(opened, pb.SessionResponse)
        assert opened.opened.incarnation > 0
        site.policy.write_text(POLICY.replace("cert:agent-*", "cert:agent-x*"))
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
        assert outcome(raised.value).reason == "ROLE_MISSING"
        async with site.store.view() as view:
            found = (await view.agents()).value
        assert [(each.id, each.state) for each in found] == [("agent-7", AgentState.ALIVE)]


async def test_a_candidate_stands_for_its_elections_alone(site: Site) -> None:
    """It leads no longer than the policy lets it, and again when that lets it again."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(term: Term) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with dial(site.server.address, tls=site.authority.sign("orchestrator")) as client, asyncio.timeout(WAIT_S):
        with pytest.raises(PermissionDenied, match="but not for the election 'other'"):
            await client.candidate("other", id="one").lead(work)
        assert not began.is_set()
        leading = asyncio.create_task(client.candidate("scheduler", id="one", ttl_s=3).lead(work))
        await began.wait()
        site.policy.write_text(POLICY.replace("cert:orchestrator", "cert:nobody"))
        await ended.wait()
        async with site.store.view() as view:
            while (await view.leader("scheduler")).value is not None:
                await asyncio.sleep(0.02)
        assert not leading.done()  # it stands again when it may
        ended.clear()
        began.clear()
        site.policy.write_text(POLICY)
        await began.wait()
        leading.cancel()
        await asyncio.wait({leading})


async def test_what_an_operator_does_has_its_name(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """In etcd and in the log; an agent may not do it, not even to itself."""
    caplog.set_level(logging.INFO, "election.audit")
    async with calling(site.server.port, site.authority.sign("agent-7")) as caller:
        call = BidiCall(services.AgentsStub(caller.channel).Session())
        await call.write(opening("agent-7"))
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await services.AgentsStub(caller.channel).DrainAgent(pb.DrainAgentRequest(id="agent-7"))
        assert outcome(raised.value).reason == "ROLE_MISSING"
        async with calling(site.server.port, site.authority.sign("operator")) as operator:
            agents = services.AgentsStub(operator.channel)
            drained = await agents.DrainAgent(pb.DrainAgentRequest(id="agents/agent-7"))
            assert (drained.draining, drained.by) == (True, "cert:operator")
        call.cancel()
    said = [record.getMessage() for record in caplog.records if record.name == "election.audit"]
    assert ['"PERMISSION_DENIED"' in said[0], '"OK"' in said[1], len(said)] == [True, True, 2]
