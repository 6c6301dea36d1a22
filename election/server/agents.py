"""The service `election.v1.Agents`: agents, their liveness and what they stored."""
# ruff: noqa: N802 (the methods have the names of the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
import grpc.aio

from election.agent_messages import (
    agent_event_message,
    agent_message,
    breaker_message,
    entry_message,
    filter_from,
    tombstone_message,
)
from election.agent_records import Tombstone
from election.messages import VIEW_METADATA, view_message
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.reader import Answer, Reader

Context = grpc.aio.ServicerContext[Any, Any]


class PagedReader(Reader, Protocol):
    """A Reader that can tell all tombstones without having all of them in memory, as `View` does."""

    def tombstone_pages(self, agent: str | None = None) -> AsyncGenerator[Answer[tuple[Tombstone, ...]]]:
        """The tombstones that are kept, some at a time, all with the same source; one page or more."""
        ...


class AgentsServicer(services.AgentsServicer):
    """Answers from a Reader. Its methods raise ElectionError kinds; the server makes statuses of them."""

    def __init__(self, reader: PagedReader) -> None:
        self._reader = reader

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        """Lists the agents that fit."""
        answer = await self._reader.agents(filter_from(request))
        return pb.ListAgentsResponse(view=view_message(answer.source), agents=map(agent_message, answer.value))

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        """Gets one agent with its state; NOT_FOUND carries the view in its trailing metadata."""
        answer = await self._reader.agent(request.id)
        view = view_message(answer.source)
        if answer.value is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"agent {request.id!r} is not known",
                ((VIEW_METADATA, view.SerializeToString()),),
            )
        agent, state = answer.value
        return pb.GetAgentResponse(view=view, agent=agent_message(agent), state=map(entry_message, state))

    async def WatchAgents(
        self, request: pb.WatchAgentsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchAgentsResponse]:
        """Tells what was reaped meanwhile, every agent, SYNCED, and every change."""
        after = request.after_revision if request.HasField("after_revision") else None
        async with aclosing(self._reader.watch_agents(after=after)) as events:
            async for event in events:
                yield agent_event_message(event)

    async def ListTombstones(
        self, request: pb.ListTombstonesRequest, context: Context
    ) -> AsyncGenerator[pb.ListTombstonesResponse]:
        """Lists the tombstones, as many in a message as the reader has in a page."""
        async with aclosing(self._reader.tombstone_pages(request.agent or None)) as pages:
            async for page in pages:
                yield pb.ListTombstonesResponse(
                    view=view_message(page.source), tombstones=map(tombstone_message, page.value)
                )

    async def GetBreaker(self, request: pb.GetBreakerRequest, context: Context) -> pb.GetBreakerResponse:
        """Tells whether collectors may reap."""
        answer = await self._reader.breaker()
        return pb.GetBreakerResponse(view=view_message(answer.source), breaker=breaker_message(answer.value))
