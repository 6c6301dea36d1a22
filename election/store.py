"""The front door: one connection to etcd and one namespace, from which everything else is made."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from election.agents import Agent
from election.candidate import Candidate
from election.clock import Clock
from election.collector import Collector
from election.config import (
    DEFAULT_ENDPOINT,
    DEFAULT_NAMESPACE,
    AgentConfig,
    CandidateConfig,
    CollectorConfig,
    EtcdConfig,
    TlsConfig,
    default_id,
)
from election.epoch import EpochGuard
from election.errors import ConfigError
from election.etcd.client import EtcdClient
from election.etcd.transport import Transport
from election.highwater import AsyncHighWater, FileHighWater, asynchronous
from election.keys import Keyspace
from election.roster import Roster
from election.views import View
from election.watchdog import Watchdog


class Store:
    """A connection to etcd, used for one namespace; made by `connect`.

    Use it inside `async with`, in one event loop. Any number of candidates, agents, collectors and views share
    the connection; end them before it. Several stores in one process do not know of each other.
    """

    def __init__(
        self,
        config: EtcdConfig,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        state_dir: Path | None = None,
        clock: Clock | None = None,
        transport: Transport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.keyspace = Keyspace(namespace)
        self.config = config
        self._state_dir = state_dir
        self._clock = clock
        self._transport = transport
        self._rng = rng or random.Random()
        self._client: EtcdClient | None = None
        self._guard: EpochGuard | None = None
        self._roster: Roster | None = None
        self._watchdog = Watchdog()

    async def __aenter__(self) -> Self:
        """Opens the channels; a member that cannot be reached shows at the first call."""
        self._client = EtcdClient(self.config, clock=self._clock, transport=self._transport)
        self._guard = EpochGuard(self._client, self.keyspace, memory=_memory(self._state_dir))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self.client, None
        roster, self._roster = self._roster, None
        try:
            if roster is not None:
                await roster.close()
        finally:
            await client.close()

    @property
    def client(self) -> EtcdClient:
        """The etcd client, for reads and transactions of your own."""
        if self._client is None:
            raise RuntimeError("the store is not open: use it inside `async with`")
        return self._client

    def candidate(
        self,
        election: str,
        *,
        id: str | None = None,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        config: CandidateConfig | None = None,
    ) -> Candidate:
        """A candidate for an election; `id` names it to people, `address` says where it can be reached.

        Without an `id`, the host's name and the process id are its name.

        Raises:
            ConfigError: a name that is not valid, or a record of more than 4 KiB.
        """
        return Candidate(
            self.client,
            self.keyspace,
            election,
            id=id or default_id(),
            address=address,
            labels=labels,
            priority=priority,
            config=config,
            guard=self._guard,
            watchdog=self._watchdog,
            rng=self._rng,
        )

    def agent(
        self,
        id: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        config: AgentConfig | None = None,
        takeover: bool = False,
    ) -> Agent:
        """An agent, which is registered inside its `async with` block; all of a store are kept alive together.

        With `takeover` it begins by ending the life of another holder of its id, if there is one.

        Raises:
            ConfigError: a name that is not valid, or a record of more than 4 KiB.
        """
        if self._roster is None:
            self._roster = Roster(self.client, rng=self._rng)
        return Agent(
            self.client,
            self.keyspace,
            id,
            address=address,
            labels=labels,
            config=config,
            takeover=takeover,
            roster=self._roster,
        )

    def collector(
        self, *, id: str, config: CollectorConfig | None = None, candidate_config: CandidateConfig | None = None
    ) -> Collector:
        """A collector of stale agents; of all collectors of a namespace, one works."""
        return Collector(
            self.client,
            self.keyspace,
            id=id,
            config=config,
            candidate_config=candidate_config,
            guard=self._guard,
            rng=self._rng,
        )

    def view(self, prefix: bytes | None = None) -> View:
        """The read model, of the whole namespace or of what is below a prefix of it."""
        return View(self.client, self.keyspace, prefix=prefix, rng=self._rng)


def _memory(state_dir: Path | None) -> AsyncHighWater | None:
    if state_dir is None:
        return None
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the state folder {state_dir} cannot be made: {error.strerror}") from None
    return asynchronous(FileHighWater(state_dir / "highest.json"))


def connect(
    endpoints: str | Iterable[str] = DEFAULT_ENDPOINT,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    tls: TlsConfig | None = None,
    user: str | None = None,
    state_dir: Path | None = None,
) -> Store:
    """A store for `async with`; nothing is sent before that.

    `endpoints` is one or several HOST:PORT, also as one text with commas; `user` is NAME:PASSWORD. `state_dir` is a
    folder of this machine, made if need be, where the highest token that was seen outlives the process: with it, a
    candidate notices that etcd's history was set back even when nobody else lives who could know.

    Raises:
        ConfigError: for endpoints, files or names that cannot be used.
    """
    return Store(EtcdConfig.parse(endpoints, tls=tls, user=user), namespace, state_dir=state_dir)
