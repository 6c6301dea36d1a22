"""The service `election.v1.Agents`: agents, their liveness and what they stored."""
# ruff: noqa: N802 (the methods have the names of the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from election.agent_records import Tombstone
from election.api.agents import (
    agent_event_message,
    agent_message,
    breaker_message,
    entry_message,
    filter_from,
    tombstone_message,
)
from election.api.elections import VIEW_METADATA, heartbeat_from, view_message
from election.api.resources import agent_id
from election.api.statuses import status_of
from election.errors import AgentUnknown
from election.keys import TombstoneKey
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.server.handlers import Context
from election.server.operations import Operations
from election.server.pages import Page, Place
from election.server.served import ServedReader
from election.server.sessions import Sessions

T = TypeVar("T")


class AgentsServicer(services.AgentsServicer):
    """Answers from a Reader. Its methods raise ElectionError kinds; the server makes statuses of them.

    Without `sessions` and `operations`, it does nothing but answer.
    """

    def __init__(
        self, reader: ServedReader, sessions: Sessions | None = None, operations: Operations | None = None
    ) -> None:
        self._reader = reader
        self._sessions = sessions
        self._operations = operations
        self._namespace = reader.namespace

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        """Lists the agents that fit."""
        page = Page[pb.Agent](request, "agents", str)
        answer = await self._reader.agents(filter_from(request), linearizable=request.linearizable)
        page.fill(answer.value, lambda agent: (agent.id,), agent_message)
        return pb.ListAgentsResponse(
            view=view_message(answer.source, self._namespace), agents=page.items, next_page_token=page.next_token
        )

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        """Gets one agent with its state; NOT_FOUND carries the view in its trailing metadata."""
        name = agent_id(request.id)
        answer = await self._reader.agent(name, linearizable=request.linearizable)
        view = view_message(answer.source, self._namespace)
        if answer.value is None:
            code, text, metadata = status_of(AgentUnknown(f"agent {name!r} is not known"))
            await context.abort(code, text, (*metadata, (VIEW_METADATA, view.SerializeToString())))
        agent, state = answer.value
        return pb.GetAgentResponse(view=view, agent=agent_message(agent), state=map(entry_message, state))

    async def WatchAgents(
        self, request: pb.WatchAgentsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchAgentsResponse]:
        """Tells what was reaped meanwhile, every agent, SYNCED, and every change."""
        heartbeat_s = heartbeat_from(request)
        after = request.after_revision if request.HasField("after_revision") else None
        async with aclosing(self._reader.watch_agents(after=after, heartbeat_s=heartbeat_s)) as events:
            async for event in events:
                yield agent_event_message(event, self._namespace)

    async def ListTombstones(self, request: pb.ListTombstonesRequest, context: Context) -> pb.ListTombstonesResponse:
        """Lists the tombstones, the oldest reap first."""
        asked = Page[pb.Tombstone](request, "tombstones", int, str, int, int)
        agent = agent_id(request.agent, field="agent") if request.agent else None
        async with aclosing(self._reader.tombstone_pages(agent, after=_put_at(asked.after))) as pages:
            async for page in pages:
                asked.fill(page.value, _place, lambda row: tombstone_message(row[1]))
                if asked.next_token:
                    break
        return pb.ListTombstonesResponse(
            view=view_message(page.source, self._namespace),
            tombstones=asked.items,
            next_page_token=asked.next_token,
        )

    async def GetBreaker(self, request: pb.GetBreakerRequest, context: Context) -> pb.GetBreakerResponse:
        """Tells whether collectors may reap."""
        answer = await self._reader.breaker()
        return pb.GetBreakerResponse(
            view=view_message(answer.source, self._namespace), breaker=breaker_message(answer.value)
        )

    def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncGenerator[pb.SessionResponse]:
        """Is an agent."""
        return _there(self._sessions).serve(request_iterator)

    async def DrainAgent(self, request: pb.DrainAgentRequest, context: Context) -> pb.DrainAgentResponse:
        """Marks an agent, or removes the mark."""
        return await _there(self._operations).drain(request)

    async def ReapAgent(self, request: pb.ReapAgentRequest, context: Context) -> pb.ReapAgentResponse:
        """Has a dead agent collected."""
        return await _there(self._operations).reap(request, context.time_remaining())

    async def RestoreAgent(self, request: pb.RestoreAgentRequest, context: Context) -> pb.RestoreAgentResponse:
        """Puts back what was collected."""
        return await _there(self._operations).restore(request)


def _there(part: T | None) -> T:
    """What a server does with etcd, and one that only reads does not have."""
    if part is None:
        raise NotImplementedError
    return part


def _place(row: tuple[int, Tombstone]) -> Place:
    revision, tombstone = row
    return revision, tombstone.agent, tombstone.incarnation, tombstone.part


def _put_at(place: Any) -> tuple[int, TombstoneKey] | None:
    return None if place is None else (place[0], TombstoneKey(*place[1:]))
