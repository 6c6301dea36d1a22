"""An etcd cluster of real processes on this machine: for `election dev`, for tests and for drills."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from election.config import EtcdConfig, TlsConfig
from election.dev.binaries import binary_version, find_binary
from election.dev.layout import Layout
from election.dev.member import Member, PortTaken
from election.errors import AccessDenied, EtcdError, EtcdUnavailable
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.pb.etcd import rpc_pb2 as rpc

__all__ = ["EtcdCluster", "Member", "binary_version", "find_binary"]

_PORT_DRAWS = 5
_POLL_S = 0.05
_PROBE_S = 1.0
_TERMINATE_S = 1.0


class EtcdCluster:
    """A running cluster; make one with `await EtcdCluster.start(...)`.

    It holds no connection and nothing that belongs to an event loop, so it may be used from one loop after
    another. `async with` ends it, and so does the end of the thread that started it (on Linux). Who enables etcd's
    users sets `credentials` to the name and password of one with the role root: `leader` needs them.
    """

    def __init__(self, members: Sequence[Member], *, version: str, tls: TlsConfig | None) -> None:
        self.members: tuple[Member, ...] = tuple(members)
        self.version = version
        self.tls = tls
        self.credentials: tuple[str, str] | None = None

    @classmethod
    async def start(
        cls,
        *,
        data_dir: Path,
        members: int = 3,
        client_ports: Sequence[int] | None = None,
        peer_ports: Sequence[int] | None = None,
        advertised_peer_ports: Sequence[int] | None = None,
        extra_args: Sequence[str] = (),
        tls: TlsConfig | None = None,
        timeout_s: float = 30.0,
    ) -> EtcdCluster:
        """Starts the members and returns when all of them answer linearizable reads.

        Data and logs go below `data_dir`, which is made if need be and never removed. A folder with the data of
        an earlier cluster can be used with the same number of members and the same ports. Ports that are not
        given are drawn, and drawn again when another program was faster. With `advertised_peer_ports` the members
        dial each other there, and the caller has to relay it to the `peer_ports`. With `tls` the members serve
        clients with that certificate and demand one from the same authority (so it must be good for both ends);
        what they say to each other stays in the clear.

        Raises:
            ConfigError: when there is no etcd, a given port is in use, or a member does not accept its settings.
            EtcdUnavailable: when the cluster is not healthy in time. Then, as after a cancellation, nothing runs.
        """
        binary = find_binary()
        version = binary_version(binary)
        layout = Layout(
            data_dir=data_dir,
            names=tuple(f"m{number}" for number in range(1, members + 1)),
            client_ports=None if client_ports is None else tuple(client_ports),
            peer_ports=None if peer_ports is None else tuple(peer_ports),
            advertised_peer_ports=None if advertised_peer_ports is None else tuple(advertised_peer_ports),
            extra_args=tuple(extra_args),
            tls=tls,
        )
        for _ in range(_PORT_DRAWS - 1):
            try:
                return await cls._start_once(layout, binary, version, timeout_s)
            except PortTaken as error:
                if error.port in layout.given_ports:
                    raise
                for name in layout.names:  # they remember the ports that did not work
                    shutil.rmtree(data_dir / name, ignore_errors=True)
        return await cls._start_once(layout, binary, version, timeout_s)

    @classmethod
    async def _start_once(cls, layout: Layout, binary: Path, version: str, timeout_s: float) -> EtcdCluster:
        layout.data_dir.mkdir(parents=True, exist_ok=True)
        cluster = cls(layout.members(binary), version=version, tls=layout.tls)
        try:
            for member in cluster.members:
                member.spawn()
            await cluster.wait_healthy(timeout_s)
        except BaseException:
            cluster.kill()
            raise
        return cluster

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The client addresses of all members, HOST:PORT, also of those that are down."""
        return tuple(member.endpoint for member in self.members)

    async def wait_healthy(self, timeout_s: float = 30.0) -> None:
        """Waits until every member answers a linearizable read.

        Raises:
            ConfigError: at once when the process of a member has ended, with the gist of its log.
            EtcdUnavailable: when one does not answer in time, with the gist of its log.
        """
        give_up_at_s = time.monotonic() + timeout_s
        for member in self.members:
            while True:
                for each in self.members:
                    each.check_running()
                if member.listens() and await self._serves(member):
                    break
                if time.monotonic() >= give_up_at_s:
                    raise EtcdUnavailable(f"{member} does not serve after {timeout_s:g} s; its log: {member.says()}")
                await asyncio.sleep(_POLL_S)

    async def leader(self, timeout_s: float = 10.0) -> Member:
        """The member that leads in etcd; waits while there is none, or while the one named is down or paused.

        Raises:
            EtcdUnavailable: when none leads in time.
        """
        give_up_at_s = time.monotonic() + timeout_s
        while True:
            if (leader := await self._named_leader()) is not None:
                return leader
            if time.monotonic() >= give_up_at_s:
                raise EtcdUnavailable(f"the etcd cluster has no leader after {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Ends all members: SIGTERM, and SIGKILL after a second. The data stays. Safe to call again.

        The wait is short because an etcd leader whose followers have ended looks for a successor for seconds;
        SIGKILL loses nothing, since etcd has synced to disk all that it has acknowledged.
        """
        try:
            for member in self.members:
                member.terminate()
            give_up_at_s = time.monotonic() + _TERMINATE_S
            for member in self.members:
                await member.wait_ended(give_up_at_s - time.monotonic())
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends all members with SIGKILL, without an event loop. Safe to call again."""
        for member in self.members:
            member.kill()

    def _config(self, members: Sequence[Member]) -> EtcdConfig:
        endpoints = tuple(member.endpoint for member in members)
        user, password = self.credentials or (None, None)
        return EtcdConfig(
            endpoints,
            tls=self.tls,
            user=user,
            password=password,
            call_timeout_s=_PROBE_S,
            attempt_timeout_s=_PROBE_S,
        )

    async def _serves(self, member: Member) -> bool:
        """Whether the member answers, and it is not somebody else's etcd that was faster on this port."""
        async with EtcdClient(self._config([member])) as client:
            try:
                _, header = await client.get(b"health")
                listed = await client.call(methods.MEMBER_LIST, rpc.MemberListRequest())
            except AccessDenied:
                return True  # etcd refuses a user only after the read barrier
            except EtcdError:
                return False
        return any(header.member_id == each.ID and member.peer_url in each.peerURLs for each in listed.members)

    async def _named_leader(self) -> Member | None:
        """The leader by the answer with the highest raft term, if it is one that runs."""
        able = [member for member in self.members if member.running and not member.paused]
        if not able:
            return None
        async with EtcdClient(self._config(able)) as client:
            answers = await asyncio.gather(
                *(client.status(number) for number in range(len(able))), return_exceptions=True
            )
        by_id, newest, leader_id = {}, 0, 0
        for member, answer in zip(able, answers, strict=True):
            if isinstance(answer, EtcdError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            by_id[answer.header.member_id] = member
            if answer.raftTerm > newest:
                newest, leader_id = answer.raftTerm, answer.leader
        return by_id.get(leader_id)
