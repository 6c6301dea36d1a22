"""Who calls: the one place where what a connection and its metadata say becomes a `Caller`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from election.clock import BootClock, Clock
from election.errors import BadToken, ConfigError, Unauthenticated
from election.reloaded import Reloaded
from election.server.access.bearer import Bearers, JwtConfig
from election.server.access.caller import ANONYMOUS, Caller
from election.server.access.identity import authorization_of, bearer_token, certificate_identities
from election.server.access.lasting import Lasting
from election.server.access.limits import Limits, LimitsConfig
from election.server.access.policy import PUBLIC, READ_ONLY, Granted, Policy
from election.server.access.policy_file import read_policy
from election.server.access.tokens import TokenLine

Context = grpc.aio.ServicerContext[Any, Any]

_CERTIFICATE = "x509_pem_cert"
_REMEMBERED = 10_000
"""Of so many callers, each a certificate with a token, it is remembered what they may do."""


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """How callers can show who they are besides a client certificate, what they may do, and how much."""

    policy: Path | None = None
    token_file: Path | None = None
    jwt: JwtConfig | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(frozen=True, slots=True)
class _Known:
    granted: Granted
    line: TokenLine | None
    until_s: float | None  # by the time of day, since that is what tokens name


class Gate:
    """Tells who calls and what they may do, and counts what they ask. All files are read again when they change.

    Without a policy file, callers that show who they are may read. Where there is no way to show it, everybody may
    read over TLS, and do everything over plain text: then the gate `is_open`. A policy file says what else everybody
    may, where it names `anonymous` alone.

    Raises:
        ConfigError: for files that cannot be used at the beginning, and for a policy that tells callers apart who have
            no way to show who they are.
    """

    def __init__(
        self, config: AccessConfig, namespace: str, *, tls: bool, client_certificates: bool, clock: Clock | None = None
    ) -> None:
        self._clock = clock or BootClock()
        self._namespace = namespace
        self._certificates = client_certificates
        self._bearers = Bearers(config.token_file, config.jwt, self._clock)
        can_tell = client_certificates or bool(self._bearers)
        self._policy: Reloaded[Policy] | Policy = READ_ONLY if can_tell else PUBLIC
        if (file := config.policy) is not None:
            self._policy = Reloaded("policy files", [file], lambda: read_policy(file), self._clock)
            if not can_tell and self._policy.now().tells_apart:
                raise ConfigError(
                    f"the policy {file} tells callers apart, and they have no way to show who they are: give an "
                    "authority for client certificates, a token file or a JWKS file, or name nobody but `anonymous`"
                )
        self.is_open = not tls and not can_tell and config.policy is None
        self.without_policy = ""
        if config.policy is None:
            who = "who shows an identity" if can_tell else "everybody who can connect"
            self.without_policy = f"{who} may {'do everything' if self.is_open else 'read, and nobody may do more'}"
        self.limits = Limits(config.limits, self._clock)
        self._known: dict[tuple[bytes, str | None], _Known] = {}
        self._version: tuple[object, ...] = ()

    def caller(self, context: Context) -> Caller:
        """Who makes a call.

        Raises:
            Unauthenticated: for a caller that shows something which cannot be taken; who shows nothing is anonymous.
            TooManyRequests: when it has made too many; this one is counted. Calls that show what cannot be taken are
                those of their address, like those that show nothing.
        """
        if self.is_open:
            caller = Caller(peer=context.peer())
        else:
            known = self._known_or_counted(context)
            caller = Caller(known.granted.identities, context.peer(), known.granted, known.line)
        self.limits.request(caller)
        return caller

    def lasting(self, caller: Caller) -> Lasting:
        """What tells later on whether a caller may still have a stream."""
        return Lasting(caller, self._granted_again)

    def version(self) -> tuple[object, ...]:
        """The same for as long as all files say the same."""
        return self._policy_now(), *self._bearers.files()

    def _policy_now(self) -> Policy:
        return self._policy if isinstance(self._policy, Policy) else self._policy.now()

    def _known_or_counted(self, context: Context) -> _Known:
        try:
            return self._known_of(context)
        except Unauthenticated:
            self.limits.request(Caller(peer=context.peer()))
            raise

    def _known_of(self, context: Context) -> _Known:
        authorization = authorization_of(context.invocation_metadata())
        auth_context = context.auth_context() if self._certificates else {}
        certificate = next(iter(auth_context.get(_CERTIFICATE, ())), b"")
        if (version := self.version()) != self._version:
            self._version = version
            self._known.clear()
        token = None if authorization is None else bearer_token(authorization)
        known = self._known.get((certificate, token))
        if known is not None and (known.until_s is None or self._clock.wall().timestamp() < known.until_s):
            return known
        identities, until, line = certificate_identities(auth_context) if certificate else (), None, None
        if token is not None:
            shown = self._bearers.shown(token)
            identities, until, line = (*identities, shown.identity), shown.until, shown.line
        known = _Known(self._granted_to(identities or (ANONYMOUS,)), line, until.timestamp() if until else None)
        if len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[certificate, token] = known
        return known

    def _granted_to(self, identities: tuple[str, ...]) -> Granted:
        return self._policy_now().granted(identities, self._namespace)

    def _granted_again(self, caller: Caller) -> Granted:
        if caller.line is not None and self._bearers.is_withdrawn(caller.line):
            raise BadToken(f"the token of {caller.line.name!r} that this began with is withdrawn: use a new one")
        return self._granted_to(caller.identities)
