"""Every RPC, every role, and every way to show who one is, over real sockets: what the table allows, and no more."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]

from election.config import TlsConfig
from election.server.access.bearer import JwtConfig
from election.server.access.gate import AccessConfig
from election.server.access.tokens import new_token
from tests.integration.served_access import (
    METHODS,
    Caller,
    Handlers,
    Outcome,
    calling,
    first_of,
    need_openssl,
    serving_access,
    without_certificate,
)
from tests.integration.test_etcd_client import Authority
from tests.unit.signer import AUDIENCE, ISSUER, Signer, write_jwks

ROLES = ("nobody", "reader", "agent-7", "candidate", "admin")
"""Names of callers, by what they may: `nobody` is somebody whom the policy does not name."""

TABLE = {
    "/election.v1.Elections/GetLeader": "reader",
    "/election.v1.Elections/WatchLeader": "reader",
    "/election.v1.Elections/ListElections": "reader",
    "/election.v1.Elections/ListCandidates": "reader",
    "/election.v1.Elections/CheckToken": "reader",
    "/election.v1.Elections/Campaign": "candidate",
    "/election.v1.Agents/ListAgents": "reader",
    "/election.v1.Agents/GetAgent": "reader",
    "/election.v1.Agents/WatchAgents": "reader",
    "/election.v1.Agents/ListTombstones": "reader",
    "/election.v1.Agents/GetBreaker": "reader",
    "/election.v1.Agents/Session": "agent-7 only",
    "/election.v1.Agents/DrainAgent": "admin",
    "/election.v1.Agents/ReapAgent": "admin",
    "/election.v1.Agents/RestoreAgent": "admin",
}
"""The lowest role that may call each; written here once more, so that a mistake in the other table shows."""

POLICY = """
[[allow]]
role = "reader"
identities = ["cert:reader", "token:reader", "jwt:reader"]
[[allow]]
role = "agent"
identities = ["cert:agent-*", "token:agent-*", "jwt:agent-*"]
agent = "agent-*"
[[allow]]
role = "candidate"
identities = ["cert:candidate", "token:candidate", "jwt:candidate"]
[[allow]]
role = "admin"
identities = ["cert:admin", "token:admin", "jwt:admin"]
[[allow]]
role = "admin"
identities = ["cert:nobody", "token:nobody", "jwt:nobody"]
namespaces = ["other-*"]
"""

WITH_CERTIFICATES = ("no certificate", "wrong authority", "expired certificate", "right certificate")
WITH_TOKENS = (
    "no token",
    "wrong token",
    "expired token",
    "expired JWT",
    "JWT of somebody else",
    "right token",
    "right JWT",
)


def test_every_method_has_its_row() -> None:
    """A new RPC without one fails here, and the server does not start with it either."""
    assert set(TABLE) == set(METHODS)


def allowed(path: str, role: str) -> bool:
    """What the table says."""
    needed = TABLE[path]
    return role == "agent-7" if needed == "agent-7 only" else ROLES.index(role) >= ROLES.index(needed)


async def ask_all(caller: Caller, handlers: Handlers) -> dict[str, tuple[Outcome, bool]]:
    """How each RPC ended, and whether its handler was reached."""
    found = {}
    for path in METHODS:
        handlers.begun.clear()
        handlers.reached.clear()
        ended = await caller.call(path)
        assert not (handlers.begun and ended.reason == "ROLE_MISSING"), path
        found[path] = ended, handlers.reached == [path]
    return found


def check(found: dict[str, tuple[Outcome, bool]], role: str, refused: tuple[StatusCode, str] | None) -> None:
    """All of them: refused alike, or by the table where `refused` is None."""
    for path, (ended, reached) in found.items():
        if refused is not None:
            assert ((ended.code, ended.reason), reached) == (refused, False), path
        elif allowed(path, role):
            assert (ended, reached) == (Outcome(StatusCode.OK), True), path
        else:
            missing = (
                ("NOT_YOUR_AGENT",)
                if path.endswith("Session") and role in ("candidate", "admin")
                else ("ROLE_MISSING",)
            )
            assert ended.code is StatusCode.PERMISSION_DENIED, (path, ended)
            assert (ended.reason, reached) == (*missing, False), path


async def reflects(caller: Caller) -> Outcome:
    """Whether the server describes itself."""
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return await first_of(stub.ServerReflectionInfo(iter([request]), timeout=10, metadata=caller.metadata))


async def is_healthy(caller: Caller) -> Outcome:
    """Whether the server tells how it is."""
    stub = health_pb2_grpc.HealthStub(caller.channel)
    return await first_of(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10, metadata=caller.metadata))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whom the server trusts."""
    need_openssl()
    return Authority.make(tmp_path, "authority")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The rules of all tests here."""
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


# --- client certificates ------------------------------------------------------------------------------------------


@pytest.fixture
async def mutual(
    authority: Authority, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[int, Handlers]]:
    """A server that demands certificates."""
    server = authority.sign("server")
    async with serving_access(monkeypatch, server, AccessConfig(policy), client_ca=authority.certificate) as (
        port,
        handlers,
    ):
        yield port, handlers


def shown(authority: Authority, role: str, how: str) -> TlsConfig:
    """What a caller of that name has."""
    if how == "no certificate":
        return without_certificate(authority.sign(role))
    if how == "wrong authority":
        strange = Authority.make(authority.folder, "stranger").sign(role)
        return TlsConfig(authority.certificate, strange.cert, strange.key)
    return authority.sign(role, days=-1 if how == "expired certificate" else 2)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("how", WITH_CERTIFICATES)
async def test_certificates(mutual: tuple[int, Handlers], authority: Authority, role: str, how: str) -> None:
    """Whose certificate is wrong is not connected at all; whose is right may do what the table says."""
    port, handlers = mutual
    async with calling(port, shown(authority, role, how)) as caller:
        found = await ask_all(caller, handlers)
        check(found, role, None if how == "right certificate" else (StatusCode.UNAVAILABLE, ""))
        right = how == "right certificate"
        assert ((await is_healthy(caller)).code is StatusCode.OK) == right
        assert ((await reflects(caller)).code is StatusCode.OK) == (right and role != "nobody")


# --- bearer tokens ------------------------------------------------------------------------------------------------


class Issuer:
    """Makes tokens of all kinds, and the files that the server knows them by."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self._signer, self._stranger = Signer("one"), Signer("one")
        self._right = {role: new_token(role) for role in ROLES}
        self._expired = {role: new_token(role, now - timedelta(seconds=1)) for role in ROLES}
        self._past = int((now - timedelta(minutes=1)).timestamp())
        lines = [str(line) for made in (self._right, self._expired) for _, line in made.values()]
        tokens = folder / "tokens"
        tokens.write_text("\n".join(lines))
        jwks = write_jwks(folder / "jwks.json", self._signer.jwk)
        self.tokens, self.jwt = tokens, JwtConfig(jwks, ISSUER, AUDIENCE)

    def token(self, role: str, how: str) -> str | None:
        """What a caller of that name has."""
        made = {
            "no token": None,
            "wrong token": new_token(role)[0],
            "expired token": self._expired[role][0],
            "expired JWT": self._signer.sign(role, exp=self._past),
            "JWT of somebody else": self._stranger.sign(role),
            "right token": self._right[role][0],
            "right JWT": self._signer.sign(role),
        }
        return made[how]


REASONS = {
    "no token": "NO_IDENTITY",
    "wrong token": "BAD_TOKEN",
    "expired token": "TOKEN_EXPIRED",
    "expired JWT": "TOKEN_EXPIRED",
    "JWT of somebody else": "BAD_TOKEN",
}


@pytest.mark.parametrize("role", ROLES)
async def test_tokens(
    authority: Authority,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    role: str,
) -> None:
    """Over TLS without client certificates: who shows no token or a wrong one may nothing. No log shows any."""
    caplog.set_level(logging.DEBUG)
    issuer = Issuer(tmp_path)
    server = authority.sign("server")
    async with serving_access(monkeypatch, server, AccessConfig(policy, issuer.tokens, issuer.jwt)) as (port, handlers):
        for how in WITH_TOKENS:
            token = issuer.token(role, how)
            async with calling(port, without_certificate(server), token) as caller:
                found = await ask_all(caller, handlers)
                check(found, role, (StatusCode.UNAUTHENTICATED, REASONS[how]) if how in REASONS else None)
                assert (await is_healthy(caller)).code is StatusCode.OK
                assert ((await reflects(caller)).code is StatusCode.OK) == (how not in REASONS and role != "nobody")
            if token is not None:
                assert not any(token in ended.text for ended, _ in found.values())
                assert token not in caplog.text
                assert not any(part in caplog.text for part in token.split(".")[1:])
