"""TLS of the gRPC server: its certificate, the authority of its clients, and their renewal."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from election.clock import Clock
from election.config import TlsConfig
from election.credentials import check_tls
from election.errors import ConfigError
from election.reloaded import Reloaded


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files in PEM form. With `client_ca` every client needs a certificate of that authority.

    gRPC can demand a certificate or not ask for one, and nothing between: see `grpc.ssl_server_credentials`.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
        """From options that may be given or not; None where none is.

        Raises:
            ConfigError: for one that is given without what it needs.
        """
        if cert is not None and key is not None:
            return cls(cert, key, client_ca)
        if cert is not None or key is not None:
            raise ConfigError("a server certificate needs its key, and a key its certificate: give both or none")
        if client_ca is not None:
            raise ConfigError("an authority for client certificates needs TLS: give the server's certificate and key")
        return None


def server_credentials(tls: ServerTls, clock: Clock) -> grpc.ServerCredentials:
    """Credentials that every handshake takes from the files as they are then; see `Reloaded`.

    What is connected stays connected, with the certificates that both ends have shown.

    Raises:
        ConfigError: when the files cannot be used at the beginning.
    """
    files = [file for file in (tls.cert, tls.key, tls.client_ca) if file]
    held = Reloaded("server's TLS files", files, lambda: _read(tls), clock)
    used = held.now()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Called by a thread of gRPC's for each handshake; None leaves everything as it is."""
        nonlocal used
        if (now := held.now()) is used:
            return None
        used = now
        return now

    return grpc.dynamic_ssl_server_credentials(
        used,
        changed,  # type: ignore[arg-type]  # the types do not know that None is allowed
        require_client_authentication=tls.client_ca is not None,
    )


def _read(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    try:
        pair = tls.key.read_bytes(), tls.cert.read_bytes()
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        check_tls(TlsConfig(tls.client_ca, tls.cert, tls.key), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_certificate_configuration([pair], client_ca)
