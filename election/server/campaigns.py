"""The call `Elections.Campaign`: candidates that stand for callers, and outlive their streams where they must."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from google.protobuf.duration_pb2 import Duration

from election.api.elections import view_message
from election.api.resources import election_id
from election.config import CandidateConfig
from election.errors import BadField, ElectionError, ShuttingDown, ViewStale
from election.keys import COLLECTOR_ELECTION
from election.pb.election.v1 import election_pb2 as pb
from election.server.access.caller import current_caller
from election.server.access.roles import Role
from election.server.handlers import first_of
from election.server.served import ServedReader
from election.server.standing import Standing
from election.store import Store

logger = logging.getLogger("election")

LONGEST_TTL_S = 60
"""A caller may believe for almost as long that it leads, and for as long a server that ends has to wait for it."""


class Campaigns:
    """The candidates of all callers of one server."""

    def __init__(self, store: Store, reader: ServedReader) -> None:
        self._store = store
        self._reader = reader
        self._running: dict[asyncio.Task[None], Standing] = {}
        self._closed = False

    async def serve(self, requests: AsyncIterator[pb.CampaignRequest]) -> AsyncGenerator[pb.CampaignResponse]:
        """One call. When it ends before the caller has resigned, its candidate is let go when that is safe.

        Raises:
            BadField: the caller's messages cannot be.
            CallerSilent: they have been missing for a TTL.
            ShuttingDown: the server is about to end; the key is released.
            ElectionError: as `Candidate.lead`.
        """
        first = await _first(requests)
        if self._closed:
            raise ShuttingDown("the server is shutting down")
        standing = self._begin(first)
        running = asyncio.create_task(standing.run(), name="campaign")
        self._running[running] = standing
        running.add_done_callback(self._ended)
        reading = asyncio.create_task(_read(requests, standing))
        reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        reading.add_done_callback(lambda _: standing.leave())
        try:
            async for answer in standing.answers():
                with suppress(ViewStale):
                    answer.view.CopyFrom(view_message(self._reader.source(), self._reader.namespace))
                yield answer
            if reading.done() and not reading.cancelled():
                reading.result()
            await running
            if self._closed:
                raise ShuttingDown("the server is shutting down")
        finally:
            reading.cancel()
            standing.leave()

    async def close(self) -> None:
        """Asks all callers to stop, and returns when all keys are released; new calls are not taken any more."""
        self._closed = True
        for standing in self._running.values():
            standing.leave()
        while self._running:
            await asyncio.wait(self._running)

    def _begin(self, first: pb.CampaignRequest) -> Standing:
        stand = first.stand
        election = election_id(stand.election, field="stand.election")
        if election == COLLECTOR_ELECTION:
            raise BadField(
                f"{election!r} is the election of the collectors: nobody else stands for it", field="stand.election"
            )
        current_caller.get().require(Role.CANDIDATE, election=election)
        config = CandidateConfig(ttl_s=_ttl_s(stand.ttl) if stand.HasField("ttl") else CandidateConfig().ttl_s)
        if not stand.id:
            raise BadField("the candidate needs a name of its own: say `id`", field="stand.id")
        candidate = self._store.candidate(
            election,
            id=stand.id,
            address=stand.address,
            labels=stand.labels,
            priority=stand.priority,
            config=config,
        )
        return Standing(candidate, self._store.keyspace, config.ttl_s, first.sequence)

    def _ended(self, running: asyncio.Task[None]) -> None:
        del self._running[running]
        if not running.cancelled() and (error := running.exception()) and not isinstance(error, ElectionError):
            logger.error("a campaign of a caller failed", exc_info=error)


async def _first(requests: AsyncIterator[pb.CampaignRequest]) -> pb.CampaignRequest:
    first: pb.CampaignRequest | None = await first_of(requests)
    if first is None or first.WhichOneof("action") != "stand":
        raise BadField("the first message of a call has to be `stand`", field="stand")
    return first


async def _read(requests: AsyncIterator[pb.CampaignRequest], standing: Standing) -> None:
    """Takes the caller's messages. Their end says nothing: that of a broken stream looks the same."""
    async for request in requests:
        standing.take(request)


def _ttl_s(asked: Duration) -> int:
    if asked.nanos or not 0 < asked.seconds <= LONGEST_TTL_S:
        raise BadField(f"the TTL must be whole seconds, at most {LONGEST_TTL_S}", field="stand.ttl")
    return asked.seconds
