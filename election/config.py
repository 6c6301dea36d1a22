"""Settings: built once, frozen, and their relations checked where they are built."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from election.errors import ConfigError
from election.keys import check_name

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]")
DEFAULT_ENDPOINT = "127.0.0.1:2379"
DEFAULT_NAMESPACE = "default"
ETCD_ELECTION_TIMEOUT_S = 1.0
"""etcd's default election timeout (`--election-timeout`). The margin must not be smaller: see CandidateConfig."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Files in PEM form. `cacert` None means the system's roots; `cert` and `key` go together."""

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client certificate needs its key, and a key its certificate: give both or none")


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How to reach etcd.

    `call_timeout_s` bounds a whole call with all its attempts; `attempt_timeout_s` bounds one attempt on one
    member, after which a call that is safe to repeat goes to the next member. A hung member costs that long.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    tls: TlsConfig | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    call_timeout_s: float = 5.0
    attempt_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("no etcd endpoint is given: name at least one HOST:PORT")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        _check_positive("call_timeout_s", self.call_timeout_s)
        _check_positive("attempt_timeout_s", self.attempt_timeout_s)
        if self.attempt_timeout_s > self.call_timeout_s:
            raise ConfigError(
                f"attempt_timeout_s ({self.attempt_timeout_s:g}) is longer than "
                f"call_timeout_s ({self.call_timeout_s:g}): an attempt is a part of a call"
            )
        if (self.user is None) != (self.password is None):
            raise ConfigError("an etcd user needs a password: give NAME:PASSWORD")

    @classmethod
    def parse(
        cls, endpoints: str | Iterable[str], *, tls: TlsConfig | None = None, user: str | None = None
    ) -> EtcdConfig:
        """Builds from what people write: `host:port,host:port` with or without a scheme, `NAME:PASSWORD`.

        A scheme of https asks for TLS with the system's roots where no `tls` is given.

        Raises:
            ConfigError: for schemes that differ, other schemes, and everything that the constructor checks.
        """
        written = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
        addresses, schemes = [], set()
        for text in (text.strip() for text in written):
            scheme, separator, rest = text.partition("://")
            schemes.add(scheme if separator else "")
            addresses.append((rest if separator else text).rstrip("/"))
        if unknown := schemes - {"", "http", "https"}:
            raise ConfigError(f"endpoint scheme {min(unknown)!r} is not known: use http or https")
        if "https" in schemes and len(schemes) > 1:
            raise ConfigError("some endpoints are https and some are not: give all of them one scheme")
        if "https" in schemes and tls is None:
            tls = TlsConfig()
        if tls is not None and "http" in schemes:
            raise ConfigError("TLS files are given, but the endpoints say http://: say https:// or nothing")
        name, separator, password = (user or "").partition(":")
        return cls(
            endpoints=tuple(addresses),
            tls=tls,
            user=name if user else None,
            password=password if separator else None,
        )


@dataclass(frozen=True, slots=True)
class CandidateConfig:
    """How a candidate holds its lease.

    The margin is how long before the lease's end the candidate stops: it covers the drift between two clocks
    and the time for which a deposed etcd leader may still answer renewals, which is one election timeout.
    `retry_s` is the first pause after a failure; it doubles up to `retry_max_s`, with jitter. With `near_leader` each
    attempt begins at the member that leads in etcd.
    """

    ttl_s: int = 10
    margin_s: float = 1.0
    renew_s: float | None = None
    retry_s: float = 0.25
    retry_max_s: float = 5.0
    near_leader: bool = True

    def __post_init__(self) -> None:
        _check_positive("ttl_s", self.ttl_s)
        _check_positive("margin_s", self.margin_s)
        _check_positive("retry_s", self.retry_s)
        check_lease_relations(self.ttl_s, self.margin_s, self.renew_interval_s)
        if self.retry_s > self.renew_interval_s:
            raise ConfigError(
                f"retry_s ({self.retry_s:g}) is longer than the renew interval ({self.renew_interval_s:g}): "
                "a failed renewal must be tried again before the next one is due"
            )
        if self.retry_max_s < self.retry_s:
            raise ConfigError(f"retry_max_s ({self.retry_max_s:g}) is smaller than retry_s ({self.retry_s:g})")

    @property
    def renew_interval_s(self) -> float:
        """Seconds from one renewal to the next: a fifth of the TTL where nothing else is said.

        A third would satisfy the lease; but etcd answers nobody while it elects a leader, for 1 to 2 s at its defaults,
        and with a TTL of 5 s and a margin of 1 s only what is renewed each second has 3 s left for that.
        """
        return self.ttl_s / 5 if self.renew_s is None else self.renew_s


LONGEST_TTL_S = 9_000_000_000
"""etcd's own limit (`lease.MaxLeaseTTL`)."""


def check_lease_relations(ttl_s: float, margin_s: float, renew_s: float) -> None:
    """Checks the relations of DESIGN: three renewals fit into a TTL, and the margin leaves at least half of it.

    Called for the TTL that is asked for, and again for the one that etcd granted.

    Raises:
        ConfigError: with both sides of the relation that does not hold.
    """
    _check_positive("renew_s", renew_s)
    if ttl_s > LONGEST_TTL_S:
        raise ConfigError(f"a TTL of {ttl_s:g} s is longer than etcd's limit of {LONGEST_TTL_S} s")
    if renew_s * 3 > ttl_s * (1 + 1e-9):
        raise ConfigError(f"renew interval ({renew_s:g} s) x 3 is longer than the TTL ({ttl_s:g} s): renew more often")
    if margin_s >= ttl_s / 2:
        raise ConfigError(
            f"margin ({margin_s:g} s) is not smaller than half of the TTL ({ttl_s:g} s): "
            f"use a TTL of more than {2 * margin_s:g} s"
        )
    if margin_s < ETCD_ELECTION_TIMEOUT_S:
        raise ConfigError(
            f"margin ({margin_s:g} s) is smaller than one etcd election timeout "
            f"({ETCD_ELECTION_TIMEOUT_S:g} s): a deposed etcd leader may answer renewals for that long"
        )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How an agent holds its lease, and what it does when it has lost it or leaves.

    With `register_again` an agent that has lost its lease registers anew, as a new incarnation. With `keep_state` an
    agent that leaves keeps its state, which a collector collects after the grace; without, it is deleted at once.
    """

    ttl_s: int = 15
    margin_s: float = 1.0
    retry_s: float = 0.25
    retry_max_s: float = 5.0
    register_again: bool = True
    keep_state: bool = True

    def __post_init__(self) -> None:
        _check_positive("ttl_s", self.ttl_s)
        check_lease_relations(self.ttl_s, self.margin_s, self.ttl_s / 3)


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When so many agents vanish at once that the world is more likely wrong than the agents dead.

    The breaker opens when at least `agents` of them and `share` of all (0 to 1) vanish within one grace, or when all
    of two or more do. It closes when they are back, when an operator says so, or after `hold_s`.
    """

    agents: int = 3
    share: float = 0.5
    hold_s: float = 300.0

    def __post_init__(self) -> None:
        if self.agents < 1:
            raise ConfigError(f"the breaker's number of agents must be 1 or more, not {self.agents}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"the breaker's share must be more than 0 and at most 1, not {self.share:g}")
        _check_positive("hold_s", self.hold_s)


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """When the collector reaps, and how fast.

    `grace_s` counts from when the liveness key vanished; `reconcile_s` is how often everything is listed and
    compared; `retention_s` is how long a tombstone stays, at least. `rate_per_s` bounds how many agents are reaped in
    a second, on average; None does not. Without a `breaker` nothing but the grace holds the collector back.
    """

    grace_s: float = 10.0
    reconcile_s: float = 60.0
    retention_s: int = 7 * 24 * 3600
    rate_per_s: float | None = None
    breaker: BreakerConfig | None = field(default_factory=BreakerConfig)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.grace_s) and self.grace_s >= 0):
            raise ConfigError(f"grace_s must be 0 or more, not {self.grace_s:g}")
        _check_positive("reconcile_s", self.reconcile_s)
        _check_positive("retention_s", self.retention_s)
        if self.retention_s > LONGEST_TTL_S / 2:  # the lease of a tombstone lives somewhat longer
            raise ConfigError(
                f"retention_s ({self.retention_s}) is longer than half of etcd's limit of {LONGEST_TTL_S} s"
            )
        if self.rate_per_s is not None:
            _check_positive("rate_per_s", self.rate_per_s)


def is_loopback(host: str) -> bool:
    """Whether what listens on this host can be reached from this machine alone, so that plain text is safe."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def default_id() -> str:
    """A name for this process: the host's name and the process id."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._") or "host"
    return f"{host[:100]}-{os.getpid()}"


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Returns a copy of the labels if every name is a valid name; raises ConfigError otherwise."""
    return {check_name("label", name): value for name, value in labels.items()}


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be more than 0, not {value:g}")


def _check_endpoint(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not (_HOST.fullmatch(host) and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"endpoint {endpoint!r} is not HOST:PORT")
