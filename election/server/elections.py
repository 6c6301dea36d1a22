"""The service `election.v1.Elections`: leaders and candidates."""
# ruff: noqa: N802 (the methods have the names of the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from election.messages import (
    candidate_message,
    election_message,
    leader_event_message,
    leader_message,
    view_message,
)
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.records import Leader
from election.resources import election_id
from election.server.access.caller import current_caller
from election.server.access.roles import Role
from election.server.calls import Context
from election.server.campaigns import Campaigns
from election.server.served import ServedReader
from election.token import Token


class ElectionsServicer(services.ElectionsServicer):
    """Answers from a Reader. Its methods raise ElectionError kinds; the server makes statuses of them."""

    def __init__(self, reader: ServedReader, campaigns: Campaigns | None = None) -> None:
        self._reader = reader
        self._campaigns = campaigns
        self._namespace = reader.namespace

    async def GetLeader(self, request: pb.GetLeaderRequest, context: Context) -> pb.GetLeaderResponse:
        """Tells who leads."""
        answer = await self._reader.leader(election_id(request.election))
        return pb.GetLeaderResponse(view=view_message(answer.source, self._namespace), leader=_leader(answer.value))

    async def WatchLeader(
        self, request: pb.WatchLeaderRequest, context: Context
    ) -> AsyncGenerator[pb.WatchLeaderResponse]:
        """Tells who leads now, and every change."""
        async with aclosing(self._reader.watch_leader(election_id(request.election))) as events:
            async for event in events:
                yield leader_event_message(event, self._namespace)

    async def ListElections(self, request: pb.ListElectionsRequest, context: Context) -> pb.ListElectionsResponse:
        """Lists the elections that the caller may read."""
        answer = await self._reader.elections()
        caller = current_caller.get()
        readable = (each for each in answer.value if caller.may(Role.READER, election=each.name))
        return pb.ListElectionsResponse(
            view=view_message(answer.source, self._namespace), elections=map(election_message, readable)
        )

    async def ListCandidates(self, request: pb.ListCandidatesRequest, context: Context) -> pb.ListCandidatesResponse:
        """Lists the candidates of one election."""
        answer = await self._reader.candidates(election_id(request.election))
        return pb.ListCandidatesResponse(
            view=view_message(answer.source, self._namespace), candidates=map(candidate_message, answer.value)
        )

    async def CheckToken(self, request: pb.CheckTokenRequest, context: Context) -> pb.CheckTokenResponse:
        """Compares a token with that of the present leader."""
        answer = await self._reader.check_token(election_id(request.election), Token.of_int(request.token))
        return pb.CheckTokenResponse(
            view=view_message(answer.source, self._namespace),
            current=answer.value.current,
            leader=_leader(answer.value.leader),
        )

    def Campaign(
        self, requests: AsyncIterator[pb.CampaignRequest], context: Context
    ) -> AsyncGenerator[pb.CampaignResponse]:
        """Stands on the caller's behalf."""
        if self._campaigns is None:
            raise NotImplementedError
        return self._campaigns.serve(requests)


def _leader(leader: Leader | None) -> pb.Leader | None:
    return None if leader is None else leader_message(leader)
