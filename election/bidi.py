"""Calls that stream in both directions, and the status that a call was really ended with.

A write that meets the end of its call fails, and `grpc.aio` then gives INTERNAL ("Internal error from Core") for the
status of the server, before that has come or in its place: https://github.com/grpc/grpc/issues/36066. With grpcio
1.85.1 it does so for 9 of 10 calls whose caller writes all the time, and for 1 of 1,000 whose first message is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio

T = TypeVar("T")
Req = TypeVar("Req")
Resp = TypeVar("Resp")


_LOOKS, _LOOK_S = 200, 0.001
"""The status of the server follows a failed write within 2 ms. It is looked for so often, so many seconds apart, as
some failed writes have none to follow (https://github.com/grpc/grpc/pull/34148)."""

_OF_CORE = grpc.StatusCode.INTERNAL, "Internal error from Core"


class TrueStatus:
    """What the server, and not a failed write, has ended a call with. Create it with the call."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def error(self) -> grpc.aio.AioRpcError | None:
        """Waits for the end of the call; None where it has ended well."""
        await self._call.code()
        status = self._first or _status_of(self._call)
        for _ in range(_LOOKS):
            if (status.code(), status.details()) != _OF_CORE:
                break
            await asyncio.sleep(_LOOK_S)
            status = _status_of(self._call)
        return None if status.code() is grpc.StatusCode.OK else status

    def _note(self, call: grpc.aio.Call) -> None:
        with suppress(Exception):  # of an interceptor: the call has no status, and raises that
            self._first = _status_of(call)


def _status_of(call: Any) -> grpc.aio.AioRpcError:
    """That of a call that is done."""
    return grpc.aio.AioRpcError(
        _at_once(call.code()),
        initial_metadata=_at_once(call.initial_metadata()),
        trailing_metadata=_at_once(call.trailing_metadata()),
        details=_at_once(call.details()),
        debug_error_string=_at_once(call.debug_error_string()),
    )


def _at_once(answer: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: when a call is done, all of its status is there."""
    try:
        answer.send(None)
    except StopIteration as ended:
        return cast("T", ended.value)
    answer.close()
    raise AssertionError("a call that is done has no status")


class BidiCall(Generic[Req, Resp]):
    """A call on which both sides send. Use it from one task for each direction; to cancel one of them breaks the call.

    Reading and writing raise AioRpcError with the status that the server has ended the call with. A message that the
    server has sent last is lost where a write meets the end of the call.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Req, Resp]) -> None:
        self._call = call
        self._status = TrueStatus(call)

    async def write(self, request: Req) -> None:
        """Sends one message. After the end of the call it raises UNAVAILABLE: the reader is told why it has ended."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise await self._status.error() or error from None
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:  # the call ended between two writes
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details=str(error)) from None

    async def read(self) -> Resp | None:
        """The next message, or None when the server has ended the call."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError:
            if (error := await self._status.error()) is None:
                return None
            raise error from None
        return None if message is grpc.aio.EOF else cast("Resp", message)

    def cancel(self) -> None:
        """Ends the call; safe at any time, and more than once."""
        self._call.cancel()
