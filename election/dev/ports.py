"""Draws TCP ports that nobody listens on."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from election.errors import ConfigError

_LOWEST = 12_000
_EPHEMERAL_DEFAULT = 32_768
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DRAWS = 10_000


def free_ports(count: int, host: str) -> list[int]:
    """Draws ports that can be bound at this moment; somebody else may still be faster than the caller.

    They lie below the range from which the system serves outgoing connections: a member that is down for a while
    would otherwise find its port taken by one, or a client that redials it could connect to itself.

    Raises:
        ConfigError: when nearly all ports are taken.
    """
    rng = random.SystemRandom()
    ports: list[int] = []
    for _ in range(_DRAWS):
        if len(ports) == count:
            return ports
        port = rng.randrange(_LOWEST, _ephemeral_start())
        if port not in ports and can_be_bound(host, port):
            ports.append(port)
    raise ConfigError(f"there are no {count} free TCP ports on {host}")


def _ephemeral_start() -> int:
    try:
        start = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        start = _EPHEMERAL_DEFAULT
    return start if start > _LOWEST + 1_000 else _EPHEMERAL_DEFAULT


def can_be_bound(host: str, port: int) -> bool:
    """Whether nobody listens on the port at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True
