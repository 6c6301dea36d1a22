"""What surrounds the handlers of our services: errors become statuses, and streams can be ended from outside.

A servicer's methods are wrapped once, when it is registered: an interceptor would cost every call as much again as the
answer does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Set
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc import StatusCode

from election.api.statuses import Status, status, status_of
from election.errors import ElectionError, ShuttingDown
from election.pb.election.v1 import error_reason_pb2 as reasons
from election.server.access import audit
from election.server.access.caller import Caller, current_caller
from election.server.access.gate import Gate
from election.server.access.identity import certificate_identities
from election.server.access.lasting import Lasting
from election.server.access.roles import METHODS, Access, Role
from election.server.handlers import Context, Unreadable, generic_handler, readable

logger = logging.getLogger("election")

Single = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncGenerator[Any]]
"""Its first argument is a request, or an iterator of the caller's messages."""


_AT_ONCE = 100
"""Of so many streams it is asked at once whether they may go on: there can be thousands."""


class _Stream:
    """A stream that runs: it can be ended from outside, with a status."""

    def __init__(self, lasting: Lasting, *, is_watch: bool) -> None:
        self.lasting = lasting
        self.is_watch = is_watch
        self.limit = asyncio.timeout(None)
        self.why = Status(StatusCode.OK, "")

    def end(self, why: Status) -> None:
        self.why = why
        self.limit.reschedule(asyncio.get_running_loop().time())


class Calls:
    """Lets in who may call, makes statuses of the errors of our services, and can end their streams from outside."""

    def __init__(self, gate: Gate, *, deadline_s: float) -> None:
        self._gate = gate
        self._deadline_s = deadline_s
        self._checked = gate.version()
        self._streams: set[_Stream] = set()
        self._closed: Status | None = None

    def end_watches(self, why: Status) -> None:
        """Ends the streams that only tell what is, so that their callers go elsewhere.

        What a caller holds by a stream, a session or a term, does not depend on what the server remembers of etcd.
        """
        self._end({stream for stream in self._streams if stream.is_watch}, why)

    async def end_forbidden_streams(self) -> None:
        """Ends the streams whose callers may not have them any more, if anything has changed since the last time."""
        if (version := self._gate.version()) == self._checked:
            return
        self._checked = version
        for number, stream in enumerate(tuple(self._streams), start=1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if stream in self._streams and (error := stream.lasting.lost()):
                self._end({stream}, status_of(error))

    def close(self) -> None:
        """Ends all streams, and refuses new ones: the server is about to end."""
        self._closed = status_of(ShuttingDown("the server is shutting down"))
        self._end(self._streams, self._closed)

    def _end(self, streams: Set[_Stream], why: Status) -> None:
        for stream in tuple(streams):
            self._streams.discard(stream)
            stream.end(why)

    def handler(self, servicer: object, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
        """What to register: each method of the service, wrapped."""
        return generic_handler(service, {each.name: self._wrapped(servicer, each) for each in service.methods})

    def _wrapped(self, servicer: object, method: MethodDescriptor) -> Callable[[Any, Context], Awaitable[Any]]:
        handle = getattr(servicer, method.name)
        path = f"/{method.containing_service.full_name}/{method.name}"
        access = METHODS[path]
        if method.client_streaming:
            wrapped = self._streaming(
                path, access, lambda requests, context: handle(readable(requests), context), is_watch=False
            )
        elif method.server_streaming:
            wrapped = self._streaming(path, access, handle, is_watch=True)
        else:
            wrapped = self._single(path, access, handle)
        return _audited(path, access, wrapped) if access.role is Role.ADMIN else wrapped

    def _admit(self, access: Access, request: Any, caller: Caller) -> None:
        """Raises what says why a caller may not call a method with a request; who may is the `current_caller`."""
        current_caller.set(caller)
        if isinstance(request, Unreadable):
            raise request
        if caller.grants is not None:
            caller.require(access.role, election=access.election(request))

    def _single(self, method: str, access: Access, handle: Single) -> Single:
        async def single(request: Any, context: Context) -> Any:
            try:
                self._admit(access, request, self._gate.caller(context))
                if context.time_remaining() is not None:  # then gRPC ends the call
                    return await handle(request, context)
                return await self._bounded(handle(request, context), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 (each is told, or logged)
                await _fail(method, context, error)

        return single

    async def _bounded(self, answer: Awaitable[Any], context: Context) -> Any:
        limit = asyncio.timeout(self._deadline_s)
        try:
            async with limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"it took longer than {self._deadline_s:g} s, which a call without a deadline may take"
            await _abort(context, status(StatusCode.DEADLINE_EXCEEDED, reasons.ERROR_REASON_DEADLINE, text))

    def _streaming(
        self, method: str, access: Access, handle: Streaming, *, is_watch: bool
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def streaming(request: Any, context: Context) -> None:
            try:
                if self._closed is not None:
                    await _abort(context, self._closed)
                stream = _Stream(self._gate.lasting(self._gate.caller(context)), is_watch=is_watch)
                self._admit(access, request, stream.lasting.caller)
                with self._gate.limits.stream(stream.lasting.caller):
                    await self._stream(stream, handle(request, context), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 (each is told, or logged)
                await _fail(method, context, error)

        return streaming

    async def _stream(self, stream: _Stream, messages: AsyncGenerator[Any], context: Context) -> None:
        self._streams.add(stream)
        try:
            async with stream.limit, aclosing(messages):
                async for message in messages:
                    await _write(context, message)
        except TimeoutError:
            if not stream.limit.expired():
                raise
            await _abort(context, stream.why)
        finally:
            self._streams.discard(stream)


def _audited(method: str, access: Access, call: Single) -> Single:
    """Leaves a line for each call. CANCELLED says that the caller was not told how it ended; it may have been done."""

    async def audited(request: Any, context: Context) -> Any:
        code = StatusCode.CANCELLED
        peer, shown = context.peer(), certificate_identities(context.auth_context())  # nothing is told at the end
        try:
            answer = await call(request, context)
            code = StatusCode.CANCELLED if context.done() else StatusCode.OK
            return answer
        except grpc.aio.AbortError:
            code = context.code()
            raise
        finally:
            caller = current_caller.get()  # unless it was refused before it could be one
            who = caller.identities if caller.peer else shown
            on, asked = (
                ("", {}) if isinstance(request, Unreadable) else (access.resource(request), access.rest(request))
            )
            audit.record(who=who, did=method, on=on, asked=asked, peer=peer, code=code.name)

    return audited


async def _fail(method: str, context: Context, error: Exception) -> None:
    """Ends a call with the status that stands for an error."""
    if isinstance(error, ElectionError):
        await _abort(context, status_of(error))
    if isinstance(error, NotImplementedError):
        await _abort(context, Status(StatusCode.UNIMPLEMENTED, f"this server does not offer {method}"))
    if context.done():  # the caller is gone, and with it whoever could be told
        return
    logger.error("%s failed", method, exc_info=error)
    text = "the server failed to answer; its log says why"
    await _abort(context, status(StatusCode.INTERNAL, reasons.ERROR_REASON_INTERNAL, text))


# To a call that has ended gRPC answers with an error that has no name, and it logs a traceback for what is not caught:
# anybody could fill the log. A cancelled handler ends without a word.


async def _write(context: Context, message: Any) -> None:
    try:
        await context.write(message)
    except Exception as error:
        raise asyncio.CancelledError from error


async def _abort(context: Context, why: Status) -> NoReturn:
    try:
        await context.abort(*why)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        raise asyncio.CancelledError from error
