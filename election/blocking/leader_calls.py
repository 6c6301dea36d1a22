"""Calls to whoever leads, without asyncio: they behave as those of `grpc`, and raise what `LeaderChannel` tells.

Each is a call of `grpc.aio` in the background. What is done with it is done there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from election.background import Background
from election.errors import ElectionError

logger = logging.getLogger("election")


class LeaderCall(grpc.Call):
    """What the calls of all kinds have in common. One that is dropped before its end is cancelled."""

    def __init__(self, background: Background, call: Any) -> None:
        self.background = background
        self._held = [call]  # so that it can be let go of in the background

    def __del__(self) -> None:
        held = self._held
        self.background.soon(lambda: held.pop().cancel())

    def ask(self, what: Callable[[Any], Awaitable[Any]]) -> Any:
        """Does something with the call, and waits for it; CANCELLED is raised for a call that was cancelled."""

        async def asked() -> Any:
            return await what(self._held[0])

        try:
            return self.background.call(asked())
        except asyncio.CancelledError:
            raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, details="the call was cancelled") from None

    def send(self, requests: Iterable[Any]) -> None:
        """Sends requests from a thread of their own, until the call or they have ended."""

        def pump() -> None:
            try:
                for request in requests:
                    self._write(request)
                self.ask(lambda call: call.done_writing())
            except (grpc.RpcError, asyncio.InvalidStateError, ElectionError):
                pass  # the call has ended, and says why
            except Exception:
                logger.exception("the requests of a call have failed, and with them the call")
                self.cancel()

        threading.Thread(target=pump, name="requests to the leader", daemon=True).start()

    def _write(self, request: Any) -> None:
        self.ask(lambda call: call.write(request))

    def initial_metadata(self) -> Any:
        """As in `grpc`."""
        return self.ask(lambda call: call.initial_metadata())

    def trailing_metadata(self) -> Any:
        """As in `grpc`."""
        return self.ask(lambda call: call.trailing_metadata())

    def code(self) -> grpc.StatusCode:
        """As in `grpc`."""
        code: grpc.StatusCode = self.ask(lambda call: call.code())
        return code

    def details(self) -> str:
        """As in `grpc`."""
        return str(self.ask(lambda call: call.details()))

    def is_active(self) -> bool:
        """As in `grpc`."""
        return not self._held[0].done()

    def time_remaining(self) -> Any:
        """As in `grpc`."""
        return self._held[0].time_remaining()

    def cancel(self) -> bool:
        """As in `grpc`."""

        async def cancel() -> bool:
            return bool(self._held[0].cancel())

        return self.background.is_ours and self.background.call(cancel())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """As in `grpc`."""
        if not self.is_active():
            return False

        def ended(_: object) -> None:  # not in the loop's thread: it may wait there for what only the loop can do
            asyncio.get_running_loop().run_in_executor(None, callback)

        self.background.soon(lambda: self._held[0].add_done_callback(ended))
        return True


class Answer(LeaderCall, grpc.Future):  # type: ignore[type-arg]  # which is not generic when it runs
    """A call with one answer."""

    def __init__(self, background: Background, call: Any) -> None:
        super().__init__(background, call)

        async def answer() -> Any:
            return await call

        self._running = background.begin(answer())

    def result(self, timeout: float | None = None) -> Any:
        """As in `grpc`."""
        if not self._running.wait(timeout):
            raise grpc.FutureTimeoutError
        try:
            return self._running.result()
        except asyncio.CancelledError:
            raise grpc.FutureCancelledError from None

    def waited(self) -> Any:
        """The answer. Ctrl-C cancels the call, and is passed on."""
        try:
            return self.result()
        except grpc.FutureCancelledError:
            raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, details="the call was cancelled") from None
        except grpc.RpcError:
            raise
        except BaseException:
            self.cancel()
            raise

    def exception(self, timeout: float | None = None) -> Exception | None:
        """As in `grpc`."""
        try:
            self.result(timeout)
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            raise
        except Exception as error:  # noqa: BLE001 (it is what is asked for)
            return error
        return None

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """As in `grpc`."""
        error = self.exception(timeout)
        return error.__traceback__ if error else None

    def cancelled(self) -> bool:
        """As in `grpc`."""
        return bool(self._held[0].cancelled())

    def running(self) -> bool:
        """As in `grpc`."""
        return self.is_active()

    def done(self) -> bool:
        """As in `grpc`."""
        return not self.is_active()

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """As in `grpc`."""
        if not self.add_callback(lambda: fn(self)):
            fn(self)


class Answers(LeaderCall):
    """A call with a stream of answers."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = self.ask(lambda call: call.read())
        if message is grpc.aio.EOF:
            raise StopIteration
        return message
