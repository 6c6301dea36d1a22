"""TLS files as gRPC's credentials for a client."""

from __future__ import annotations

import grpc

from election.config import TlsConfig
from election.errors import ConfigError


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Reads the files, once.

    Raises:
        ConfigError: for a file that cannot be read.
    """
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=tls.cacert.read_bytes() if tls.cacert else None,
            private_key=tls.key.read_bytes() if tls.key else None,
            certificate_chain=tls.cert.read_bytes() if tls.cert else None,
        )
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
