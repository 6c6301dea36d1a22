"""TLS files as gRPC's credentials for a client."""

from __future__ import annotations

import ssl

import grpc

from election.config import TlsConfig
from election.errors import ConfigError


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Reads the files, once.

    Raises:
        ConfigError: for a file that cannot be read or is not what it should be, and for a key of another certificate.
    """
    try:
        cacert, cert, key = (file.read_bytes() if file else None for file in (tls.cacert, tls.cert, tls.key))
        # gRPC takes anything, and fails at each handshake with less to say. The password is for a key that needs
        # one: without it, the terminal would be asked.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if tls.cacert:
            context.load_verify_locations(tls.cacert)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        files = ", ".join(str(file) for file in (tls.cacert, tls.cert, tls.key) if file)
        raise ConfigError(f"these TLS files cannot be used ({files}): {error.reason or error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(root_certificates=cacert, private_key=key, certificate_chain=cert)
