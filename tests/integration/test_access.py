"""Who may use the API: files that are replaced meanwhile, limits that are reached, and what is left in logs."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped]
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from election.api.statuses import DETAILS_METADATA
from election.client import Client, dial
from election.config import TlsConfig
from election.errors import BadToken, ConfigError, LimitExceeded, PermissionDenied, Unauthenticated
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Answer, Source
from election.records import Election
from election.server.access.gate import AccessConfig
from election.server.access.limits import LimitsConfig
from election.server.access.tokens import new_token
from election.server.serving import GrpcServer
from tests.integration.served_access import (
    METHODS,
    WAIT_S,
    Caller,
    Outcome,
    Silent,
    calling,
    need_openssl,
    outcome,
    request_for,
    serving_access,
    sign,
)
from tests.integration.test_etcd_client import Authority

LOOKED_S = 1.2
"""The files are looked at once a second at most."""
ENDED_S = 6.0
"""Streams that are not allowed any more end within two seconds, where nothing is slow."""

GET, WATCH, DRAIN = (
    "/election.v1.Elections/GetLeader",
    "/election.v1.Elections/WatchLeader",
    "/election.v1.Agents/DrainAgent",
)
RULE = '[[allow]]\nrole = "{}"\nidentities = ["{}"]\n'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whom the server trusts."""
    need_openssl()
    return Authority.make(tmp_path, "authority")


@pytest.fixture
def server(authority: Authority) -> TlsConfig:
    """The server's own copies of its files, which can be replaced."""
    return copied(authority.sign("server"), authority.folder / "own")


def copied(source: TlsConfig, folder: Path) -> TlsConfig:
    """Replaces what is in the folder."""
    folder.mkdir(exist_ok=True)
    names = ("ca.pem", "cert.pem", "key.pem")
    for file, name in zip((source.cacert, source.cert, source.key), names, strict=True):
        assert file
        shutil.copyfile(file, folder / name)
    return TlsConfig(*(folder / name for name in names))


def written(folder: Path, text: str) -> Path:
    """A policy."""
    file = folder / "policy.toml"
    file.write_text(text)
    return file


async def code(caller: Caller, path: str = GET, request: Any = None) -> StatusCode:
    """How a call ends."""
    return (await caller.call(path, request)).code


# --- what a certificate may say ---------------------------------------------------------------------------------------


async def test_names_of_a_real_certificate_are_identities(
    authority: Authority, server: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gRPC tells them: the SPIFFE ID of one URI, and the DNS names."""
    policy = written(
        authority.folder,
        RULE.format("agent", "spiffe://example.org/ns/fleet/sa/agent-*")
        + 'agent = "agent-*"\n'
        + RULE.format("candidate", "dns:*.fleet.example.org"),
    )
    agent_7 = sign(authority.folder, "authority", "a", names="URI:spiffe://example.org/ns/fleet/sa/agent-7")
    two_uris = sign(
        authority.folder, "authority", "b",
        names="URI:spiffe://example.org/ns/fleet/sa/agent-7,URI:spiffe://example.org/ns/fleet/sa/agent-8",
    )  # fmt: skip
    other_uri = sign(authority.folder, "authority", "c", names="URI:https://example.org/ns/fleet/sa/agent-7")
    orchestrator = sign(authority.folder, "authority", "d", names="DNS:example.org,DNS:o1.fleet.example.org")
    access = AccessConfig(policy)
    session, campaign = "/election.v1.Agents/Session", "/election.v1.Elections/Campaign"
    async with serving_access(monkeypatch, server, access, client_ca=authority.certificate) as (port, _):
        async with calling(port, agent_7) as caller:
            assert await code(caller, session) is StatusCode.OK
            other = await caller.call(session, request_for(METHODS[session], agent="agent-8"))
            assert (other.code, other.reason) == (StatusCode.PERMISSION_DENIED, "NOT_YOUR_AGENT")
            assert await code(caller, campaign) is StatusCode.PERMISSION_DENIED
        for certificate in (two_uris, other_uri):
            async with calling(port, certificate) as caller:
                assert await code(caller) is StatusCode.PERMISSION_DENIED
        async with calling(port, orchestrator) as caller:
            assert await code(caller, campaign) is StatusCode.OK
            assert (await caller.call(session)).reason == "NOT_YOUR_AGENT"


async def test_elections_are_as_the_policy_bounds_them(
    authority: Authority, server: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under their resource names too; and one that cannot be is a bad request."""
    policy = written(authority.folder, RULE.format("candidate", "cert:c") + 'elections = ["scheduler", "batch-*"]\n')
    paths = (GET, WATCH, "/election.v1.Elections/ListCandidates", "/election.v1.Elections/CheckToken")
    expected = {
        "scheduler": StatusCode.OK,
        "elections/scheduler": StatusCode.OK,
        "batch-7": StatusCode.OK,
        "other": StatusCode.PERMISSION_DENIED,
        "elections/other": StatusCode.PERMISSION_DENIED,
        "elections/elections/scheduler": StatusCode.INVALID_ARGUMENT,
        "": StatusCode.INVALID_ARGUMENT,
    }
    async with (
        serving_access(monkeypatch, server, AccessConfig(policy), client_ca=authority.certificate) as (port, _),
        calling(port, authority.sign("c")) as caller,
    ):
        for path in paths:
            found = {named: await code(caller, path, request_for(METHODS[path], election=named)) for named in expected}
            assert found == expected, path


class Listing(Silent):
    """A reader that knows three elections."""

    async def elections(self, *, linearizable: bool = False) -> Answer[tuple[Election, ...]]:
        names = ("batch-1", "other", "scheduler")
        return Answer(tuple(Election(name, 1, None) for name in names), Source(1, 2, 0.0))


async def test_a_list_has_what_the_caller_may_read(authority: Authority, server: TlsConfig) -> None:
    """And does not tell that there is more."""
    policy = written(authority.folder, RULE.format("reader", "cert:c") + 'elections = ["scheduler", "batch-*"]\n')
    reader: Any = Listing()
    async with (
        GrpcServer(
            reader, port=0, cert=server.cert, key=server.key,
            client_ca=authority.certificate, access=AccessConfig(policy),
        ) as running,
        dial(running.address, tls=authority.sign("c")) as client,
        dial(running.address, tls=authority.sign("x")) as stranger,
    ):  # fmt: skip
        assert [each.name for each in (await client.elections()).value] == ["batch-1", "scheduler"]
        with pytest.raises(PermissionDenied, match="this needs the role reader, and the policy gives cert:x none"):
            await stranger.elections()


# --- files that are replaced ------------------------------------------------------------------------------------------


async def code_with(port: int, tls: TlsConfig) -> StatusCode:
    async with calling(port, tls) as caller:
        return await code(caller)


async def test_certificates_are_replaced_without_dropping_anybody(
    authority: Authority, server: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the server's certificate and then the authority of its clients: who is connected stays connected."""
    successor = Authority.make(authority.folder, "successor")
    old, new = authority.sign("old"), successor.sign("new")
    async with serving_access(monkeypatch, server, client_ca=server.cacert) as (port, handlers):
        handlers.hang = True
        async with calling(port, old) as first:
            watch = first.start(WATCH, timeout_s=None)
            await watch.read()
            handlers.hang = False

            copied(successor.sign("server-2"), authority.folder / "own")
            await asyncio.sleep(LOOKED_S)
            for tls, expected in [
                (old, StatusCode.UNAVAILABLE),  # it does not trust the new server
                (TlsConfig(new.cacert, old.cert, old.key), StatusCode.UNAVAILABLE),  # whom the server trusts no more
                (new, StatusCode.OK),
            ]:
                async with asyncio.timeout(WAIT_S):
                    while await code_with(port, tls) is not expected:  # the files may have been looked at midway
                        await asyncio.sleep(0.2)
            assert await code(first) is StatusCode.OK
            assert not watch.done()
            watch.cancel()


async def test_files_that_are_half_written_refuse_nobody(
    authority: Authority, server: TlsConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was there before serves on, and each fault is one line in the log."""
    assert server.cert
    assert server.cacert
    async with serving_access(monkeypatch, server, client_ca=server.cacert) as (port, _):
        for file in (server.cert, server.cacert):
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            await asyncio.sleep(LOOKED_S)
            for _ in range(2):
                async with calling(port, authority.sign("c")) as caller:
                    assert await code(caller) is StatusCode.OK
            file.write_bytes(whole)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    assert all(text.startswith("the server's TLS files have changed, and those before stay in use: ") for text in said)


async def test_a_stream_ends_when_the_policy_takes_it_away(
    authority: Authority, server: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon, with the reason; the streams of others go on."""
    policy = written(authority.folder, RULE.format("reader", "cert:*"))
    access = AccessConfig(policy)
    async with serving_access(monkeypatch, server, access, client_ca=authority.certificate) as (port, handlers):
        handlers.hang = True
        async with calling(port, authority.sign("a")) as one, calling(port, authority.sign("b")) as other:
            watches = [caller.start(WATCH, timeout_s=None) for caller in (one, other)]
            for watch in watches:
                await watch.read()
            policy.write_text(RULE.format("reader", "cert:b"))
            async with asyncio.timeout(ENDED_S):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await watches[0].read()
            ended = outcome(raised.value)
            assert (ended.code, ended.reason) == (StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
            assert not watches[1].done()
            assert await code(one) is StatusCode.PERMISSION_DENIED
            watches[1].cancel()


async def test_a_client_goes_on_with_the_token_that_its_file_has_now(authority: Authority, server: TlsConfig) -> None:
    """As Kubernetes replaces it; a wrong one is one error, and no secret is in it."""
    folder, reader = authority.folder, Listing()
    (one, one_line), (two, two_line) = new_token("client"), new_token("client")
    tokens, held = folder / "tokens", folder / "token"
    tokens.write_text(f"{one_line}\n")
    held.write_text(one)
    access = AccessConfig(token_file=tokens)
    tls = TlsConfig(authority.certificate)
    serves: Any = reader
    async with GrpcServer(serves, port=0, cert=server.cert, key=server.key, access=access) as running:
        async with dial(running.address, tls=tls) as anonymous:
            with pytest.raises(Unauthenticated, match="the caller has shown no identity"):
                await anonymous.elections()
        async with dial(running.address, tls=tls, token=held) as client:
            assert len((await client.elections()).value) == 3
            tokens.write_text(f"{two_line}\n")
            await asyncio.sleep(LOOKED_S)
            with pytest.raises(BadToken) as raised:
                await client.elections()
            assert one not in str(raised.value)
            held.write_text(two)
            await asyncio.sleep(LOOKED_S)
            assert len((await client.elections()).value) == 3


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_too_many_requests_have_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says when to ask again, in the way of google.rpc; and the client makes an error of its own of it."""
    access = AccessConfig(limits=LimitsConfig(requests_per_s=2))
    async with serving_access(monkeypatch, None, access) as (port, _), calling(port, None) as caller:
        assert await code(caller) is StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await again_and_again(lambda: caller.start(GET))
        refused = outcome(raised.value)
        assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
        assert 0 < retry_of(raised.value).ToMilliseconds() <= 500
        async with Client(f"127.0.0.1:{port}") as client:
            with pytest.raises(LimitExceeded, match="more than 2 requests in a second"):
                await again_and_again(lambda: client.leader("scheduler"))
        await asyncio.sleep(0.5)
        assert await code(caller) is StatusCode.OK


async def again_and_again(call: Callable[[], Awaitable[object]]) -> None:
    """More calls than any machine makes so slowly that a small limit does not matter."""
    for _ in range(100):
        await call()


def retry_of(error: grpc.aio.AioRpcError) -> Duration:
    """When to ask again."""
    (packed,) = [value for key, value in error.trailing_metadata() or () if key == DETAILS_METADATA]
    retry = details.RetryInfo()
    assert RpcStatus.FromString(packed).details[1].Unpack(retry)
    delay: Duration = retry.retry_delay
    return delay


async def test_too_many_streams_have_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends makes room; calls that are no streams go on."""
    access = AccessConfig(limits=LimitsConfig(streams=2))
    async with serving_access(monkeypatch, None, access) as (port, handlers), calling(port, None) as caller:
        handlers.hang = True
        watches = [caller.start(WATCH, timeout_s=None) for _ in range(2)]
        for watch in watches:
            await watch.read()
        third = await caller.call(WATCH)
        assert (third.code, third.reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        handlers.hang = False
        assert await code(caller) is StatusCode.OK
        watches[0].cancel()
        async with asyncio.timeout(5):
            while await code(caller, WATCH) is not StatusCode.OK:
                await asyncio.sleep(0.02)
        watches[1].cancel()


async def test_watches_of_health_are_streams_of_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to say who it is for one: else they would be without end. One that ends makes room."""
    access, request = AccessConfig(limits=LimitsConfig(streams=2)), health_pb2.HealthCheckRequest()
    async with serving_access(monkeypatch, None, access) as (port, _), calling(port, None) as caller:
        stub = health_pb2_grpc.HealthStub(caller.channel)
        for _ in range(5):
            watches = [stub.Watch(request) for _ in range(2)]
            async with asyncio.timeout(5):
                for number, watch in enumerate(watches):
                    while (await first_status(watch)).reason == "TOO_MANY_STREAMS":
                        await asyncio.sleep(0.02)
                        watches[number] = watch = stub.Watch(request)
            third = await first_status(stub.Watch(request))
            assert (third.code, third.reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
            await stub.Check(request)
            for watch in watches:
                watch.cancel()


async def first_status(watch: Any) -> Outcome:
    """What becomes of a watch with its first message."""
    try:
        assert await watch.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError as error:
        return outcome(error)
    return Outcome(StatusCode.OK)


async def test_a_message_may_be_so_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC itself refuses a larger one, before anybody looks at it."""
    access = AccessConfig(limits=LimitsConfig(message_bytes=2000))
    async with serving_access(monkeypatch, None, access) as (port, handlers), calling(port, None) as caller:
        assert await code(caller, GET, pb.GetLeaderRequest(election="x" * 1900)) is StatusCode.OK
        assert await code(caller, GET, pb.GetLeaderRequest(election="x" * 2100)) is StatusCode.RESOURCE_EXHAUSTED
        assert handlers.reached == [GET]


async def test_a_call_without_a_deadline_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream does not, and a call with one of its own keeps that."""
    access = AccessConfig(limits=LimitsConfig(deadline_s=0.2))
    async with serving_access(monkeypatch, None, access) as (port, handlers), calling(port, None) as caller:
        handlers.hang = True
        watch = caller.start(WATCH, timeout_s=None)
        await watch.read()
        ended = await caller.call(GET, timeout_s=None)
        assert (ended.code, ended.reason) == (StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
        assert ended.text == "it took longer than 0.2 s, which a call without a deadline may take"
        own = await caller.call(GET, timeout_s=0.5)
        assert (own.code, own.reason) == (StatusCode.DEADLINE_EXCEEDED, "")
        assert not watch.done()
        watch.cancel()


async def test_what_a_caller_holds_outlasts_a_stale_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches end, since they would tell what is no more; a session and a campaign do not, but with the server."""
    held = ("/election.v1.Agents/Session", "/election.v1.Elections/Campaign")
    async with AsyncExitStack() as after_the_server:
        async with serving_access(monkeypatch, None) as (port, handlers):
            caller = await after_the_server.enter_async_context(calling(port, None))
            handlers.hang = True
            calls = {path: caller.start(path, timeout_s=None) for path in (WATCH, *held)}
            for call in calls.values():
                await call.read()
            handlers.reader.is_stale = True
            async with asyncio.timeout(ENDED_S):
                assert await ending(calls[WATCH]) == "VIEW_STALE"
            await asyncio.sleep(LOOKED_S)
            assert not any(calls[path].done() for path in held)
        assert [await ending(calls[path]) for path in held] == ["SHUTTING_DOWN"] * 2


async def ending(call: Any) -> str:
    """The reason that a stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return outcome(raised.value).reason


# --- what is left in logs ---------------------------------------------------------------------------------------------


async def test_what_operators_do_is_one_line_each(
    authority: Authority,
    server: TlsConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who, what, on what, from where, and how it ended; what was refused as well. Others leave none."""
    caplog.set_level(logging.INFO, "election.audit")
    token, line = new_token("helper", datetime.now(UTC) + timedelta(hours=1))
    tokens = authority.folder / "tokens"
    tokens.write_text(str(line))
    access = AccessConfig(
        written(authority.folder, RULE.format("admin", "cert:op*") + RULE.format("reader", "*")), tokens
    )
    drain = pb.DrainAgentRequest(id="agents/w7\n{}", undo=True)
    async with serving_access(monkeypatch, server, access, client_ca=authority.certificate) as (port, handlers):
        async with calling(port, authority.sign("operator"), token) as caller:
            assert await code(caller, DRAIN, drain) is StatusCode.OK
            handlers.hang = True
            assert (await caller.call(DRAIN, drain, timeout_s=0.2)).code is StatusCode.DEADLINE_EXCEEDED
            handlers.hang = False
            await caller.call(GET)
        async with calling(port, authority.sign("guest")) as caller:
            assert await code(caller, DRAIN, drain) is StatusCode.PERMISSION_DENIED
        async with calling(port, authority.sign("liar"), "no-such-secret") as caller:
            assert await code(caller, DRAIN, drain) is StatusCode.UNAUTHENTICATED
    lines = [record.getMessage() for record in caplog.records if record.name == "election.audit"]
    said = [json.loads(line) for line in lines]
    assert [(each["who"], each["code"]) for each in said] == [
        (["cert:operator", "token:helper"], "OK"),
        (["cert:operator", "token:helper"], "CANCELLED"),
        (["cert:guest"], "PERMISSION_DENIED"),
        (["cert:liar"], "UNAUTHENTICATED"),
    ]
    assert {(each["did"], each["on"]) for each in said} == {(DRAIN, "agents/w7\n{}")}
    assert all(each["asked"] == {"undo": True} for each in said)
    assert all(each["from"].startswith("ipv4:127.0.0.1:") for each in said)
    assert not any("\n" in line for line in lines)
    assert token not in caplog.text
    assert "no-such-secret" not in caplog.text


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(authority: Authority, server: TlsConfig) -> None:
    """Before anything listens."""
    reader: Any = Silent()
    with pytest.raises(ConfigError, match="an authority for client certificates needs TLS"):
        GrpcServer(reader, client_ca=authority.certificate)
    with pytest.raises(ConfigError, match="give both or none"):
        GrpcServer(reader, cert=server.cert)
    policy = AccessConfig(written(authority.folder, RULE.format("admin", "*")))
    with pytest.raises(ConfigError, match="tells callers apart"):
        GrpcServer(reader, cert=server.cert, key=server.key, access=policy)
    assert server.cert
    with pytest.raises(ConfigError, match="cannot be used"):
        GrpcServer(reader, cert=server.cert, key=server.key, client_ca=written(authority.folder, "x"))
