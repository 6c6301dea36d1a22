"""One call to one member. Which member, and whether to try again, is `client.py`'s to decide."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import grpc
import grpc.aio

from election.bidi import BidiCall
from election.channels import Channels
from election.clock import Clock
from election.config import EtcdConfig
from election.etcd.methods import Method, Req, Resp

Metadata = tuple[tuple[str, str], ...]


class RpcFailed(Exception):
    """A call to a member failed: the gRPC status and its text, not yet understood."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)


class Stream(Protocol[Sent, Received]):
    """A call that streams in both directions. Use from one task for reading and one at a time for writing."""

    async def write(self, request: Sent) -> None:
        """Sends one message; raises RpcFailed when the stream is broken."""
        ...

    async def read(self) -> Received | None:
        """The next message, or None when the member ended the stream. Cancelling it breaks the stream."""
        ...

    def cancel(self) -> None:
        """Ends the call; safe at any time, and more than once."""
        ...


class Transport(Protocol):
    """The members that a client may call, by their index."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' names, for error texts."""
        ...

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        """One request, one answer; raises RpcFailed. Cancelling cancels the call."""
        ...

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        """Opens a stream; a member that cannot be reached shows at the first write or read."""
        ...

    async def close(self) -> None:
        """Ends all calls and connections."""
        ...


# etcd closes a connection that pings more often than every 5 s; a member that is cut off is noticed by the
# deadline of each call long before. The reconnect backoff is short because candidates wait for the member.
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class GrpcTransport:
    """One gRPC channel for each endpoint. Create it inside the event loop that uses it.

    A TLS certificate that is replaced is used for what begins afterwards, see `Channels`; nothing is cancelled for it.
    """

    def __init__(self, config: EtcdConfig, *, clock: Clock | None = None) -> None:
        self._endpoints = config.endpoints
        self._channels = Channels(config.endpoints, config.tls, _CHANNEL_OPTIONS, clock=clock)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses, as configured."""
        return self._endpoints

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        """One request, one answer."""
        line = self._channels[member]
        method_on = line.channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        call = method_on(request, timeout=timeout_s, metadata=metadata)
        line.carry(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None

    def stream(self, member: int, method: Method[Req, Resp], *, metadata: Metadata) -> Stream[Req, Resp]:
        """Opens a stream in both directions."""
        line = self._channels[member]
        method_on = line.channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        call = method_on(metadata=metadata)
        line.carry(call)
        return _GrpcStream(call)

    async def close(self) -> None:
        """Ends all calls and connections at once."""
        await self._channels.close()


class _GrpcStream(Generic[Req, Resp]):
    def __init__(self, call: grpc.aio.StreamStreamCall[Req, Resp]) -> None:
        self._call = BidiCall(call)

    async def write(self, request: Req) -> None:
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None

    async def read(self) -> Resp | None:
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None

    def cancel(self) -> None:
        self._call.cancel()


def _failed(error: grpc.aio.AioRpcError) -> RpcFailed:
    return RpcFailed(error.code(), error.details() or "")
