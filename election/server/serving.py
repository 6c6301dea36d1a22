"""The gRPC server: where it listens, how healthy it is, how errors become statuses, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from election.errors import ConfigError, ElectionError
from election.messages import status_of
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.published import Published
from election.server.agents import AgentsServicer
from election.server.elections import ElectionsServicer
from election.views import Reader, Source

logger = logging.getLogger("election")

GRACE_S = 5.0
"""How long calls may go on after the server was told to end; streams are ended at once."""

_CHECK_S = 1.0
_SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic when it runs

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
    ("grpc.max_receive_message_length", 64 * 1024),
)


class FreshReader(Reader, Protocol):
    """A Reader that can say how fresh it is, as `View` does."""

    def source(self) -> Source:
        """How fresh it is; raises ViewStale when that is too old to answer from."""
        ...


class GrpcServer:
    """Serves a Reader inside its `async with` block, on one port, with health and reflection.

    Port 0 takes any free port. Without `cert` and `key` it serves plain text, on a loopback address only unless
    `insecure` is said. The files are read once, at the beginning.

    The health of "" is SERVING while the server lives; that of the services turns NOT_SERVING while the reader is
    stale, within a second, and their streams end with UNAVAILABLE. Leaving the block turns all health NOT_SERVING,
    ends the streams with UNAVAILABLE, and lets other calls go on for at most GRACE_S seconds.

    Raises:
        ConfigError: from the constructor for an address or files that cannot be used, on entering for a port that
            cannot be bound.
    """

    def __init__(
        self,
        reader: FreshReader,
        host: str = "127.0.0.1",
        port: int = 50051,
        cert: Path | None = None,
        key: Path | None = None,
        insecure: bool = False,
    ) -> None:
        if not 0 <= port < 65536:
            raise ConfigError(f"{port} is not a port: use 1 to 65535, or 0 for any free one")
        self._credentials = _credentials(cert, key)
        if self._credentials is None and not insecure and not _is_loopback(host):
            raise ConfigError(
                f"{host} is not a loopback address, where plain text would be safe: "
                "give --server-cert and --server-key, or say --insecure"
            )
        self._reader = reader
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._health = _Health()
        self._calls = _Calls()
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
        server = grpc.aio.server(interceptors=[self._calls], options=_OPTIONS)
        services.add_ElectionsServicer_to_server(ElectionsServicer(self._reader), server)
        services.add_AgentsServicer_to_server(AgentsServicer(self._reader), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, _HEALTH, reflection.SERVICE_NAME), server)
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
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        self._health.close()
        self._calls.close("the server is shutting down")
        if self._server is not None:
            await self._server.stop(GRACE_S)

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
                self._calls.end_streams(status_of(error)[1])
            else:
                self._health.set_fresh(True)
            await asyncio.sleep(_CHECK_S)


class _Calls(grpc.aio.ServerInterceptor):
    """Makes statuses of the errors of our services, and can end their streams from outside."""

    def __init__(self) -> None:
        self._streams: set[asyncio.Timeout] = set()
        self._why = ""
        self._closed = False

    def end_streams(self, why: str) -> None:
        """Ends all streams that are open now with UNAVAILABLE, so that their callers go elsewhere."""
        self._why = why
        while self._streams:
            self._streams.pop().reschedule(asyncio.get_running_loop().time())

    def close(self, why: str) -> None:
        """Ends all streams, and refuses new ones."""
        self._closed = True
        self.end_streams(why)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handlers of our services; the others are left as they are."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.split("/")[1] not in _SERVICES:
            return handler
        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_stream is not None:
            stream = cast("Callable[[Any, _Context], AsyncGenerator[Any]]", handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, stream), *codec)
        unary = cast("Callable[[Any, _Context], Awaitable[Any]]", handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(self._single(method, unary), *codec)

    def _single(
        self, method: str, handle: Callable[[Any, _Context], Awaitable[Any]]
    ) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def single(request: Any, context: _Context) -> Any:
            async with _statuses(method, context):
                return await handle(request, context)

        return single

    def _streaming(
        self, method: str, handle: Callable[[Any, _Context], AsyncGenerator[Any]]
    ) -> Callable[[Any, _Context], Awaitable[None]]:
        async def streaming(request: Any, context: _Context) -> None:
            limit = asyncio.timeout(None)
            async with _statuses(method, context):
                if self._closed:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, self._why)
                try:
                    async with limit, aclosing(handle(request, context)) as messages:
                        self._streams.add(limit)
                        async for message in messages:
                            await context.write(message)
                except TimeoutError:
                    if not limit.expired():
                        raise
                    await context.abort(grpc.StatusCode.UNAVAILABLE, self._why)
                finally:
                    self._streams.discard(limit)

        return streaming


@asynccontextmanager
async def _statuses(method: str, context: _Context) -> AsyncIterator[None]:
    try:
        yield
    except ElectionError as error:
        await context.abort(*status_of(error))
    except grpc.aio.AbortError:
        raise
    except Exception:
        logger.exception("%s failed", method)
        await context.abort(grpc.StatusCode.INTERNAL, "the server failed to answer; its log says why")


class _Health:
    """grpc.health.v1 for "" and our services.

    It is not grpcio-health-checking's own servicer, since that forgets the other watchers when one of them leaves.
    """

    def __init__(self) -> None:
        # None: the server is about to end.
        self._serving: Published[Mapping[str, bool] | None] = Published(dict.fromkeys(("", *_SERVICES), True))

    def set_fresh(self, fresh: bool) -> None:
        serving = {"": True, **dict.fromkeys(_SERVICES, fresh)}
        if serving != self._serving.value:
            self._serving.set(serving)

    def close(self) -> None:
        self._serving.set(None)

    async def Check(self, request: Any, context: _Context) -> Any:  # noqa: N802 (the name in the proto)
        status = self._status(self._serving.value, request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the service is not known")
        return _Status(status=status)

    async def Watch(self, request: Any, context: _Context) -> AsyncGenerator[Any]:  # noqa: N802
        told = None
        async with aclosing(self._serving.values()) as values:
            async for serving in values:
                status = self._status(serving, request.service)
                if status != told:
                    yield _Status(status=status)
                    told = status
                if serving is None:
                    return

    def _status(self, serving: Mapping[str, bool] | None, service: str) -> int:
        if service not in ("", *_SERVICES):
            return cast("int", _Status.SERVICE_UNKNOWN)
        return cast("int", _Status.SERVING if serving and serving[service] else _Status.NOT_SERVING)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    """Binds and lets go: gRPC itself only says that it failed, and is content with one of several addresses."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None


def _credentials(cert: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("a server certificate needs its key, and a key its certificate: give both or none")
    try:
        # gRPC takes anything and fails at the handshake. The password is for a key that needs one: without it,
        # the terminal would be asked.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
        return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    except ssl.SSLError as error:
        raise ConfigError(f"{cert} and {key} are not a certificate and its key: {error.reason or error}") from None
    except OSError as error:
        named = error.filename or f"{cert} or {key}"
        raise ConfigError(f"cannot read {named}: {error.strerror}") from None
