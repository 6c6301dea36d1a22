"""Watches through the servers: each goes on at another one where it was, and tells nothing twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.duration_pb2 import Duration

from election.api.agents import agent_event_from
from election.api.elections import leader_event_from
from election.api.values import seconds
from election.client.questions import request_of
from election.client.servers import Servers
from election.client.told import ToldAgents, ToldLeader
from election.errors import RolledBack
from election.pb.election.v1 import election_pb2 as pb
from election.reader import AgentEvent, AgentEventKind, LeaderEvent, LeaderEventKind

HEARTBEAT_S = 5.0
"""How often a server has to say on a silent watch that it is there, and that its view is fresh.

One that is silent for twice as long is left for the next one. A watch whose caller asks for heartbeats less often than
this tells them as often all the same.
"""


async def leader_events(
    servers: Servers, election: str, *, after: int | None, heartbeat_s: float | None
) -> AsyncGenerator[LeaderEvent]:
    """What `Client.watch_leader` tells."""
    told = ToldLeader(after)
    while True:
        streams = servers.streams(
            lambda server: server.elections.WatchLeader,
            lambda: request_of(
                pb.WatchLeaderRequest,
                election=election,
                after_revision=told.after,
                heartbeat=_heartbeat(heartbeat_s),
            ),
            silent_s=2 * _beat_s(heartbeat_s),
        )
        try:
            async with aclosing(streams):
                async for message in streams:
                    event = message and told.news(leader_event_from(message))
                    if event and (heartbeat_s is not None or event.kind is not LeaderEventKind.HEARTBEAT):
                        yield event
        except RolledBack:
            if not told.forget_revisions():
                raise


async def agent_events(servers: Servers, *, after: int | None, heartbeat_s: float | None) -> AsyncGenerator[AgentEvent]:
    """What `Client.watch_agents` tells."""
    told = ToldAgents(after)
    while True:
        streams = servers.streams(
            lambda server: server.agents.WatchAgents,
            lambda: request_of(pb.WatchAgentsRequest, after_revision=told.after, heartbeat=_heartbeat(heartbeat_s)),
            silent_s=2 * _beat_s(heartbeat_s),
        )
        try:
            async with aclosing(streams):
                async for message in streams:
                    if message is None:
                        told.begin()
                        continue
                    for event in told.news(agent_event_from(message)):
                        if heartbeat_s is not None or event.kind is not AgentEventKind.HEARTBEAT:
                            yield event
        except RolledBack:
            if not told.forget_revisions():
                raise


def _beat_s(asked_s: float | None) -> float:
    """The time between two heartbeats that the server is asked for."""
    return min(HEARTBEAT_S, asked_s or HEARTBEAT_S)


def _heartbeat(asked_s: float | None) -> Duration:
    """How often the server is to give a sign of life: it is asked for one though nobody wants to be told."""
    return seconds(_beat_s(asked_s))
