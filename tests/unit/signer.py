"""Signs JWTs as an issuer does, and writes the JWKS file of its public keys."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example.org", "election"
NEVER = 4_000_000_000
"""The year 2096."""


class Signer:
    """A private key with an id: of a curve, or RSA where a number of bits is named."""

    def __init__(self, kid: str, *, rsa_bits: int | None = None) -> None:
        self.kid = kid
        self.algorithm = "ES256" if rsa_bits is None else "RS256"
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1()) if rsa_bits is None else rsa.generate_private_key(65537, rsa_bits)
        )

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a JWKS has it."""
        algorithm = ECAlgorithm if self.algorithm == "ES256" else RSAAlgorithm
        public: dict[str, Any] = json.loads(algorithm.to_jwk(self.key.public_key()))
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @property
    def public_pem(self) -> bytes:
        """The public key, as somebody who wants to forge a token has it."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.key.public_key().public_bytes(serialization.Encoding.PEM, form)
        return pem

    def sign(self, subject: str | None = "alice", *, kid: str | None = None, **claims: Any) -> str:
        """A token that is right but for what is named; a claim that is None is left out."""
        said = {"iss": ISSUER, "aud": AUDIENCE, "exp": NEVER, "sub": subject, **claims}
        payload = {name: value for name, value in said.items() if value is not None}
        headers = {"kid": self.kid if kid is None else kid}
        return jwt.encode(payload, self.key, self.algorithm, headers if headers["kid"] else None)


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand, which no library would make."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def write_jwks(file: Path, *keys: dict[str, Any]) -> Path:
    """The file of these keys."""
    file.write_text(json.dumps({"keys": list(keys)}))
    return file
