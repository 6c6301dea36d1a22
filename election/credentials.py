"""TLS files as gRPC's credentials for a client, read again when the files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import grpc

from election.clock import Clock
from election.config import TlsConfig
from election.errors import ConfigError
from election.reloaded import Reloaded


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Reads the files, once.

    Raises:
        ConfigError: for a file that cannot be read or is not what it should be, and for a key of another certificate.
    """
    try:
        cacert, cert, key = (file.read_bytes() if file else None for file in (tls.cacert, tls.cert, tls.key))
        check_tls(tls, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(root_certificates=cacert, private_key=key, certificate_chain=cert)


def check_tls(tls: TlsConfig, context: ssl.SSLContext) -> None:
    """Loads the files, since gRPC takes anything, to fail at each handshake with less to say.

    Raises:
        ConfigError: for a file that is not what it should be, and for a key of another certificate.
        OSError: for one that cannot be read.
    """
    suspects = f"{tls.cacert}"
    try:
        if tls.cacert:
            context.load_verify_locations(tls.cacert)
        suspects = f"{tls.cert} with the key {tls.key}"
        if tls.cert:  # the password is for a key that needs one: without it, the terminal would be asked
            context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        why = error.reason or "it is not in PEM form, or not whole"
        raise ConfigError(f"the certificate {suspects} cannot be used: {why}") from None


class Credentials:
    """The credentials that the TLS files hold now, or held when they could last be used; see `Reloaded`.

    The dates of a certificate are not looked at: whether it is valid is for the server to say.

    Raises:
        ConfigError: when the files cannot be used at the beginning.
    """

    def __init__(
        self,
        tls: TlsConfig,
        clock: Clock,
        *,
        read: Callable[[TlsConfig], grpc.ChannelCredentials] = channel_credentials,
    ) -> None:
        files = [file for file in (tls.cacert, tls.cert, tls.key) if file]
        self._held = Reloaded("TLS files", files, lambda: read(tls), clock)

    def now(self) -> grpc.ChannelCredentials:
        """The same object for as long as nothing new can be used."""
        return self._held.now()
