"""A cluster whose members can be cut off from each other, while clients reach all of them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import permutations
from pathlib import Path

from election.dev.etcd import EtcdCluster, Member
from election.dev.ports import free_ports
from election.drill.link import Link, Way
from election.drill.relay import HOST, Relay


class Peers:
    """What lies between the members: a relay in front of each one's peer port, which knows who dials.

    Some requests of etcd name their sender and some, renewals on their way to the leader among them, do not; so it is
    the process that holds the other end of a connection that tells who it is. Only Linux shows that.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.members: Sequence[Member] = ()
        self.relays = [
            Relay(f"{HOST}:{port}", link_of=partial(self._link_to, index)) for index, port in enumerate(ports)
        ]
        self._ways = {pair: Way() for pair in permutations(range(len(ports)), 2)}

    def isolate(self, member: Member) -> None:
        """Cuts the member off from the others."""
        self.deafen(member)
        self.mute(member)

    def deafen(self, member: Member) -> None:
        """The member hears nothing from the others, and is heard."""
        for other in self._others(member):
            self._ways[other, member.index].hold()

    def mute(self, member: Member) -> None:
        """The member hears the others, and is not heard."""
        for other in self._others(member):
            self._ways[member.index, other].hold()

    def part(self, one: int, other: int) -> None:
        """Cuts what lies between two members, by their indexes."""
        self._ways[one, other].hold()
        self._ways[other, one].hold()

    def parted(self, one: int, other: int) -> bool:
        """Whether nothing gets through between two members, either way."""
        return self._ways[one, other].held and self._ways[other, one].held

    def slow(self, delay_s: float) -> None:
        """Everything that is sent from now on arrives this much later."""
        for way in self._ways.values():
            way.delay_s = delay_s

    def mend(self) -> None:
        """Everybody hears everybody, without delay; what was held arrives late."""
        self.slow(0.0)
        for way in self._ways.values():
            way.release()

    def _others(self, member: Member) -> Iterable[int]:
        return (index for index in range(len(self.relays)) if index != member.index)

    def _link_to(self, target: int, dialled: socket.socket) -> Link | None:
        if not self.members:
            return Link()
        dialler = _owner(self.members, dialled)
        if dialler is None:
            return None
        if dialler.index == target:  # a new member looks whether it is who it was added as
            return Link()
        return Link(self._ways[dialler.index, target], self._ways[target, dialler.index])


@asynccontextmanager
async def partitionable_cluster(
    folder: Path, *, members: int = 3, extra_args: Sequence[str] = ()
) -> AsyncIterator[tuple[EtcdCluster, Peers]]:
    """Members that dial each other through relays in this event loop; their data and logs go into the folder."""
    ports = free_ports(members, HOST)
    peers = Peers(ports)
    async with AsyncExitStack() as stack:
        for relay in peers.relays:
            await stack.enter_async_context(relay)
        advertised = [relay.port for relay in peers.relays]
        cluster = await EtcdCluster.start(
            data_dir=folder,
            members=members,
            peer_ports=ports,
            advertised_peer_ports=advertised,
            extra_args=extra_args,
        )
        stack.callback(cluster.kill)
        peers.members = cluster.members
        for relay in peers.relays:
            relay.reset()  # the connections from before it was known who is who
        await cluster.wait_healthy()
        yield cluster, peers


def _owner(members: Sequence[Member], dialled: socket.socket) -> Member | None:
    """The member that has dialled this connection; None when it is gone."""
    ends = f" {_hex(dialled.getpeername())} {_hex(dialled.getsockname())} "
    rows = Path("/proc/net/tcp").read_text().splitlines()
    inode = next((row.split()[9] for row in rows if ends in row), "0")
    for member in members:
        with suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return member
    return None


def _hex(address: tuple[str, int]) -> str:
    """An address as the kernel's table of connections writes it."""
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
