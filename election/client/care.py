"""What operators do with agents, from either side: over etcd, or through the API, with the same answers and errors."""

from __future__ import annotations

from typing import Protocol

from election.agent_control import Drained, Reaped, Remains, drain, reap, remains, undrain
from election.agent_restore import Restored, restore
from election.api.operations import drained_from, reaped_from, remains_from, restored_from
from election.api.values import seconds
from election.client.questions import ask
from election.client.servers import Servers
from election.errors import ConfigError
from election.etcd.client import EtcdClient
from election.keys import Keyspace, check_name
from election.pb.election.v1 import election_pb2 as pb
from election.token import LARGEST_REVISION


class Care(Protocol):
    """What can be done with agents; see `agent_control` and `agent_restore` for what each promises and raises."""

    async def drain(self, agent: str) -> Drained:
        """Marks an agent as one that is to take no new work."""
        ...

    async def undrain(self, agent: str) -> Drained:
        """Removes the mark."""
        ...

    async def remains(self, agent: str) -> Remains:
        """What a reap would collect."""
        ...

    async def reap(self, agent: str, *, timeout_s: float) -> Reaped:
        """Has a dead agent collected now."""
        ...

    async def restore(self, agent: str, *, incarnation: int | None = None, overwrite: bool = False) -> Restored:
        """Puts back what was collected."""
        ...


class EtcdCare:
    """Over etcd, in the name of `by`."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, *, by: str) -> None:
        self._client = client
        self._keyspace = keyspace
        self._by = by

    async def drain(self, agent: str) -> Drained:
        """Marks an agent as one that is to take no new work."""
        return await drain(self._client, self._keyspace, agent, by=self._by)

    async def undrain(self, agent: str) -> Drained:
        """Removes the mark."""
        return await undrain(self._client, self._keyspace, agent)

    async def remains(self, agent: str) -> Remains:
        """What a reap would collect."""
        return await remains(self._client, self._keyspace, agent)

    async def reap(self, agent: str, *, timeout_s: float) -> Reaped:
        """Has a dead agent collected now."""
        return await reap(self._client, self._keyspace, agent, by=self._by, timeout_s=timeout_s)

    async def restore(self, agent: str, *, incarnation: int | None = None, overwrite: bool = False) -> Restored:
        """Puts back what was collected."""
        return await restore(self._client, self._keyspace, agent, incarnation=incarnation, overwrite=overwrite)


class RemoteCare:
    """Through the API; the server knows in whose name. Made by `Client.care`.

    A server that does not answer may have done what it was asked; then the next one is asked the same. So a mark that
    is reported as older may be that of the first attempt, and AgentUnknown of a reap may mean that it was done.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def drain(self, agent: str) -> Drained:
        """Marks an agent as one that is to take no new work."""
        return await self._drain(agent, undo=False)

    async def undrain(self, agent: str) -> Drained:
        """Removes the mark."""
        return await self._drain(agent, undo=True)

    async def remains(self, agent: str) -> Remains:
        """What a reap would collect; without the agent's own record."""
        request = pb.ReapAgentRequest(id=check_name("agent", agent), validate_only=True)
        return remains_from(agent, await ask(self._servers, lambda server: server.agents.ReapAgent, request))

    async def reap(self, agent: str, *, timeout_s: float) -> Reaped:
        """Has a dead agent collected now; when the wait is cancelled, the collectors are asked no longer."""
        try:
            request = pb.ReapAgentRequest(id=check_name("agent", agent), timeout=seconds(timeout_s))
        except ValueError as error:
            raise ConfigError(f"{timeout_s:g} s is not a time to wait: {error}") from None
        answer = await ask(self._servers, lambda server: server.agents.ReapAgent, request, takes_s=timeout_s)
        return reaped_from(agent, answer)

    async def restore(self, agent: str, *, incarnation: int | None = None, overwrite: bool = False) -> Restored:
        """Puts back what was collected."""
        if incarnation is not None and not 0 <= incarnation <= LARGEST_REVISION:
            raise ConfigError(f"{incarnation} is not an incarnation")
        request = pb.RestoreAgentRequest(id=check_name("agent", agent), incarnation=incarnation, overwrite=overwrite)
        return restored_from(agent, await ask(self._servers, lambda server: server.agents.RestoreAgent, request))

    async def _drain(self, agent: str, *, undo: bool) -> Drained:
        request = pb.DrainAgentRequest(id=check_name("agent", agent), undo=undo)
        return drained_from(agent, await ask(self._servers, lambda server: server.agents.DrainAgent, request))
