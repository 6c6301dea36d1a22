"""TLS files as gRPC's credentials for a client, read again when the files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from election.clock import Clock
from election.config import TlsConfig
from election.errors import ConfigError

logger = logging.getLogger("election")

_LOOK_S = 1.0
"""The files are looked at when somebody asks, and at most this often."""

_Seen = tuple[tuple[int, int, int] | None, ...]
"""For each file when it was written, its size and its inode; None for one that cannot be looked at."""


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Reads the files, once.

    Raises:
        ConfigError: for a file that cannot be read or is not what it should be, and for a key of another certificate.
    """
    try:
        cacert, cert, key = (file.read_bytes() if file else None for file in (tls.cacert, tls.cert, tls.key))
        _check(tls)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(root_certificates=cacert, private_key=key, certificate_chain=cert)


def _check(tls: TlsConfig) -> None:
    """Raises ConfigError for what gRPC would take, to fail at each handshake with less to say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
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
    """The credentials that the TLS files hold now, or held when they could last be used.

    Certificates and keys are replaced file by file, or all at once behind a symbolic link as Kubernetes does it. Files
    that do not fit together, or are half written, are reported once and change nothing until they change again. The
    dates of a certificate are not looked at: whether it is valid is for the server to say.

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
        self._tls = tls
        self._clock = clock
        self._read = read
        self._complaint = ""
        self._look_at_s = clock.now_s() + _LOOK_S
        self._seen = _look(tls)
        self._held = read(tls)

    def now(self) -> grpc.ChannelCredentials:
        """The same object for as long as nothing new can be used."""
        if self._clock.now_s() >= self._look_at_s:
            self._look_at_s = self._clock.now_s() + _LOOK_S
            self._read_changes()
        return self._held

    def _read_changes(self) -> None:
        seen = _look(self._tls)
        if seen == self._seen:
            return
        try:
            read, complaint = self._read(self._tls), ""
        except ConfigError as error:
            read, complaint = None, str(error)
        if _look(self._tls) != seen:
            return  # they change at this moment, so what was read may be of both: look again
        self._seen = seen
        if read is not None:
            self._held = read
            logger.info("the TLS files have changed: new connections use %s", ", ".join(map(str, _files(self._tls))))
        elif complaint != self._complaint:
            logger.warning("the TLS files have changed, and those before stay in use: %s", complaint)
        self._complaint = complaint


def _files(tls: TlsConfig) -> list[Path]:
    return [file for file in (tls.cacert, tls.cert, tls.key) if file]


def _look(tls: TlsConfig) -> _Seen:
    return tuple(map(_look_at, _files(tls)))


def _look_at(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
