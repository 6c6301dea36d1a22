"""What operators do with agents through the API: let one drain, have a dead one reaped, put back what was collected."""

from __future__ import annotations

from election.agent_control import drain, reap, remains, undrain
from election.agent_restore import restore
from election.api.elections import view_message
from election.api.operations import drained_message, reaped_message, remains_message, restored_message
from election.api.resources import agent_id
from election.errors import BadField
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Source
from election.server.access.caller import ANONYMOUS, current_caller
from election.server.served import ServedReader

_REAP_S = 10.0
_LONGEST_REAP_S = 3600.0
_TO_ANSWER_S = 0.25
"""What is left of a call's deadline to withdraw a request and to answer."""


class Operations:
    """Does what is asked for in the caller's name, against etcd; refuses while the server's own view is stale."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, reader: ServedReader) -> None:
        self._client = client
        self._keyspace = keyspace
        self._reader = reader

    async def drain(self, request: pb.DrainAgentRequest) -> pb.DrainAgentResponse:
        """Marks an agent, or removes the mark."""
        agent, here = agent_id(request.id), self._reader.source()
        if request.undo:
            done = await undrain(self._client, self._keyspace, agent)
        else:
            done = await drain(self._client, self._keyspace, agent, by=_caller())
        return drained_message(done, self._view(here, done.revision))

    async def reap(self, request: pb.ReapAgentRequest, time_remaining_s: float | None) -> pb.ReapAgentResponse:
        """Has a dead agent collected; when this is cancelled, the request to the collectors is withdrawn."""
        agent, here = agent_id(request.id), self._reader.source()
        if request.validate_only:
            found = await remains(self._client, self._keyspace, agent)
            return remains_message(found, self._view(here, found.revision))
        timeout_s = _timeout_s(request)
        if time_remaining_s is not None:
            timeout_s = max(min(timeout_s, time_remaining_s - _TO_ANSWER_S), 0.0)
        done = await reap(self._client, self._keyspace, agent, by=_caller(), timeout_s=timeout_s)
        return reaped_message(done, self._view(here, done.revision))

    async def restore(self, request: pb.RestoreAgentRequest) -> pb.RestoreAgentResponse:
        """Puts back what was collected."""
        agent, here = agent_id(request.id), self._reader.source()
        incarnation = request.incarnation if request.HasField("incarnation") else None
        done = await restore(
            self._client, self._keyspace, agent, incarnation=incarnation, overwrite=request.overwrite
        )  # fmt: skip
        return restored_message(done, self._view(here, done.revision))

    def _view(self, here: Source, revision: int) -> pb.View:
        return view_message(Source(here.cluster_id, revision, 0.0), self._reader.namespace)


def _timeout_s(request: pb.ReapAgentRequest) -> float:
    if not request.HasField("timeout"):
        return _REAP_S
    timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
    if not 0 < timeout_s <= _LONGEST_REAP_S:
        raise BadField(
            f"a timeout of {timeout_s:g} s is not more than 0 and at most {_LONGEST_REAP_S:g}", field="timeout"
        )
    return timeout_s


def _caller() -> str:
    """Who asks, for those who look later at what was done."""
    caller = current_caller.get()
    name = caller.identities[0]
    return f"{name} at {caller.peer}" if name == ANONYMOUS and caller.peer else name
