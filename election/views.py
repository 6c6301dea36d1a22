"""The read model: who leads, who stands, which agents are there, from one watch on etcd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

from election.agent_records import Agent, AgentState, StateEntry, Tombstone
from election.breaker import Breaker
from election.errors import ConfigError, ViewStale
from election.etcd.client import EtcdClient
from election.keys import REGISTRATION, Keyspace
from election.mirror import Mirror
from election.model import Kept
from election.reader import (
    MAX_AGE_S,
    NOT_REAPED,
    AgentEvent,
    AgentEventKind,
    AgentFilter,
    Answer,
    LeaderEvent,
    Source,
    TokenCheck,
    complete_up_to,
    reaped_event,
)
from election.records import Candidate, Election, Leader, leader_of
from election.token import Token
from election.tombstones import list_tombstones, read_tombstones


class View:
    """A Reader over etcd that keeps what it watches in memory; one watch, however many ask.

    `prefix` bounds what is watched (all of the namespace where it is None). Use inside `async with`: entering
    waits for the first list, and raises EtcdError when there is none.
    """

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        *,
        prefix: bytes | None = None,
        max_age_s: float = MAX_AGE_S,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._keyspace = keyspace
        self._max_age_s = max_age_s
        self._mirror = Mirror(client, keyspace, prefix or keyspace.root, rng or random.Random())
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._mirror.follow(), name="view")
        listed = asyncio.create_task(self._mirror.listed.wait())
        try:
            await asyncio.wait({self._following, listed}, return_when=asyncio.FIRST_COMPLETED)
            if self._following.done():
                await self._following
        except BaseException:
            self._following.cancel()
            raise
        finally:
            listed.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
            if not self._following.cancelled():
                self._following.result()

    @property
    def namespace(self) -> str:
        """The namespace that it reads."""
        return self._keyspace.namespace

    # --- questions -------------------------------------------------------------------------------------------

    def source(self) -> Source:
        """How fresh the view is; raises ViewStale when that is too old to answer from."""
        source = self._mirror.source()
        if source.age_s > self._max_age_s:
            raise ViewStale(
                f"etcd has not been heard for {source.age_s:.1f} s (the limit is {self._max_age_s:g} s): "
                "an answer from memory might not be true any more"
            )
        return source

    async def leader(self, election: str) -> Answer[Leader | None]:
        """Who leads, from memory."""
        self._keyspace.campaign(election)
        return Answer(self._mirror.model.leader(election), self.source())

    async def elections(self) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, from memory."""
        rows = sorted(self._mirror.model.elections.items())
        return Answer(
            tuple(Election(name, len(queue), leader_of(queue.values())) for name, queue in rows), self.source()
        )

    async def candidates(self, election: str) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, from memory."""
        self._keyspace.campaign(election)
        queue = self._mirror.model.elections.get(election, {}).values()
        return Answer(tuple(sorted(queue, key=lambda candidate: candidate.created)), self.source())

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader: one linearizable read of etcd."""
        listed = await self._client.list(self._keyspace.campaign(election))
        leader = leader_of(Candidate.of(election, kv) for kv in listed.kvs)
        current = leader is not None and leader.token == token
        return Answer(TokenCheck(current, leader), Source(listed.header.cluster_id, listed.header.revision, 0.0))

    async def agents(self, chosen: AgentFilter = NOT_REAPED) -> Answer[tuple[Agent, ...]]:
        """The agents that fit, from memory."""
        return Answer(tuple(agent for agent in self._mirror.model.agents() if chosen.takes(agent)), self.source())

    async def agents_by_state(self) -> Answer[Mapping[AgentState, int]]:
        """How many agents there are, from memory, at the same cost however many these are."""
        return Answer(dict(self._mirror.model.agents_by_state), self.source())

    async def agent(self, id: str) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent from memory, with its state's values from one linearizable read of etcd."""
        prefix = self._keyspace.states(id)
        listed = await self._client.list(prefix)
        agent = self._mirror.model.agent(id)
        if agent is None:
            return Answer(None, self.source())
        entries = (StateEntry.of(prefix, kv) for kv in listed.kvs)
        return Answer((agent, tuple(entry for entry in entries if entry.key != REGISTRATION)), self.source())

    async def tombstones(self, agent: str | None = None) -> Answer[tuple[Tombstone, ...]]:
        """The tombstones of one agent or of all, the oldest reap first, by linearizable reads of etcd."""
        found: list[Tombstone] = []
        async with aclosing(self.tombstone_pages(agent)) as pages:
            async for page in pages:
                found += page.value
        return Answer(tuple(found), page.source)

    async def tombstone_pages(self, agent: str | None = None) -> AsyncGenerator[Answer[tuple[Tombstone, ...]]]:
        """The same, some at a time: of each page the values have some MiB at most. There is one page or more.

        Those are told that were kept at the revision of the source, and still are when it is their turn.
        """
        header, kept = await list_tombstones(self._client, self._keyspace, agent, self._mirror.model)
        source = Source(header.cluster_id, header.revision, 0.0)
        if not kept:
            yield Answer((), source)
        async with aclosing(read_tombstones(self._client, self._keyspace, kept)) as batches:
            async for batch in batches:
                yield Answer(tuple(tombstone for _, tombstone in batch), source)

    async def breaker(self) -> Answer[Breaker]:
        """Whether collectors may reap at present: one linearizable read of etcd."""
        found, header = await self._client.get(self._keyspace.breaker)
        return Answer(Breaker.of(found), Source(header.cluster_id, header.revision, 0.0))

    # --- watches ---------------------------------------------------------------------------------------------

    async def watch_leader(self, election: str) -> AsyncGenerator[LeaderEvent]:
        """Who leads now, and then every change; raises TooSlow for a reader that lags too far behind."""
        self._keyspace.campaign(election)
        self.source()
        async with aclosing(self._mirror.leader_events(election)) as events:
            yield replace(await anext(events), source=self.source())
            async for event in events:
                yield replace(event, source=self._mirror.source(event.source.revision))

    async def watch_agents(self, *, after: int | None = None) -> AsyncGenerator[AgentEvent]:
        """Every agent, one SYNCED, and then every change; with `after`, first what was reaped since that revision.

        A view that has not come to that revision waits for it, for CATCH_UP_S.

        Raises:
            ConfigError: `after` is not a revision.
            RolledBack: etcd has not come to it: its history was set back since.
            ViewStale: the view has not, or has not heard from etcd for too long.
            TooSlow: the reader lags too far behind; it can go on after the last event that it was told.
        """
        if after is not None:
            await self._mirror.reach(_revision(after))
        source = self.source()
        async with aclosing(self._mirror.agent_events()) as events:
            await anext(events)  # what happened last, before this watch began
            # Nothing is awaited between the registration and the end of these lines: they are of one revision.
            present = {agent.id: agent for agent in self._mirror.model.present()}
            missed = () if after is None else self._mirror.model.kept_after(after)
            async with aclosing(self._reaped(missed, present, source)) as reaped:
                async for event in reaped:
                    yield event
            source = replace(source, revision=max(source.revision, after or 0))
            for agent in present.values():
                yield AgentEvent(AgentEventKind.PRESENT, agent, source)
            yield AgentEvent(AgentEventKind.SYNCED, None, source)
            async for change in events:
                if change is not None:
                    yield change

    async def _reaped(
        self, missed: Sequence[Kept], present: Mapping[str, Agent], source: Source
    ) -> AsyncGenerator[AgentEvent]:
        """What was reaped before a watch began, in order, from the tombstones."""
        complete = {kept.key: revision for revision, kept in complete_up_to((kept.revision, kept) for kept in missed)}
        async with aclosing(read_tombstones(self._client, self._keyspace, missed)) as batches:
            async for batch in batches:
                for kept, tombstone in batch:
                    at = replace(source, revision=complete[kept.key])
                    yield reaped_event(tombstone, None, present.get(tombstone.agent), at)


def _revision(after: int) -> int:
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 1 << 63:
        raise ConfigError(f"{after!r} is not a revision to go on after: it is that of an event, or 0")
    return after
