"""Bearer tokens of both kinds: those of our file, and JWTs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from election.clock import Clock
from election.errors import BadToken, ConfigError
from election.reloaded import Reloaded
from election.server.access.identity import JWT, TOKEN
from election.server.access.tokens import TokenLine, Tokens, read_tokens

if TYPE_CHECKING:
    from election.server.access.jwt import JwtKeys


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """Whose signed tokens are taken: of this issuer, for this audience, signed with a key of this JWKS file."""

    jwks: Path
    issuer: str
    audience: str

    @classmethod
    def of(cls, jwks: Path | None, issuer: str | None, audience: str | None) -> JwtConfig | None:
        """From options that may be given or not; None where none is; raises ConfigError where one is missing."""
        if jwks is None and not issuer and not audience:
            return None
        if jwks is None or not issuer or not audience:
            raise ConfigError("JWTs need all three: a JWKS file, their issuer and their audience")
        return cls(jwks, issuer, audience)


@dataclass(frozen=True, slots=True)
class Shown:
    """The identity that a token has shown, and until when it does; None: as long as its file has its `line`."""

    identity: str
    until: datetime | None
    line: TokenLine | None = None


class Bearers:
    """Tells whose a bearer token is. The files are read again when they change.

    Raises:
        ConfigError: when a file cannot be used at the beginning, or PyJWT is missing.
    """

    def __init__(self, token_file: Path | None, jwt: JwtConfig | None, clock: Clock) -> None:
        self._clock = clock
        self._jwt = jwt
        self._tokens: Reloaded[Tokens] | None = None
        self._keys: Reloaded[JwtKeys] | None = None
        if token_file is not None:
            self._tokens = Reloaded("token files", [token_file], lambda: read_tokens(token_file), clock)
        if jwt is not None:
            try:
                from election.server.access.jwt import read_jwks
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"JWTs need the package {error.name}: install election with the extra [server]"
                ) from None
            self._keys = Reloaded("JWKS files", [jwt.jwks], lambda: read_jwks(jwt.jwks), clock)

    def __bool__(self) -> bool:
        """Whether any token can be taken."""
        return self._tokens is not None or self._keys is not None

    def files(self) -> tuple[object, ...]:
        """The same objects for as long as the files say the same."""
        return self._tokens and self._tokens.now(), self._keys and self._keys.now()

    def shown(self, token: str) -> Shown:
        """Whose token this is.

        Raises:
            BadToken: for one that nothing here knows, or that is wrong.
            TokenExpired: for one that was good.
        """
        if self._tokens is not None and (line := self._tokens.now().line(token, self._clock.wall())):
            return Shown(TOKEN + line.name, line.expires, line)
        is_jwt = token.count(".") == 2  # as JWTs are, and ours are not
        if self._keys is not None and self._jwt is not None and is_jwt:
            issuer, audience = self._jwt.issuer, self._jwt.audience
            verified = self._keys.now().verify(token, issuer=issuer, audience=audience, now=self._clock.wall())
            return Shown(JWT + verified.subject, verified.expires)
        if not self:
            raise BadToken("this server takes no bearer tokens: call without one")
        if is_jwt:
            raise BadToken("this server takes no JWTs: call with a token of its file")
        raise BadToken("the bearer token is not, or not any more, among those that this server knows")

    def is_withdrawn(self, line: TokenLine) -> bool:
        """Whether a line that a token was found in is gone from the file; one that has expired is not."""
        return self._tokens is None or not self._tokens.now().has(line)
