"""An etcd for a drill, and all that lies between its members and before its clients: links that can be cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, Member
from election.drill.peers import Peers, partitionable_cluster
from election.drill.relay import Relay
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.keys import range_end
from election.pb.etcd import auth_pb2 as auth_pb
from election.pb.etcd import rpc_pb2 as rpc

_ROOT = "root", "secret-of-root"
_USER = "drill", "secret-of-drill"
_PERMITTED = b"/election/"
PROBE_KEY = b"/election/probe"
"""What is read to see whether etcd answers."""
CALL_S = 2.0
_HEALTHY_S = 30.0


@dataclass
class Site:
    """Made by `open_site`. `clients` has the links of each client process to the members, by the process's name."""

    folder: Path
    cluster: EtcdCluster
    peers: Peers
    control: EtcdClient
    """Reaches all members past the links, as the user root where etcd has users."""
    user: tuple[str, str] | None = None
    """The name and password of all processes, which may use the keys below `/election/`; None where etcd has no
    users."""
    clients: dict[str, list[Relay]] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def config(self) -> EtcdConfig:
        """That of `control`."""
        user, password = self.cluster.credentials or (None, None)
        return EtcdConfig(self.cluster.endpoints, call_timeout_s=CALL_S, user=user, password=password)

    @property
    def names(self) -> tuple[str, ...]:
        """What the members are called: by their addresses, where they are not ours."""
        return tuple(member.name for member in self.cluster.members) or self.cluster.endpoints

    async def endpoints_for(self, name: str) -> tuple[str, ...]:
        """Where the process of this name finds the members: at links of its own, which stay until the site closes."""
        if name not in self.clients:
            links = [Relay(endpoint) for endpoint in self.cluster.endpoints]
            for link in links:
                await self._stack.enter_async_context(link)
            self.clients[name] = links
        return tuple(link.address for link in self.clients[name])

    def client_of(self, member: Member) -> EtcdClient:
        """A client of one member alone, past the links, with the rights of `control`; the caller closes it."""
        return EtcdClient(replace(self.control.config, endpoints=(member.endpoint,)))

    async def heal(self) -> None:
        """Returns when all members run, reach each other and serve; the links of clients are left as they are.

        Raises:
            ElectionError: when a member does not start, or one does not serve in time.
        """
        self.peers.mend()
        for member in self.cluster.members:
            member.resume()
            await member.start()
        await self.cluster.wait_healthy(_HEALTHY_S)


@asynccontextmanager
async def open_site(folder: Path, *, members: int = 3, auth: bool = False) -> AsyncGenerator[Site]:
    """An etcd of this many members; everything ends with the block.

    With `auth` it has users: root, and one for all processes. Passwords are hashed at the least cost, since members
    would be busy with that alone when all processes authenticate at once.

    Raises:
        ElectionError: when it does not start.
    """
    extra_args = ("--bcrypt-cost=4",) if auth else ()
    async with AsyncExitStack() as stack:
        made = partitionable_cluster(folder / "etcd", members=members, extra_args=extra_args)
        cluster, peers = await stack.enter_async_context(made)
        if auth:
            await _enable_users(cluster)
        root, password = cluster.credentials or (None, None)
        config = EtcdConfig(cluster.endpoints, call_timeout_s=CALL_S, user=root, password=password)
        control = await stack.enter_async_context(EtcdClient(config))
        links = await stack.enter_async_context(AsyncExitStack())
        yield Site(folder, cluster, peers, control, user=_USER if auth else None, _stack=links)


async def _enable_users(cluster: EtcdCluster) -> None:
    """Makes the users and returns when every member asks who one is."""
    permission = auth_pb.Permission(
        permType=auth_pb.Permission.READWRITE, key=_PERMITTED, range_end=range_end(_PERMITTED)
    )
    async with EtcdClient(EtcdConfig(cluster.endpoints)) as client:
        for name, password in (_ROOT, _USER):
            await client.call(methods.USER_ADD, rpc.AuthUserAddRequest(name=name, password=password))
            await client.call(methods.ROLE_ADD, rpc.AuthRoleAddRequest(name=name))
            await client.call(methods.USER_GRANT_ROLE, rpc.AuthUserGrantRoleRequest(user=name, role=name))
        await client.call(
            methods.ROLE_GRANT_PERMISSION, rpc.AuthRoleGrantPermissionRequest(name=_USER[0], perm=permission)
        )
        await client.call(methods.AUTH_ENABLE, rpc.AuthEnableRequest())
    cluster.credentials = _ROOT
    await cluster.wait_healthy()
