"""The service `election.v1.Agents`: agents, their liveness and what they stored."""
# ruff: noqa: N802 (the methods have the names of the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from election.messages import VIEW_METADATA, agent_event_message, agent_message, entry_message, view_message
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.reader import Reader

Context = grpc.aio.ServicerContext[Any, Any]


class AgentsServicer(services.AgentsServicer):
    """Answers from a Reader. Its methods raise ElectionError kinds; the server makes statuses of them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        """Lists the agents."""
        answer = await self._reader.agents()
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
        """Tells every agent, SYNCED, and every change."""
        async with aclosing(self._reader.watch_agents()) as events:
            async for event in events:
                yield agent_event_message(event)
