"""What gRPC says of a failed call, in one line; of a connection that could not be made, what to do about it.

The signs are words of gRPC and of its TLS library; the options are those of the command line, for etcd and for `serve`.
"""

from __future__ import annotations

_LIMIT = 300
_ADVICE = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not from our CA, or is for another name: check --cacert"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: leave out https:// and the TLS files"),
    ("ALERT_BAD_CERTIFICATE", "it refused the client certificate, which may have expired: check --cert and --key"),
    ("ALERT_CERTIFICATE_EXPIRED", "it refused the client certificate, which has expired: replace --cert and --key"),
    ("ALERT_UNKNOWN_CA", "it refused the client certificate, which is not from its CA: check --cert and --key"),
    ("TSI_DATA_CORRUPTED", "it refused the TLS handshake: it may want a client certificate: check --cert and --key"),
    (
        "Socket closed",
        "it closes the connection: only one side speaks TLS (check --cacert, and https:// for etcd), or it wants a "
        "client certificate of its authority that has not expired (check --cert and --key)",
    ),
    ("Connection refused", "connection refused: nothing listens there"),
    ("Domain name not found", "no host has this name"),
)
_UNCONNECTED = "failed to connect", "errors resolving", "DNS resolution failed"


def reason_in_one_line(text: str) -> str:
    """At most 300 characters."""
    cause = text.rpartition("last error: ")[2]
    if any(sign in text for sign in _UNCONNECTED):
        for sign, advice in _ADVICE:
            if sign in cause:
                return advice
    line = " ".join(cause.split())
    return line if len(line) <= _LIMIT else line[: _LIMIT - 3] + "..."
