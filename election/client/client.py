"""The read model over gRPC: a `Reader` that asks one of several servers of the API."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from election.agent_records import Agent, StateEntry, Tombstone
from election.api.agents import agent_from, breaker_from, entry_from, filter_message, tombstone_from
from election.api.elections import candidate_from, election_from, leader_from, source_from
from election.api.statuses import error_of
from election.bearer import Bearer, check_private
from election.breaker import Breaker
from election.client.candidate import RemoteCandidate
from election.client.care import RemoteCare
from election.client.conversation import Conversation
from election.client.questions import ask, ask_pages, request_of, source_in, source_of
from election.client.servers import Servers
from election.client.session import Session
from election.client.watches import agent_events, leader_events
from election.clock import BootClock, Clock
from election.config import AgentConfig, CandidateConfig, EtcdConfig, TlsConfig
from election.errors import ConfigError
from election.pb.election.v1 import election_pb2 as pb
from election.reader import NOT_REAPED, AgentEvent, AgentFilter, Answer, LeaderEvent, TokenCheck
from election.records import Candidate, Election, Leader
from election.token import Token
from election.watchdog import Watchdog

CALL_TIMEOUT_S = 5.0
"""What one question may take on all servers together; also what a watch may take to begin."""

ATTEMPT_TIMEOUT_S = 2.0
"""After this long without an answer the next server is asked."""


def dial(
    servers: str | Iterable[str],
    *,
    tls: TlsConfig | None = None,
    token: str | Path | None = None,
    insecure: bool = False,
) -> Client:
    """A client for `async with`; nothing is sent before that.

    `servers` is one or several HOST:PORT, also as one text with commas. A scheme of https asks for TLS with the
    system's roots where no `tls` is given. `token` is a bearer token, or the file that holds one, which is read again
    when it changes. It goes over plain text to this machine alone, unless `insecure` is said.

    Raises:
        ConfigError: for addresses, files and tokens that cannot be used.
    """
    return Client(servers, tls=tls, token=token, insecure=insecure)


class Client:
    """A Reader over the gRPC API of several servers; made by `dial`. Use it inside `async with`, in one event loop.

    All methods raise ElectionError kinds and nothing else but CancelledError: ServerUnavailable when no server
    answered within `call_timeout_s` seconds, and otherwise what the server refused the call for. Leaving the block
    cancels what still runs.

    A watch goes on at another server when its own has ended or is stale, and tells nothing twice; it raises
    ServerUnavailable rather than be blind for more than MAX_AGE_S seconds. A server that is behind what was told
    already is not listened to before it has caught up.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        *,
        tls: TlsConfig | None = None,
        token: str | Path | None = None,
        insecure: bool = False,
        call_timeout_s: float = CALL_TIMEOUT_S,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        written = servers.split(",") if isinstance(servers, str) else list(servers)
        if not any(text.strip() for text in written):
            raise ConfigError("no server is given: name at least one HOST:PORT")
        parsed = EtcdConfig.parse(written, tls=tls)  # both kinds of addresses are written the same way
        self.addresses = parsed.endpoints
        self._watchdog = Watchdog()
        if token is not None and not insecure:
            check_private(parsed.endpoints, parsed.tls)
        self._servers = Servers(
            parsed.endpoints,
            parsed.tls,
            bearer=None if token is None else Bearer(token, clock or BootClock()),
            call_timeout_s=call_timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            clock=clock,
            rng=rng,
        )

    async def __aenter__(self) -> Self:
        """Opens the channels; a server that cannot be reached shows at the first call."""
        await self._servers.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._servers.__aexit__(kind, error, trace)

    @property
    def address(self) -> str:
        """The address of the server that is asked at present."""
        return self._servers.address

    def candidate(
        self,
        election: str,
        *,
        id: str,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        ttl_s: int = CandidateConfig().ttl_s,
    ) -> RemoteCandidate:
        """A candidate that stands through the servers, without etcd; use it inside the client's block.

        Raises:
            ConfigError: a name or a TTL that cannot be used.
        """
        return RemoteCandidate(
            self._servers,
            lambda: Conversation(self._servers, lambda server: server.elections.Campaign),
            election,
            id=id,
            address=address,
            labels=labels,
            priority=priority,
            ttl_s=ttl_s,
            watchdog=self._watchdog,
        )

    async def namespace(self) -> str:
        """The namespace that the servers serve."""
        request = pb.ListElectionsRequest(page_size=1)
        answer = await ask(self._servers, lambda server: server.elections.ListElections, request)
        return answer.view.namespace

    # --- questions -------------------------------------------------------------------------------------------

    async def leader(self, election: str, *, linearizable: bool = False) -> Answer[Leader | None]:
        """Who leads; None when nobody does."""
        request = request_of(pb.GetLeaderRequest, election=election, linearizable=linearizable)
        answer = await ask(self._servers, lambda server: server.elections.GetLeader, request)
        return Answer(_leader(answer), source_from(answer.view))

    async def elections(self, *, linearizable: bool = False) -> Answer[tuple[Election, ...]]:
        """The elections that somebody stands for, by name."""
        request = pb.ListElectionsRequest(linearizable=linearizable)
        pages = await ask_pages(self._servers, lambda server: server.elections.ListElections, request)
        return Answer(tuple(election_from(each) for page in pages for each in page.elections), source_of(pages))

    async def candidates(self, election: str, *, linearizable: bool = False) -> Answer[tuple[Candidate, ...]]:
        """The candidates of one election, oldest first."""
        request = request_of(pb.ListCandidatesRequest, election=election, linearizable=linearizable)
        pages = await ask_pages(self._servers, lambda server: server.elections.ListCandidates, request)
        found = (candidate_from(each) for page in pages for each in page.candidates)
        return Answer(tuple(found), source_of(pages))

    async def check_token(self, election: str, token: Token) -> Answer[TokenCheck]:
        """Whether the token is that of the present leader; the server asks etcd."""
        request = request_of(pb.CheckTokenRequest, election=election, token=int(token))
        answer = await ask(self._servers, lambda server: server.elections.CheckToken, request)
        return Answer(TokenCheck(answer.current, _leader(answer)), source_from(answer.view))

    async def agents(
        self, chosen: AgentFilter = NOT_REAPED, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, ...]]:
        """The agents that fit, by id."""
        if not chosen.states:  # a request that names no state asks for those that are not reaped
            return Answer((), (await self.agents(linearizable=linearizable)).source)
        request = request_of(filter_message, chosen=chosen)
        request.linearizable = linearizable
        pages = await ask_pages(self._servers, lambda server: server.agents.ListAgents, request)
        found = (agent_from(each) for page in pages for each in page.agents)
        return Answer(tuple(found), source_of(pages))

    async def agent(
        self, id: str, *, linearizable: bool = False
    ) -> Answer[tuple[Agent, tuple[StateEntry, ...]] | None]:
        """One agent and its state; None when it is not known."""
        request = request_of(pb.GetAgentRequest, id=id, linearizable=linearizable)
        try:
            answer = await self._servers.ask(lambda server: server.agents.GetAgent, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise error_of(error) from None
            return Answer(None, source_in(error))
        state = tuple(map(entry_from, answer.state))
        return Answer((agent_from(answer.agent), state), source_from(answer.view))

    async def tombstones(self, agent: str | None = None) -> Answer[tuple[Tombstone, ...]]:
        """The tombstones of one agent or of all, the oldest reap first; the server asks etcd."""
        request = request_of(pb.ListTombstonesRequest, agent=_named(agent))
        pages = await ask_pages(self._servers, lambda server: server.agents.ListTombstones, request)
        found = (tombstone_from(each) for page in pages for each in page.tombstones)
        return Answer(tuple(found), source_of(pages))

    async def breaker(self) -> Answer[Breaker]:
        """Whether collectors may reap at present; the server asks etcd."""
        answer = await ask(self._servers, lambda server: server.agents.GetBreaker, pb.GetBreakerRequest())
        return Answer(breaker_from(answer.breaker), source_from(answer.view))

    # --- watches ---------------------------------------------------------------------------------------------

    def watch_leader(
        self, election: str, *, after: int | None = None, heartbeat_s: float | None = None
    ) -> AsyncGenerator[LeaderEvent]:
        """Who leads now (ELECTED or VACATED), or what has changed since a revision, and then every change.

        After a break it goes on where it was, and tells what happened meanwhile. Where the server does not know that
        any more it is told as a RESET, unless the same term goes on. So it is when etcd's history is set back.
        """
        return leader_events(self._servers, election, after=after, heartbeat_s=heartbeat_s)

    def watch_agents(self, *, after: int | None = None, heartbeat_s: float | None = None) -> AsyncGenerator[AgentEvent]:
        """Every agent (PRESENT), one SYNCED, and then every change; with `after`, first what was reaped since.

        After a break it goes on where it was: what was reaped meanwhile is told from the tombstones, and other changes
        are found by comparing, where several of one agent are told as one. So it is when the server itself has missed
        changes; a RESET is never told. An agent that is gone, and that no tombstone tells of any more, is told as
        REAPED with a tombstone that has no `reaped_at`. So it is when etcd's history is set back during a watch, which
        begins anew then, and compares.
        """
        return agent_events(self._servers, after=after, heartbeat_s=heartbeat_s)

    # --- agents ----------------------------------------------------------------------------------------------

    def session(
        self,
        id: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        config: AgentConfig | None = None,
        takeover: bool = False,
    ) -> Session:
        """An agent, which is registered inside its `async with` block, through whichever server answers.

        With `takeover` it begins by ending the life of another holder of its id, if there is one.

        Raises:
            ConfigError: a name that is not valid, a record of more than 4 KiB, or a TTL that a session cannot have.
        """
        return Session(
            self._servers,
            lambda: Conversation(self._servers, lambda server: server.agents.Session),
            id,
            address=address,
            labels=labels,
            config=config,
            takeover=takeover,
        )

    @property
    def care(self) -> RemoteCare:
        """What operators do with agents: drain, reap, restore."""
        return RemoteCare(self._servers)


def _named(agent: str | None) -> str:
    if agent == "":
        raise ConfigError("agent '' is not a valid name: leave it out for all agents")
    return agent or ""


def _leader(answer: pb.GetLeaderResponse | pb.CheckTokenResponse) -> Leader | None:
    return leader_from(answer.leader) if answer.HasField("leader") else None
