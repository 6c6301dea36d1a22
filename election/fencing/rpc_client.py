"""The leader's side of fenced gRPC calls: each one carries the token of its term."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from election.fencing.claim import ELECTION_KEY, TOKEN_KEY, Claim
from election.fencing.rpc import Metadata


def client_fence(term: Claim) -> list[_Fence]:
    """Interceptors for `grpc.intercept_channel`: calls carry the term's token, and none is made after the term.

    `term.check()` runs before each call: its NotLeader reaches the caller where an error of the call would. It
    also runs before each message of a request stream; the call is then broken off with UNKNOWN, as gRPC does when
    an iterator of requests raises. To a handler, that can look as if the stream had ended, like any call that is
    broken off: let the last message say that it is the last.

    The check holds at that moment. What is then on its way, or waits for a connection, is the server's to refuse.
    """
    return [_Fence(term)]


def aio_client_fence(term: Claim) -> list[grpc.aio.ClientInterceptor]:
    """As `client_fence`, for the channels of `grpc.aio`, which want one interceptor for each kind of call.

    A call that is broken off in the middle of its request stream raises CancelledError, as gRPC does there. And a
    refusal that arrives while a request is written can show as INTERNAL (grpc #36066);
    `election.bidi.TrueStatus` tells what it was.
    """
    return [_UnaryUnary(term), _UnaryStream(term), _StreamUnary(term), _StreamStream(term)]


def stamped(term: Claim, metadata: Metadata | None) -> list[tuple[str, Any]]:
    """The metadata of a call, with the claim; raises NotLeader when the term is known to be over."""
    term.check()
    kept = [(key, value) for key, value in metadata or () if key.lower() not in (TOKEN_KEY, ELECTION_KEY)]
    return [*kept, (TOKEN_KEY, str(term.token)), (ELECTION_KEY, term.election)]


# --- channels of grpc ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Fence(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, term: Claim) -> None:
        self._term = term

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._details(client_call_details), _checked(self._term, request_iterator))

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._details(client_call_details), _checked(self._term, request_iterator))

    def _details(self, given: Any) -> _Details:
        return _Details(
            method=given.method,
            timeout=given.timeout,
            metadata=stamped(self._term, given.metadata),
            credentials=given.credentials,
            wait_for_ready=getattr(given, "wait_for_ready", None),  # younger than many an interceptor
            compression=getattr(given, "compression", None),
        )


def _checked(term: Claim, requests: Iterable[Any]) -> Iterator[Any]:
    for request in requests:
        term.check()
        yield request


# --- channels of grpc.aio --------------------------------------------------------------------------------------


class _AioFence:
    def __init__(self, term: Claim) -> None:
        self._term = term

    def _details(self, given: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        return grpc.aio.ClientCallDetails(
            method=given.method,
            timeout=given.timeout,
            metadata=grpc.aio.Metadata(*stamped(self._term, given.metadata)),
            credentials=given.credentials,
            wait_for_ready=given.wait_for_ready,
        )


class _UnaryUnary(_AioFence, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details), request)


class _UnaryStream(_AioFence, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details), request)


class _StreamUnary(_AioFence, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._details(client_call_details), _aio_checked(self._term, request_iterator))


class _StreamStream(_AioFence, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._details(client_call_details), _aio_checked(self._term, request_iterator))


async def _aio_checked(term: Claim, requests: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            term.check()
            yield request
    else:
        for request in _checked(term, requests):
            yield request
