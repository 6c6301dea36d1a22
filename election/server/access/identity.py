"""Who a caller is, as its client certificate and its metadata say; nothing here decides what it may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from election.errors import BadToken

CERT, DNS, SPIFFE, TOKEN, JWT = "cert:", "dns:", "spiffe://", "token:", "jwt:"
KINDS = (CERT, DNS, SPIFFE, TOKEN, JWT)
"""What every identity but the anonymous one begins with, so that no kind can pass for another."""

AUTHORIZATION = "authorization"
"""The metadata that carries `Bearer <token>`."""


def certificate_identities(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """What gRPC says of a client certificate that it has verified: `cert:<CN>`, `dns:<SAN>`, `spiffe://...`.

    gRPC tells a SPIFFE ID only of a certificate with one URI, as SPIFFE demands it. Other URIs, addresses and what is
    not UTF-8 are no identities.
    """
    found: list[str] = []
    for kind, key in ((CERT, "x509_common_name"), (DNS, "peer_dns"), ("", "peer_spiffe_id")):
        for value in auth_context.get(key, ()):
            try:
                text = value.decode()
            except UnicodeDecodeError:
                continue
            if text and (kind or text.startswith(SPIFFE)):
                found.append(kind + text)
    return tuple(found)


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The metadata `authorization`, None where there is none.

    Raises:
        BadToken: when there are several, since a proxy could have added one.
    """
    found = [value for key, value in metadata or () if key == AUTHORIZATION]
    if len(found) > 1:
        raise BadToken("the metadata has `authorization` more than once: send one")
    return str(found[0]) if found else None


def bearer_token(authorization: str) -> str:
    """The token in `Bearer <token>`.

    Raises:
        BadToken: for another scheme, and for no token.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise BadToken("the metadata `authorization` is not `Bearer <token>`, which is all that is taken")
    return token.strip()
