"""grpc.health.v1, which load balancers and Kubernetes probe."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from election.api.statuses import status_of
from election.errors import TooManyStreams
from election.published import Published
from election.server.access.caller import Caller
from election.server.access.limits import Limits
from election.server.handlers import Context, Unreadable
from election.server.names import SERVICES

_Status = health_pb2.HealthCheckResponse


class Health:
    """grpc.health.v1 for "" and our services.

    It is not grpcio-health-checking's own servicer, since that forgets the other watchers when one of them leaves.
    Nobody has to show an identity; watches count as streams of their address.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # None: the server is about to end.
        self._serving: Published[Mapping[str, bool] | None] = Published(dict.fromkeys(("", *SERVICES), True))

    def set_fresh(self, fresh: bool) -> None:
        """Says whether the services can answer at present."""
        serving = {"": True, **dict.fromkeys(SERVICES, fresh)}
        if serving != self._serving.value:
            self._serving.set(serving)

    def close(self) -> None:
        """Says that the server is about to end."""
        self._serving.set(None)

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 (the name in the proto)
        """The health of one service, now."""
        if isinstance(request, Unreadable):
            await context.abort(*status_of(request))
        status = self._status(self._serving.value, request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the service is not known")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Context) -> AsyncGenerator[Any]:  # noqa: N802
        """The health of one service, and every change of it."""
        if isinstance(request, Unreadable):
            await context.abort(*status_of(request))
        try:
            with self._limits.stream(Caller(peer=context.peer())):
                async with aclosing(self._changes(request.service)) as changes:
                    async for status in changes:
                        yield _Status(status=status)
        except TooManyStreams as error:
            await context.abort(*status_of(error))

    async def _changes(self, service: str) -> AsyncGenerator[int]:
        told = None
        async with aclosing(self._serving.values()) as values:
            async for serving in values:
                status = self._status(serving, service)
                if status != told:
                    yield status
                    told = status
                if serving is None:
                    return

    def _status(self, serving: Mapping[str, bool] | None, service: str) -> int:
        if service not in ("", *SERVICES):
            return cast("int", _Status.SERVICE_UNKNOWN)
        return cast("int", _Status.SERVING if serving and serving[service] else _Status.NOT_SERVING)
