"""What is said of a connection that could not be made; the texts are what gRPC 1.85 says."""

from __future__ import annotations

import pytest

from election.unreachable import reason_in_one_line

FAILED = "failed to connect to all addresses; last error: "
AT = "ipv4:127.0.0.1:50051: "
TLS = f"UNKNOWN: {AT}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000: OPENSSL_internal:"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{FAILED}{TLS}CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK", "check --cacert"),
        (f"{FAILED}{TLS}WRONG_VERSION_NUMBER: Invalid certificate verification context: OK", "does not speak TLS"),
        (f"{FAILED}{TLS}TLSV1_ALERT_UNKNOWN_CA", "is not from its CA"),
        (f"{FAILED}UNAVAILABLE: {AT}Socket closed", "only one side speaks TLS"),
        (f"{FAILED}UNKNOWN: {AT}Failed to connect to remote host: Connection refused", "nothing listens there"),
        ("errors resolving no:1: [field:hostname lookup error:Domain name not found]", "no host has this name"),
        (f"{FAILED}UNKNOWN: {AT}no route\nto host", f"UNKNOWN: {AT}no route to host"),
        ("Socket closed", "Socket closed"),  # of a connection that was there
    ],
)
def test_a_connection_that_fails_says_what_to_do(text: str, said: str) -> None:
    """In one line, without the words of the TLS library where we know better."""
    line = reason_in_one_line(text)
    assert said in line
    assert "SSL" not in line


def test_what_is_too_long_is_cut() -> None:
    """With a sign that it was."""
    assert reason_in_one_line("x" * 300) == "x" * 300
    assert reason_in_one_line("x" * 301) == "x" * 297 + "..."
