"""JWTs as bearer tokens: only what the issuer's key has signed, for us, and now."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from election.errors import BadToken, ConfigError, TokenExpired
from election.server.access.jwt import JwtKeys, read_jwks
from tests.unit.signer import AUDIENCE, ISSUER, NEVER, Signer, forged, write_jwks

CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "exp": NEVER, "sub": "alice"}
PAST = 1_700_000_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def signer() -> Signer:
    """The issuer's key."""
    return Signer("one")


@pytest.fixture(scope="module")
def rsa_signer() -> Signer:
    """Another kind of key of the same issuer."""
    return Signer("two", rsa_bits=2048)


@pytest.fixture
def keys(tmp_path: Path, signer: Signer, rsa_signer: Signer) -> JwtKeys:
    """Both keys, as the server has read them."""
    return read_jwks(write_jwks(tmp_path / "jwks", signer.jwk, rsa_signer.jwk))


def verify(keys: JwtKeys, token: str) -> str:
    """The subject of a token."""
    return keys.verify(token, issuer=ISSUER, audience=AUDIENCE, now=NOW).subject


def test_what_the_issuer_has_signed_is_taken(keys: JwtKeys, signer: Signer, rsa_signer: Signer) -> None:
    """With each of its keys; also where we are one audience of several."""
    assert verify(keys, signer.sign("system:serviceaccount:fleet:orchestrator")) == (
        "system:serviceaccount:fleet:orchestrator"
    )
    assert verify(keys, rsa_signer.sign("bob", aud=["other", AUDIENCE])) == "bob"


def test_a_token_without_a_key_id_is_taken_where_there_is_one_key(
    tmp_path: Path, signer: Signer, keys: JwtKeys
) -> None:
    """With several it could be anybody's."""
    only = read_jwks(write_jwks(tmp_path / "one", signer.jwk))
    assert verify(only, signer.sign(kid="")) == "alice"
    with pytest.raises(BadToken, match="it names no key"):
        verify(keys, signer.sign(kid=""))


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://evil.example.org"}, f"it is not of the issuer '{ISSUER}'"),
        ({"iss": None}, "it has no claim `iss`"),
        ({"aud": "somebody-else"}, "it is not for the audience 'election'"),
        ({"aud": []}, "it has no claim `aud`"),
        ({"aud": None}, "it has no claim `aud`"),
        ({"exp": None}, "it has no claim `exp`"),
        ({"exp": "soon"}, "one of its claims, or its form, is wrong"),
        ({"exp": 10**30}, "its claim `exp` is not a time"),
        ({"nbf": NEVER}, "it is not valid yet"),
        ({"iat": NEVER}, "it is not valid yet"),
        ({"sub": None}, "it has no claim `sub`"),
        ({"sub": ""}, "its claim `sub` is empty"),
        ({"sub": 7}, "one of its claims, or its form, is wrong"),
    ],
)
def test_claims_have_to_be_right(keys: JwtKeys, signer: Signer, claims: dict[str, Any], why: str) -> None:
    """Each of those that matter, and there."""
    token = signer.sign(**{"subject": claims.pop("sub", "alice"), **claims})
    with pytest.raises(BadToken) as raised:
        verify(keys, token)
    assert str(raised.value) == f"the JWT cannot be taken: {why}"


def test_a_token_whose_time_is_over_has_an_error_of_its_own(keys: JwtKeys, signer: Signer) -> None:
    """Its holder can get a new one."""
    with pytest.raises(TokenExpired):
        verify(keys, signer.sign(exp=PAST))


def test_the_end_that_is_told_has_the_leeway_in_it(keys: JwtKeys, signer: Signer) -> None:
    """So that what is remembered of a token ends when the token does."""
    assert keys.verify(signer.sign(), issuer=ISSUER, audience=AUDIENCE, now=NOW).expires.timestamp() == NEVER + 10


def test_a_stranger_can_sign_nothing(keys: JwtKeys) -> None:
    """Neither under a key id of its own, nor under one of ours."""
    stranger = Signer("three")
    with pytest.raises(BadToken, match="signed with the key 'three', which the server does not know"):
        verify(keys, stranger.sign())
    with pytest.raises(BadToken, match="its signature is wrong"):
        verify(keys, stranger.sign(kid="one"))
    with pytest.raises(BadToken, match="its algorithm is not that of its key"):
        verify(keys, stranger.sign(kid="two"))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_an_unsigned_token_is_refused(keys: JwtKeys, algorithm: str) -> None:
    """However `none` is written."""
    for kid in ("one", "two"):
        with pytest.raises(BadToken):
            verify(keys, forged({"alg": algorithm, "typ": "JWT", "kid": kid}, CLAIMS))


def test_a_public_key_is_no_hmac_secret(keys: JwtKeys, rsa_signer: Signer, signer: Signer) -> None:
    """The oldest forgery: the token says HS256, and is signed with the public key as a secret."""
    for key in (signer, rsa_signer):
        for secret in (key.public_pem, json.dumps(key.jwk).encode()):
            header = {"alg": "HS256", "typ": "JWT", "kid": key.kid}
            unsigned = forged(header, CLAIMS).rpartition(".")[0]
            signature = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
            with pytest.raises(BadToken, match="its algorithm is not that of its key"):
                verify(keys, forged(header, CLAIMS, signature))


def test_a_changed_token_is_refused(keys: JwtKeys, signer: Signer) -> None:
    """The signature is over every claim."""
    header, _, signature = signer.sign("alice").split(".")
    claims = forged({}, {**CLAIMS, "sub": "admin"}).split(".")[1]
    with pytest.raises(BadToken, match="its signature is wrong"):
        verify(keys, f"{header}.{claims}.{signature}")


@pytest.mark.parametrize(
    "token", ["", "..", "a.b.c", "e30.e30.", "\N{SNOWMAN}.a.b", forged({"alg": "ES256", "kid": 7}, CLAIMS)]
)
def test_what_is_no_token_is_refused(keys: JwtKeys, token: str) -> None:
    """As one error like any other."""
    with pytest.raises(BadToken):
        verify(keys, token)


def test_an_error_tells_nothing_of_the_token(keys: JwtKeys, signer: Signer) -> None:
    """Logs are read by many."""
    token = signer.sign(aud="other", password="hunter2")
    with pytest.raises(BadToken) as raised:
        verify(keys, token)
    assert not any(part in str(raised.value) for part in (*token.split("."), "hunter2"))
    assert raised.value.__suppress_context__


def test_keys_for_other_uses_are_passed_over(tmp_path: Path, signer: Signer) -> None:
    """Encryption is not our business."""
    file = write_jwks(tmp_path / "jwks", {**Signer("other").jwk, "use": "enc"}, signer.jwk)
    assert set(read_jwks(file).keys) == {"one"}


def broken(signer: Signer, rsa_signer: Signer) -> list[tuple[object, str]]:
    """What cannot be a JWKS file, and what is said of it."""
    weak = Signer("weak", rsa_bits=1024).jwk
    return [
        ("no JSON", "is not a JSON Web Key Set"),
        ([], "is not a JSON Web Key Set"),
        ({"keys": {}}, "is not a JSON Web Key Set"),
        ({"keys": ["x"]}, "is not a JSON Web Key Set"),
        ({"keys": []}, "has no key for signatures"),
        ({"keys": [signer.jwk, signer.jwk]}, "key 2: its `kid` is no text, or another key's"),
        ({"keys": [{**signer.jwk, "kid": 1}]}, "key 1: its `kid` is no text"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}, "key 1: it is a symmetric key"),
        ({"keys": [{**signer.jwk, "d": "c2VjcmV0"}]}, "key 1: it is a private key"),
        ({"keys": [{**signer.jwk, "x": "AA"}]}, "key 1: it is not a public key"),
        ({"keys": [{"kty": "EC"}]}, "key 1: it is not a public key"),
        ({"keys": [{**rsa_signer.jwk, "alg": "HS256"}]}, "key 1: its `alg` is not taken"),
        ({"keys": [{**rsa_signer.jwk, "alg": "none"}]}, "key 1: its `alg` is not taken"),
        ({"keys": [{**rsa_signer.jwk, "alg": ["RS256"]}]}, "key 1: its `alg` is not taken"),
        ({"keys": [weak]}, "key 1: an RSA key of 1024 bits is too short"),
    ]


def test_a_file_that_cannot_be_used_says_which_key(tmp_path: Path, signer: Signer, rsa_signer: Signer) -> None:
    """And nothing of a secret that was put there by mistake."""
    file = tmp_path / "jwks"
    for content, why in broken(signer, rsa_signer):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ConfigError) as raised:
            read_jwks(file)
        assert str(raised.value).startswith(str(file))
        assert why in str(raised.value), content
        assert "c2VjcmV0" not in str(raised.value)
