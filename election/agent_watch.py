"""A watch of agents over a mirror: who is there, what was reaped meanwhile, and every change, across its gaps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from election.agent_records import Agent
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.mirror import Mirror, in_step
from election.model import Kept
from election.reader import AgentEvent, AgentEventKind, Source, complete_up_to, reaped_event
from election.tombstones import read_tombstones


@dataclass(frozen=True, slots=True)
class AgentWatch:
    """What one watch is made of. `fresh` raises ViewStale where the mirror is too old to say that nothing happens."""

    client: EtcdClient
    keyspace: Keyspace
    mirror: Mirror
    fresh: Callable[[], Source]
    heartbeat_s: float | None

    async def events(self, after: int | None) -> AsyncGenerator[AgentEvent]:
        """What is told after a revision that the mirror has reached, or of the present alone.

        When the mirror has missed changes: RESET, and the same again after what was told. When etcd's history was set
        back there is no such revision, and nothing is told of what was reaped meanwhile.

        Raises:
            TooSlow: the reader lags too far behind.
            EtcdError: the tombstones of what was reaped meanwhile could not be read.
        """
        times_set_back, is_reset = self.mirror.times_set_back, False
        while True:
            if self.mirror.times_set_back != times_set_back:
                times_set_back, after = self.mirror.times_set_back, None
            async with aclosing(self._unbroken(after, is_reset)) as events:
                async for event in events:
                    after = event.source.revision
                    yield event
            is_reset = True

    async def _unbroken(self, after: int | None, is_reset: bool) -> AsyncGenerator[AgentEvent]:
        """Ends when the mirror has missed changes."""
        with self.mirror.agent_events() as changes:
            # Nothing is awaited between the registration and the end of these lines: they are of one revision.
            present = {agent.id: agent for agent in self.mirror.model.present()}
            missed = () if after is None else self.mirror.model.kept_after(after)
            revision, as_of_s = self.mirror.revision, self.mirror.as_of_s
            if is_reset:
                yield AgentEvent(AgentEventKind.RESET, None, self.mirror.source(after))
            async with aclosing(self._reaped(missed, present, as_of_s)) as reaped:
                async for event in reaped:
                    yield event
            begun = max(revision, after or 0)

            def source() -> Source:
                return self.mirror.source(begun, as_of_s if changes.is_behind else None)

            for agent in present.values():
                yield AgentEvent(AgentEventKind.PRESENT, agent, source())
            yield AgentEvent(AgentEventKind.SYNCED, None, source())
            while True:
                if not await changes.wait(in_step(self.heartbeat_s)):
                    now = self.fresh()
                    yield AgentEvent(AgentEventKind.HEARTBEAT, None, replace(now, revision=max(now.revision, begun)))
                elif (change := changes.next()) is None or change.event.kind is AgentEventKind.RESET:
                    return
                else:
                    yield self.mirror.dated_agent(change, is_newest=not changes.is_behind)

    async def _reaped(
        self, missed: Sequence[Kept], present: Mapping[str, Agent], as_of_s: float
    ) -> AsyncGenerator[AgentEvent]:
        """What was reaped before the watch began, in order, from the tombstones; each as old as the watch is."""
        complete = {kept.key: revision for revision, kept in complete_up_to((kept.revision, kept) for kept in missed)}
        async with aclosing(read_tombstones(self.client, self.keyspace, missed)) as batches:
            async for batch in batches:
                for kept, tombstone in batch:
                    at = self.mirror.source(complete[kept.key], as_of_s)
                    yield reaped_event(tombstone, None, present.get(tombstone.agent), at)
