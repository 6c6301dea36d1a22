"""The gRPC server: where it listens, how healthy it is, how errors become statuses, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from election.api.statuses import status_of
from election.clock import BootClock
from election.config import is_loopback
from election.errors import ConfigError, ElectionError
from election.etcd.renewer import Renewer
from election.pb.election.v1 import election_pb2 as pb
from election.server.access.gate import AccessConfig, Gate
from election.server.agents import AgentsServicer
from election.server.calls import Calls
from election.server.campaigns import Campaigns
from election.server.elections import ElectionsServicer
from election.server.handlers import generic_handler
from election.server.health import Health
from election.server.names import SERVICES
from election.server.operations import Operations
from election.server.served import ServedReader
from election.server.sessions import Sessions
from election.server.tls import ServerTls, server_credentials
from election.store import Store

logger = logging.getLogger("election")

GRACE_S = 5.0
"""How long calls may go on after the server was told to end; streams are ended at once."""

_CHECK_S = 1.0
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

# Load balancers drop connections that are silent for a minute and more, and do not say so: pings keep a watch on
# which nothing happens open, and find out when its other end is gone. Clients may ping as often as etcd lets them.
# A connection is renewed after a while, so that the callers spread over servers that came later; its calls go on.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
)


def spare_what_is_there() -> None:
    """Lets Python's search for cyclic garbage pass over all that this process has made so far.

    For a process that does nothing but serve, once it has begun: most of what there is then stays, and to look through
    it again and again costs a tenth of all questions that could be answered.
    """
    gc.collect()
    gc.freeze()


class GrpcServer:
    """Serves a Reader inside its `async with` block, on one port, with health and reflection.

    Port 0 takes any free port. Without `cert` and `key` it serves plain text, on a loopback address only unless
    `insecure` is said. With `client_ca` every client needs a certificate of that authority. `access` says who may do
    what: see `Gate`; health is open to all. All files are read again when they change, and no connection ends for it.
    With a `store`, which has to outlive it, callers can stand, be agents and change something through it; without one
    it only answers.

    The health of "" is SERVING while the server lives; that of the services turns NOT_SERVING while the reader is
    stale, within a second, and their watches end with UNAVAILABLE. Leaving the block turns all health NOT_SERVING,
    asks callers that campaign to stop and waits until they cannot believe any more that they lead, ends the streams
    with UNAVAILABLE, and lets other calls go on for at most GRACE_S seconds.

    Raises:
        ConfigError: from the constructor for an address or files that cannot be used, on entering for a port that
            cannot be bound.
    """

    def __init__(
        self,
        reader: ServedReader,
        host: str = "127.0.0.1",
        port: int = 50051,
        cert: Path | None = None,
        key: Path | None = None,
        insecure: bool = False,
        *,
        store: Store | None = None,
        client_ca: Path | None = None,
        access: AccessConfig | None = None,
    ) -> None:
        if not 0 <= port < 65536:
            raise ConfigError(f"{port} is not a port: use 1 to 65535, or 0 for any free one")
        tls, clock = ServerTls.of(cert, key, client_ca), BootClock()
        self._credentials = None if tls is None else server_credentials(tls, clock)
        if tls is None and not insecure and not is_loopback(host):
            raise ConfigError(
                f"{host} is not a loopback address, where plain text would be safe: "
                "give --server-cert and --server-key, or say --insecure"
            )
        self._reader = reader
        self._store = store
        self._stack = AsyncExitStack()
        self._campaigns = Campaigns(store, reader) if store else None
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        access = access or AccessConfig()
        gate = Gate(
            access, reader.namespace, tls=tls is not None, client_certificates=client_ca is not None, clock=clock
        )
        self.without_policy = gate.without_policy
        """What callers may do where no policy says it, for people; empty where one does."""
        self._health = Health(gate.limits)
        self._calls = Calls(gate, deadline_s=access.limits.deadline_s)
        self._options = (*_OPTIONS, ("grpc.max_receive_message_length", access.limits.message_bytes))
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port: the bound one inside the block, the asked one before."""
        return self._port

    @property
    def address(self) -> str:
        """HOST:PORT, as a client would write it."""
        return f"{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(options=self._options)
        elections, agents = ElectionsServicer(self._reader, self._campaigns), await self._agents()
        described = pb.DESCRIPTOR.services_by_name
        reflecting = reflection.aio.ReflectionServicer((*SERVICES, _HEALTH.full_name, reflection.SERVICE_NAME))
        server.add_generic_rpc_handlers(
            (
                self._calls.handler(elections, described["Elections"]),
                self._calls.handler(agents, described["Agents"]),
                self._calls.handler(reflecting, _REFLECTION),
                generic_handler(_HEALTH, {"Check": self._health.Check, "Watch": self._health.Watch}),
            )
        )
        try:
            self._port = self._bind(server)
            await server.start()
        except BaseException:
            await server.stop(None)
            raise
        self._server = server
        self._watching = asyncio.create_task(self._watch_reader(), name=f"health of {self.address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._health.close()
        try:
            if self._campaigns is not None:
                await self._campaigns.close()
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        self._calls.close()
        if self._server is not None:
            await self._server.stop(GRACE_S)
        await self._stack.aclose()

    async def _agents(self) -> AgentsServicer:
        if (store := self._store) is None:
            return AgentsServicer(self._reader)
        renewer = await self._stack.enter_async_context(Renewer(store.client))
        sessions = Sessions(store.client, renewer, store.keyspace, self._reader)
        return AgentsServicer(self._reader, sessions, Operations(store.client, store.keyspace, self._reader))

    def _bind(self, server: grpc.aio.Server) -> int:
        _check_free(self._host.strip("[]"), self._port)
        try:
            if self._credentials is None:
                return server.add_insecure_port(self.address)
            return server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {self.address}: {error}") from None

    async def _watch_reader(self) -> None:
        while True:
            try:
                self._reader.source()
            except ElectionError as error:
                self._health.set_fresh(False)
                self._calls.end_watches(status_of(error))
            else:
                self._health.set_fresh(True)
            try:
                await self._calls.end_forbidden_streams()
            except Exception:
                logger.exception("it cannot be told who may still have a stream")
            await asyncio.sleep(_CHECK_S)


def _check_free(host: str, port: int) -> None:
    """Binds and lets go: gRPC itself only says that it failed, and is content with one of several addresses."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
