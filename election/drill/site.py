"""An etcd for a drill, and all that lies between its members and before its clients: links that can be cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from election.dev.etcd import EtcdCluster
from election.drill.peers import Peers
from election.drill.relay import Relay
from election.etcd.client import EtcdClient


@dataclass
class Site:
    """Made by `open_site`. `clients` has the links of each client process to the members, by the process's name."""

    folder: Path
    cluster: EtcdCluster
    peers: Peers
    control: EtcdClient
    """Reaches all members past the links, as the user root where etcd has users."""
    clients: dict[str, list[Relay]] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def endpoints_for(self, name: str) -> tuple[str, ...]:
        """Where the process of this name finds the members: at links of its own, which stay until the site closes."""
        if name not in self.clients:
            links = [Relay(member.endpoint) for member in self.cluster.members]
            for link in links:
                await self._stack.enter_async_context(link)
            self.clients[name] = links
        return tuple(link.address for link in self.clients[name])


@asynccontextmanager
async def open_site(folder: Path, *, members: int = 3, auth: bool = False) -> AsyncGenerator[Site]:
    """An etcd of this many members; everything ends with the block."""
    raise NotImplementedError
    yield
