"""Who calls: the one place where what a connection and its metadata say becomes a `Caller`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from election.clock import BootClock, Clock
from election.errors import AccessReason, ConfigError, Unauthenticated
from election.reloaded import Reloaded
from election.server.access.caller import ANONYMOUS, Caller
from election.server.access.identity import (
    JWT,
    TOKEN,
    authorization_of,
    bearer_token,
    certificate_identities,
)
from election.server.access.limits import Limits, LimitsConfig
from election.server.access.policy import PUBLIC, READ_ONLY, Granted, Policy
from election.server.access.policy_file import read_policy
from election.server.access.tokens import read_tokens

_REMEMBERED = 10_000
"""Of so many callers it is remembered what they may do; each is a certificate and a token."""


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """Whose signed tokens are taken: of this issuer, for this audience, signed with a key of this JWKS file."""

    jwks: Path
    issuer: str
    audience: str

    @classmethod
    def of(cls, jwks: Path | None, issuer: str | None, audience: str | None) -> JwtConfig | None:
        """From options that may be given or not; None where none is; raises ConfigError where one is missing."""
        if jwks is None and issuer is None and audience is None:
            return None
        if jwks is None or not issuer or not audience:
            raise ConfigError("JWTs need all three: a JWKS file, the issuer and the audience; else any token would do")
        return cls(jwks, issuer, audience)


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """How callers show who they are besides a client certificate, what they may do, and how often."""

    policy: Path | None = None
    token_file: Path | None = None
    jwt: JwtConfig | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(frozen=True, slots=True)
class _Known:
    identities: tuple[str, ...]
    granted: Granted
    until_s: float | None  # by the time of day, since that is what tokens name


class Gate:
    """Tells who calls and what they may do. All files are read again when they change.

    Without a policy file callers that show who they are may read; where there is no way to show it, everybody may, and
    on a plain-text server everybody may do everything.

    Raises:
        ConfigError: for files that cannot be used at the beginning, and for a policy without a way to know callers.
    """

    def __init__(
        self, config: AccessConfig, namespace: str, *, tls: bool, client_certificates: bool, clock: Clock | None = None
    ) -> None:
        self._clock = clock or BootClock()
        self._namespace = namespace
        self._certificates = client_certificates
        self._jwt = config.jwt
        self._tokens = self._file("token files", config.token_file, read_tokens)
        self._keys = None
        if config.jwt is not None:
            from election.server.access.jwt import read_jwks  # needs PyJWT

            self._keys = self._file("JWKS files", config.jwt.jwks, read_jwks)
        knows_callers = client_certificates or self._tokens is not None or self._keys is not None
        if config.policy is not None and not knows_callers:
            raise ConfigError(
                "a policy is given, but no way to know who calls: give an authority for client certificates, "
                "a token file, or a JWKS file"
            )
        self._policy = self._file("policy files", config.policy, read_policy)
        self._otherwise = READ_ONLY if knows_callers else PUBLIC
        self.is_open = not tls and not knows_callers
        self.limits = Limits(config.limits, self._clock)
        self._known: dict[tuple[bytes, str | None], _Known] = {}
        self._read: tuple[object, ...] = ()
