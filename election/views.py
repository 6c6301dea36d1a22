"""The read model: who leads, who stands, which agents are there, from one watch on etcd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

from election.agent_records import Agent, AgentState, StateEntry, Tombstone
from election.agent_watch import AgentWatch
from election.breaker import Breaker
from election.errors import ConfigError, ViewStale
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.listing import list_all
from election.keys import REGISTRATION, Keyspace, TombstoneKey
from election.mirror import Mirror
from election.model import Model
from election.pb.etcd.kv_pb2 import KeyValue
from election.reader import (
    MAX_AGE_S,
    NOT_REAPED,
    AgentEvent,
    AgentFilter,
    Answer,
    LeaderEvent,
    LeaderEventKind,
    Source,
    TokenCheck,
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

    def known_agent(self, id: str) -> tuple[Agent | None, int]:
        """An agent as the watch has shown it so far, and up to which revision that is complete; never ViewStale."""
        return self._mirror.model.agent(id), self._mirror.revision

    # --- questions -------------------------------------------------------------------------------------------

    def source(self) -> Source:
        """How fresh the view is; raises ViewStale when that is too old to answer from."""
        source = self._mirror.source()
        if source.age_s > self._max_age_s:
            raise ViewStale(
                f"nothing is known of etcd for {source.age_s:.1f} s (the limit is {self._max_age_s:g} s): "
                "an answer from memory might not be true any more"
            )
        return source

    async def _model(self, prefix: bytes, *, linearizable: bool) -> tuple[Model, Source]:
        """What is in memory; or what is below a prefix of etcd, read now.

        To wait until memory is as far as etcd says that it is would not do: signs of life of a watch can run ahead of
        the events in etcd before 3.4.25 and 3.5.8 (#15220).
        """
        if not linearizable:
            return self._mirror.model, self.source()
        listed = await list_all(self._client, prefix)
        return self._read(listed.kvs), Source(listed.header.cluster_id, listed.header.revision, 0.0)

    def _read(self, kvs: Iterable[KeyValue]) -> Model:
        model = Model()
        for kv in sorted(kvs, key=lambda kv: kv.mod_revision):
            model.put(self._keyspace.parse(kv.key), kv)
        return model

    async def leader(self, election: str, *, linearizable: bool = False) -> Answer[Leader | None]:
        """Who leads, from memory."""
        if (
            not linearizable and (leader := self._mirror.model.leader(election)) is not None
        ):  # so the name is a good one
            return Answer(leader, self.source())
        model, source = await self._model(self._keyspace.campaign(election), linearizable=linearizable)
        return Answer(model.leader(election), source)

    async def elections(self, *, linearizable: bool = False) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, from memory."""
        model, source = await self._model(self._keyspace.campaigns, linearizable=linearizable)
        rows = sorted(model.elections.items())
        return Answer(tuple(Election(name, len(queue), model.leader(name)) for name, queue in rows), source)

    async def candidates(self, election: str, *, linearizable: bool = False) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, from memory."""
        model, source = await self._model(self._keyspace.campaign(election), linearizable=linearizable)
        queue = model.elections.get(election, {}).values()
        return Answer(tuple(sorted(queue, key=lambda candidate: (candidate.created, candidate.key))), source)

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader: one linearizable read of etcd."""
        listed = await self._client.list(self._keyspace.campaign(election))
        leader = leader_of(Candidate.of(election, kv) for kv in listed.kvs)
        current = leader is not None and leader.token == token
        return Answer(TokenCheck(current, leader), Source(listed.header.cluster_id, listed.header.revision, 0.0))

    async def agents(
        self, chosen: AgentFilter = NOT_REAPED, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, ...]]:
        """The agents that fit, from memory."""
        model, source = await self._model(self._keyspace.agents, linearizable=linearizable)
        return Answer(tuple(agent for agent in model.agents() if chosen.takes(agent)), source)

    async def agents_by_state(self) -> Answer[Mapping[AgentState, int]]:
        """How many agents there are, from memory, at the same cost however many these are."""
        return Answer(dict(self._mirror.model.agents_by_state), self.source())

    async def agent(
        self, id: str, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent from memory, with its state's values from one linearizable read of etcd."""
        prefix = self._keyspace.states(id)
        if linearizable:
            stored, agent, source = await self._read_agent(id)
        else:
            stored = tuple((await self._client.list(prefix)).kvs)
            agent, source = self._mirror.model.agent(id), self.source()
        if agent is None:
            return Answer(None, source)
        entries = (StateEntry.of(prefix, kv) for kv in stored)
        return Answer((agent, tuple(entry for entry in entries if entry.key != REGISTRATION)), source)

    async def _read_agent(self, id: str) -> tuple[tuple[KeyValue, ...], Agent | None, Source]:
        keys = self._keyspace
        reads = [
            txn.get_prefix(keys.states(id)),
            txn.get(keys.alive(id)),
            txn.get(keys.draining(id)),
            txn.get_prefix(keys.tombstones(id)),
        ]
        answer = await self._client.txn([], reads, repeat=Repeat.SAFE)
        stored, *others = (tuple(each.response_range.kvs) for each in answer.responses)
        model = self._read(kv for kvs in (stored, *others) for kv in kvs)
        return stored, model.agent(id), Source(answer.header.cluster_id, answer.header.revision, 0.0)

    async def tombstones(self, agent: str | None = None) -> Answer[tuple[Tombstone, ...]]:
        """The tombstones of one agent or of all, the oldest reap first, by linearizable reads of etcd."""
        found: list[Tombstone] = []
        async with aclosing(self.tombstone_pages(agent)) as pages:
            async for page in pages:
                found += [tombstone for _, tombstone in page.value]
        return Answer(tuple(found), page.source)

    async def tombstone_pages(
        self, agent: str | None = None, *, after: tuple[int, TombstoneKey] | None = None
    ) -> AsyncGenerator[Answer[tuple[tuple[int, Tombstone], ...]]]:
        """The same, some at a time, with the revision of each: those after one, by revision and key.

        Of each page the values have some MiB at most; there is one page or more. Those are told that were kept at the
        revision of the source, and still are when it is their turn.
        """
        header, kept = await list_tombstones(self._client, self._keyspace, agent, self._mirror.model)
        if after is not None:
            kept = [each for each in kept if (each.revision, each.key) > after]
        source = Source(header.cluster_id, header.revision, 0.0)
        if not kept:
            yield Answer((), source)
        async with aclosing(read_tombstones(self._client, self._keyspace, kept)) as batches:
            async for batch in batches:
                yield Answer(tuple((each.revision, tombstone) for each, tombstone in batch), source)

    async def breaker(self) -> Answer[Breaker]:
        """Whether collectors may reap at present: one linearizable read of etcd."""
        found, header = await self._client.get(self._keyspace.breaker)
        return Answer(Breaker.of(found), Source(header.cluster_id, header.revision, 0.0))

    # --- watches ---------------------------------------------------------------------------------------------

    async def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        """Who leads now, or what has changed after a revision, and then every change.

        Where changes cannot be told it is a RESET: at the beginning when those since that revision are not remembered,
        and later when this view itself has missed some. A term that goes on is no reason for one: none was missed.
        Changes of its record may be told as one then.

        A HEARTBEAT has a source that is fresh enough to answer from, like every answer. A view that has not come to
        the revision waits for it, for CATCH_UP_S.

        Raises:
            ConfigError: `after` is not a revision.
            RolledBack: etcd has not come to it: its history was set back since. One that was, and has passed it since,
                cannot be told from one that was not.
            ViewStale: the view has not, or has not heard from etcd for too long.
            TooSlow: the reader lags too far behind; it can go on after the last event that it was told.
        """
        self._keyspace.campaign(election)
        if after is not None:
            await self._mirror.reach(_revision(after))
        self.source()
        async with aclosing(self._mirror.leader_events(election, after, heartbeat_s)) as events:
            async for event in events:
                if event.kind is LeaderEventKind.HEARTBEAT:
                    self.source()
                yield event

    async def watch_agents(
        self, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[AgentEvent]:
        """Every agent, one SYNCED, and then every change; with `after`, first what was reaped since that revision.

        When this view has missed changes it is told: RESET, and all that again, after the last event. When etcd's
        history was set back, nothing is told of what was reaped meanwhile.

        A view that has not come to that revision waits for it, for CATCH_UP_S.

        Raises:
            ConfigError: `after` is not a revision.
            RolledBack: etcd has not come to it: its history was set back since.
            ViewStale: the view has not, or has not heard from etcd for too long.
            TooSlow: the reader lags too far behind; it can go on after the last event that it was told.
        """
        if after is not None:
            await self._mirror.reach(_revision(after))
        self.source()
        watch = AgentWatch(self._client, self._keyspace, self._mirror, self.source, heartbeat_s)
        async with aclosing(watch.events(after)) as events:
            async for event in events:
                yield event


def _revision(after: int) -> int:
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 1 << 63:
        raise ConfigError(f"{after!r} is not a revision to go on after: it is that of an event, or 0")
    return after
