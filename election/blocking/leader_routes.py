"""A channel of `grpc` that leads to whoever leads an election, for generated stubs of programs without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from election.background import Background, Running
from election.blocking.leader_calls import Answer, Answers
from election.client import leader_channel as asynchronous
from election.config import TlsConfig


def leader_channel(
    servers: str | Iterable[str],
    election: str,
    *,
    tls: TlsConfig | None = None,
    token: str | Path | None = None,
    insecure: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> LeaderChannel:
    """A channel to the leader of an election, for `with`; see `election.leader_channel`."""
    return LeaderChannel(
        asynchronous.leader_channel(
            servers, election, tls=tls, token=token, insecure=insecure, credentials=credentials, options=options
        )
    )


class LeaderChannel(grpc.Channel):
    """As `election.LeaderChannel`, in a thread of its own; any number of threads may call.

    What calls raise is also what they raise there: kinds of `grpc.aio.AioRpcError`, which is a `grpc.RpcError` that has
    a `code()`. Requests that come from an iterator are taken from it in a thread for each call, as in `grpc`.
    """

    def __init__(self, channel: asynchronous.LeaderChannel) -> None:
        self.election = channel.election
        self._channel = channel
        self._background: Background | None = None
        self._told: dict[Callable[[grpc.ChannelConnectivity], None], Running[None]] = {}

    def __enter__(self) -> Self:
        self._background = Background()
        try:
            self._background.call(self._channel.__aenter__())
        except BaseException:
            self._background.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls."""
        if self._background is not None and self._background.is_ours:
            self._background.call(self._channel.close())
            self._background.close()

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """Calls `callback`, in another thread, with the state of the connection to the leader and with every change."""

        async def tell() -> None:
            while True:
                state = self._channel.get_state(bool(try_to_connect))
                await asyncio.to_thread(callback, state)
                await self._channel.wait_for_state_change(state)

        self._told[callback] = self._open.begin(tell())

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Calls it no more."""
        if (running := self._told.pop(callback, None)) is not None and self._open.is_ours:
            running.cancel()

    def unary_unary(self, *args: Any, **more: Any) -> Any:
        """As in `grpc`."""
        return _Method(self._open, self._channel.unary_unary(*args, **more), Answer)

    def unary_stream(self, *args: Any, **more: Any) -> Any:
        """As in `grpc`."""
        return _Method(self._open, self._channel.unary_stream(*args, **more), Answers)

    def stream_unary(self, *args: Any, **more: Any) -> Any:
        """As in `grpc`."""
        return _Method(self._open, self._channel.stream_unary(*args, **more), Answer, sends_many=True)

    def stream_stream(self, *args: Any, **more: Any) -> Any:
        """As in `grpc`."""
        return _Method(self._open, self._channel.stream_stream(*args, **more), Answers, sends_many=True)

    @property
    def _open(self) -> Background:
        if self._background is None:
            raise ValueError("the channel is not open: use it inside `with`")
        return self._background


class _Method:
    """A method of a service, as stubs call it."""

    def __init__(
        self, background: Background, method: Any, kind: type[Answer] | type[Answers], *, sends_many: bool = False
    ) -> None:
        self._background = background
        self._method = method
        self._kind = kind
        self._sends_many = sends_many

    def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:
        call = self._begin(request, timeout, metadata, more)
        return call.waited() if isinstance(call, Answer) else call

    def with_call(self, request: Any, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:
        """The answer, and the call."""
        call = self._begin(request, timeout, metadata, more)
        assert isinstance(call, Answer)
        return call.waited(), call

    def future(self, request: Any, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:
        """The call, which is the answer's future."""
        return self._begin(request, timeout, metadata, more)

    def _begin(self, request: Any, timeout: float | None, metadata: Any, more: dict[str, Any]) -> Answer | Answers:
        async def begin() -> Any:
            requests = () if self._sends_many else (request,)
            return self._method(*requests, timeout=timeout, metadata=metadata, **more)

        call = self._kind(self._background, self._background.call(begin()))
        if self._sends_many:
            call.send(request)
        return call
