"""The service `election.v1.Elections`: leaders and candidates."""
# ruff: noqa: N802 (the methods have the names of the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from election.api.elections import (
    LeaderMessages,
    candidate_message,
    election_message,
    heartbeat_from,
    view_message,
)
from election.api.resources import election_id
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.server.access.caller import current_caller
from election.server.access.roles import Role
from election.server.campaigns import Campaigns
from election.server.handlers import Context
from election.server.pages import Page
from election.server.served import ServedReader
from election.token import Token


class ElectionsServicer(services.ElectionsServicer):
    """Answers from a Reader. Its methods raise ElectionError kinds; the server makes statuses of them."""

    def __init__(self, reader: ServedReader, campaigns: Campaigns | None = None) -> None:
        self._reader = reader
        self._campaigns = campaigns
        self._namespace = reader.namespace
        self._messages = LeaderMessages(reader.namespace)

    async def GetLeader(self, request: pb.GetLeaderRequest, context: Context) -> pb.GetLeaderResponse:
        """Tells who leads."""
        answer = await self._reader.leader(election_id(request.election), linearizable=request.linearizable)
        return self._messages.answer(answer)

    async def WatchLeader(
        self, request: pb.WatchLeaderRequest, context: Context
    ) -> AsyncGenerator[pb.WatchLeaderResponse]:
        """Tells who leads now, or what has changed since a revision, and every change."""
        election, heartbeat_s = election_id(request.election), heartbeat_from(request)
        after = request.after_revision if request.HasField("after_revision") else None
        watch = self._reader.watch_leader(election, after=after, heartbeat_s=heartbeat_s)
        async with aclosing(watch) as events:
            async for event in events:
                yield self._messages.event(event)

    async def ListElections(self, request: pb.ListElectionsRequest, context: Context) -> pb.ListElectionsResponse:
        """Lists the elections that the caller may read."""
        page = Page[pb.Election](request, "elections", str)
        answer = await self._reader.elections(linearizable=request.linearizable)
        caller = current_caller.get()
        readable = [each for each in answer.value if caller.may(Role.READER, election=each.name)]
        page.fill(readable, lambda election: (election.name,), election_message)
        return pb.ListElectionsResponse(
            view=view_message(answer.source, self._namespace), elections=page.items, next_page_token=page.next_token
        )

    async def ListCandidates(self, request: pb.ListCandidatesRequest, context: Context) -> pb.ListCandidatesResponse:
        """Lists the candidates of one election."""
        page = Page[pb.Candidate](request, "candidates", int, str)
        answer = await self._reader.candidates(election_id(request.election), linearizable=request.linearizable)
        page.fill(answer.value, lambda candidate: (candidate.created, candidate.key), candidate_message)
        return pb.ListCandidatesResponse(
            view=view_message(answer.source, self._namespace), candidates=page.items, next_page_token=page.next_token
        )

    async def CheckToken(self, request: pb.CheckTokenRequest, context: Context) -> pb.CheckTokenResponse:
        """Compares a token with that of the present leader."""
        answer = await self._reader.check_token(election_id(request.election), Token.of_int(request.token))
        return pb.CheckTokenResponse(
            view=view_message(answer.source, self._namespace),
            current=answer.value.current,
            leader=self._messages.leader(answer.value.leader),
        )

    def Campaign(
        self, requests: AsyncIterator[pb.CampaignRequest], context: Context
    ) -> AsyncGenerator[pb.CampaignResponse]:
        """Stands on the caller's behalf."""
        if self._campaigns is None:
            raise NotImplementedError
        return self._campaigns.serve(requests)
