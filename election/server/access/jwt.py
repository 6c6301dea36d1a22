"""Bearer tokens that somebody else has signed: JWTs, as Kubernetes and OpenID Connect issue them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt

from election.errors import BadToken, ConfigError, TokenExpired
from election.reloaded import read_text

LEEWAY_S = 10.0
"""How far the issuer's clock may be off."""

_ALGORITHMS = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"))
"""All asymmetric: a key that checks a signature must not be able to make one."""

_SMALLEST_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Verified:
    """What a token says that was found to be right: whose it is, and until when."""

    subject: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """The public keys of a JWKS file, by their id; those without one are below ""."""

    keys: Mapping[str, jwt.PyJWK]

    def verify(self, token: str, *, issuer: str, audience: str, now: datetime) -> Verified:
        """Checks the signature and the claims `exp`, `nbf`, `iss`, `aud` and `sub`, which has to be there.

        Raises:
            BadToken: with what is wrong, and with nothing of the token itself but its key id.
            TokenExpired: when it is right but for its time.
        """
        key = self._key_of(token)
        try:
            # The algorithm is that of the key, whatever the token says: a public RSA key is no HMAC secret.
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=issuer,
                audience=audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            expires = datetime.fromtimestamp(int(claims["exp"]) + LEEWAY_S, UTC)
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.PyJWTError as error:
            raise _bad(_why(error, issuer, audience)) from None
        except (ValueError, OverflowError, OSError):
            raise _bad("its claim `exp` is not a time") from None
        if now >= expires:
            raise _expired()
        if not claims["sub"]:
            raise _bad("its claim `sub` is empty")
        return Verified(claims["sub"], expires)

    def _key_of(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise _bad("it cannot be read") from None
        kid = header.get("kid", "")
        if key := self.keys.get(kid) or (next(iter(self.keys.values())) if not kid and len(self.keys) == 1 else None):
            return key
        raise _bad(
            f"it is signed with the key {kid[:100]!r}, which the server does not know" if kid else "it names no key"
        )


def read_jwks(file: Path) -> JwtKeys:
    """Reads a JSON Web Key Set (RFC 7517). Keys for other uses than signatures are passed over.

    Raises:
        ConfigError: with the file and the key, for what cannot be used; for symmetric and private keys, since this file
            holds no secrets; and where no key is left.
    """
    try:
        entries = json.loads(read_text(file))["keys"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{file} is not a JSON Web Key Set: {{"keys": [...]}}') from None
    keys: dict[str, jwt.PyJWK] = {}
    for number, entry in enumerate(entries, start=1):
        if entry.get("use", "sig") != "sig":
            continue
        kid = entry.get("kid", "")
        try:
            if not isinstance(kid, str) or kid in keys:
                raise ConfigError("its `kid` is no text, or another key's: each needs its own")
            keys[kid] = _key(entry)
        except ConfigError as error:
            raise ConfigError(f"{file} key {number}: {error}") from None
    if not keys:
        raise ConfigError(f"{file} has no key for signatures in it")
    return JwtKeys(keys)


def _key(entry: dict[str, Any]) -> jwt.PyJWK:
    if entry.get("kty") == "oct":
        raise ConfigError("it is a symmetric key, with which everybody who checks tokens could make them")
    if "d" in entry:
        raise ConfigError("it is a private key: give the public part only")
    algorithm = entry.get("alg")
    if algorithm is not None and (not isinstance(algorithm, str) or algorithm not in _ALGORITHMS):
        raise ConfigError(f"its `alg` is not taken: use one of {', '.join(sorted(_ALGORITHMS))}")
    try:
        key = jwt.PyJWK(entry)
        bits: int = getattr(key.key, "key_size", 0)
    except (jwt.PyJWTError, ValueError, TypeError):
        raise ConfigError("it is not a public key of a known kind, or not whole") from None
    if key.algorithm_name not in _ALGORITHMS:
        raise ConfigError(f"the algorithm {key.algorithm_name} is not taken")
    if entry["kty"] == "RSA" and bits < _SMALLEST_RSA_BITS:
        raise ConfigError(f"an RSA key of {bits} bits is too short: use {_SMALLEST_RSA_BITS} or more")
    return key


def _expired() -> TokenExpired:
    return TokenExpired("the JWT has expired: get a new one")


def _bad(why: str) -> BadToken:
    return BadToken(f"the JWT cannot be taken: {why}")


def _why(error: jwt.PyJWTError, issuer: str, audience: str) -> str:
    """PyJWT's own texts can quote the token."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no claim `{error.claim}`"
    if isinstance(error, jwt.InvalidAudienceError):
        return f"it is not for the audience {audience!r}"
    if isinstance(error, jwt.InvalidIssuerError):
        return f"it is not of the issuer {issuer!r}"
    if isinstance(error, jwt.ImmatureSignatureError):
        return "it is not valid yet"
    if isinstance(error, jwt.InvalidAlgorithmError):
        return "its algorithm is not that of its key"
    if isinstance(error, jwt.InvalidSignatureError):
        return "its signature is wrong"
    return "one of its claims, or its form, is wrong"
