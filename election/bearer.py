"""The bearer token that a client of the API shows with every call."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from election.clock import Clock
from election.config import TlsConfig, is_loopback
from election.errors import ConfigError
from election.reloaded import Reloaded, read_text

Metadata = tuple[tuple[str, str], ...]

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""As RFC 6750 has it."""


class Bearer:
    """A token as the metadata of calls. A file that holds it is read again when it changes, as `Reloaded` does it.

    Raises:
        ConfigError: for what is no token, with none of its text, and for a file that cannot be read.
    """

    def __init__(self, token: str | Path, clock: Clock) -> None:
        self._file: Reloaded[Metadata] | None = None
        if isinstance(token, Path):
            self._file = Reloaded("token files", [token], lambda: _metadata(read_text(token), str(token)), clock)
        else:
            self._metadata = _metadata(token, "the bearer token")

    def metadata(self) -> Metadata:
        """What goes along with a new call."""
        return self._metadata if self._file is None else self._file.now()


def check_private(addresses: Iterable[str], tls: TlsConfig | None) -> None:
    """Raises ConfigError where a token would go over the network for everybody to read."""
    for address in addresses:
        if tls is None and not is_loopback(address.rpartition(":")[0].strip("[]")):
            raise ConfigError(
                f"the bearer token would go to {address} in plain text: give the TLS files for it, or https://, "
                "or say that this is allowed (insecure)"
            )


def _metadata(text: str, where: str) -> Metadata:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where} is not a bearer token: one line of letters, digits and -._~+/")
    return (("authorization", f"Bearer {token}"),)
