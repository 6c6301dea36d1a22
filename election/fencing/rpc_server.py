"""The resource's side of fenced calls, for servers of `grpc`. What is promised is said in `rpc.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from election.errors import Deposed
from election.fencing.claim import PassedOn
from election.fencing.rpc import HEALTH_AND_REFLECTION, Refused, Rules, undecided, verdict
from election.highwater import HighWater, MemoryHighWater
from election.token import Token

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic when it runs
Advance: TypeAlias = Callable[[str, Token], Token]


class ServerFence(grpc.ServerInterceptor):
    """Refuses the calls of leaders that have been deposed, for the elections that are named.

    `store` keeps the highest tokens seen; without one they last as long as this object, and a server that is
    started again admits a deposed leader until it hears of the present one. It is asked once for each call and for
    each message of a stream. With `required` a call without a token is refused, else let through unchecked.
    `exempt` names what is left alone: services (`package.Service`) or methods (`package.Service/Method`).

    A caller sees FAILED_PRECONDITION for a smaller token, with the highest in `x-fencing-highest` of the trailing
    metadata, for another election and for a missing token; INVALID_ARGUMENT for malformed metadata; UNAVAILABLE
    when the store fails. To a handler, the refusal of a message is an ElectionError that its requests raise, and
    raise again: it ends the call also where the handler takes no notice. A Deposed that a handler raises, from the
    guard of what it writes to, is FAILED_PRECONDITION as well.

    Raises:
        ConfigError: no election is named.
    """

    def __init__(
        self,
        *elections: str,
        store: HighWater | None = None,
        required: bool = True,
        exempt: Iterable[str] = HEALTH_AND_REFLECTION,
    ) -> None:
        self._rules = Rules(frozenset(elections), required, frozenset(exempt))
        self._store: HighWater = MemoryHighWater() if store is None else store

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Handler | None], handler_call_details: Any
    ) -> Handler | None:
        """Wraps the handler; the store is asked where the handler runs, and not in the thread that serves all."""
        handler = continuation(handler_call_details)
        if handler is None or self._rules.exempts(handler_call_details.method):
            return handler
        judged = self._rules.judge(handler_call_details.invocation_metadata)
        return handler if judged is None else guarded(handler, Admission(judged, self._store.advance))


class Admission:
    """Whether one call may go on. A call that has been refused stays so."""

    def __init__(self, judged: PassedOn | Refused, advance: Advance) -> None:
        self._judged = judged
        self._advance = advance

    def check(self) -> None:
        """Raises Refused unless the highest token seen is the call's."""
        if isinstance(claim := self._judged, PassedOn):
            try:
                refused = verdict(claim, self._advance(claim.election, claim.token))
            except Exception as error:  # noqa: BLE001 (whatever it is: the call does not go on)
                refused = undecided(error)
            if refused is not None:
                self._judged = refused
        self.confirm()

    def confirm(self) -> None:
        """Raises Refused when an earlier check did."""
        if isinstance(self._judged, Refused):
            raise self._judged


def guarded(handler: Handler, admission: Admission) -> Handler:
    """The handler of one call, behind its admission."""
    handle: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    def begin(request: Any, context: Any) -> Any:
        admission.check()
        return handle(_Requests(request, admission) if handler.request_streaming else request, context)

    @functools.wraps(handle)
    def single(request: Any, context: Any) -> Any:
        with _statuses(admission, context):
            return begin(request, context)

    @functools.wraps(handle)
    def streaming(request: Any, context: Any) -> Iterator[Any]:
        with _statuses(admission, context):
            responses = begin(request, context)
            try:
                for response in responses:
                    admission.check()
                    yield response
            finally:
                if hasattr(responses, "close"):
                    responses.close()

    return rebuilt(handler, streaming if handler.response_streaming else single)


def rebuilt(handler: Handler, handle: Any) -> Handler:
    """A handler of the same kind and with the same messages."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(handle, handler.request_deserializer, handler.response_serializer)


class _Requests:
    """The requests of a stream, each checked before the handler gets it, and the end of the stream likewise."""

    def __init__(self, requests: Iterator[Any], admission: Admission) -> None:
        self._requests = requests
        self._admission = admission

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._admission.confirm()
        try:
            request = next(self._requests)
        except StopIteration:
            self._admission.check()
            raise
        self._admission.check()
        return request


@contextmanager
def _statuses(admission: Admission, context: Any) -> Iterator[None]:
    try:
        yield
        admission.confirm()
    except Refused as refused:
        context.set_trailing_metadata(refused.trailing_metadata)
        context.abort(refused.code, str(refused))
    except Deposed as deposed:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(deposed))
