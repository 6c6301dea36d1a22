"""Where the members of a local cluster listen and keep their data, and how etcd is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from election.config import TlsConfig
from election.dev.member import Member, PortTaken
from election.dev.ports import can_be_bound, free_ports
from election.errors import ConfigError

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the caller of `EtcdCluster.start` has decided; ports that are None are drawn by `members`."""

    data_dir: Path
    names: tuple[str, ...]
    client_ports: tuple[int, ...] | None
    peer_ports: tuple[int, ...] | None
    advertised_peer_ports: tuple[int, ...] | None
    extra_args: tuple[str, ...]
    tls: TlsConfig | None

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError("a cluster has 1 member or more")
        for kind, ports in (
            ("client", self.client_ports),
            ("peer", self.peer_ports),
            ("advertised peer", self.advertised_peer_ports),
        ):
            if ports is not None and len(set(ports)) != len(self.names):
                shown = ", ".join(map(str, ports))
                raise ConfigError(f"{len(self.names)} members need as many different {kind} ports, not {shown}")
        if self.advertised_peer_ports is not None and self.peer_ports is None:
            raise ConfigError("advertised peer ports lead to the peer ports: give these, too")
        for port in self.given_ports:
            if not can_be_bound(HOST, port):
                raise PortTaken(f"port {port} on {HOST} is in use by another program", port=port)
        if self.draws_ports and any((self.data_dir / name).exists() for name in self.names):
            raise ConfigError(f"{self.data_dir} holds the data of an earlier cluster: give its client and peer ports")
        if self.tls is not None and None in (self.tls.cacert, self.tls.cert, self.tls.key):
            raise ConfigError("a cluster with TLS needs an authority, a certificate and its key")

    @property
    def given_ports(self) -> tuple[int, ...]:
        """The ports that the caller has chosen for the members to listen on."""
        return (*(self.client_ports or ()), *(self.peer_ports or ()))

    @property
    def draws_ports(self) -> bool:
        """Whether another call of `members` may have other ports."""
        return self.client_ports is None or self.peer_ports is None

    def members(self, binary: Path) -> tuple[Member, ...]:
        """Members that are not started yet."""
        count = len(self.names)
        drawn = free_ports(2 * count, HOST)
        client_ports, peer_ports = self.client_ports or drawn[:count], self.peer_ports or drawn[count:]
        peer_urls = [f"http://{HOST}:{port}" for port in self.advertised_peer_ports or peer_ports]
        cluster = [
            "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in zip(self.names, peer_urls, strict=True)),
            f"--initial-cluster-token=election-{peer_ports[0]}",
            "--logger=zap",  # the default since 3.5; the other one of 3.4 does not know the flag below
            "--log-level=warn",
        ]
        return tuple(
            Member(
                index=index,
                name=name,
                endpoint=f"{HOST}:{client_ports[index]}",
                peer_url=peer_urls[index],
                data_dir=self.data_dir / name,
                command=[
                    str(binary),
                    f"--name={name}",
                    f"--data-dir={self.data_dir / name}",
                    f"--listen-peer-urls=http://{HOST}:{peer_ports[index]}",
                    f"--initial-advertise-peer-urls={peer_urls[index]}",
                    *self._client_flags(client_ports[index]),
                    *cluster,
                    *self.extra_args,
                ],
                log=self.data_dir / f"{name}.log",
            )
            for index, name in enumerate(self.names)
        )

    def _client_flags(self, port: int) -> list[str]:
        url = f"{'http' if self.tls is None else 'https'}://{HOST}:{port}"
        flags = [f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
        if self.tls is not None:
            flags += [
                f"--cert-file={self.tls.cert}",
                f"--key-file={self.tls.key}",
                f"--trusted-ca-file={self.tls.cacert}",
                "--client-cert-auth",
            ]
        return flags
