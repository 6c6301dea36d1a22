"""`Agents.Session`: agents that are alive through this server, and store their state through it.

The server renews nothing by itself, and keeps nothing that another one would need: what opens a session lies in etcd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from election.agent_records import AgentState
from election.api.elections import view_message
from election.api.sessions import failure_message, opening_from
from election.api.values import seconds
from election.errors import BadField, ConfigError, ElectionError, EtcdError
from election.etcd.client import EtcdClient
from election.etcd.renewer import Renewer
from election.held_session import HeldSession, open_session
from election.keys import Keyspace
from election.pb.election.v1 import election_pb2 as pb
from election.pb.etcd import rpc_pb2 as rpc
from election.reader import Source
from election.server.access.caller import current_caller
from election.server.access.roles import Role
from election.server.handlers import first_of
from election.server.served import ServedReader

_WINDOW = 8
"""The most messages of one stream that are read and not answered."""
_OPENED_AT_ONCE = 64
"""When all come at once that were at another server, those who wait too long go on without having cost anything."""


class Sessions:
    """The sessions of a server's callers. The client and the renewer have to outlive them."""

    def __init__(self, client: EtcdClient, renewer: Renewer, keyspace: Keyspace, reader: ServedReader) -> None:
        self._client = client
        self._renewer = renewer
        self._keyspace = keyspace
        self._reader = reader
        self._opening = asyncio.Semaphore(_OPENED_AT_ONCE)
        self._streams: dict[str, _Stream] = {}

    async def serve(self, requests: AsyncIterator[pb.SessionRequest]) -> AsyncGenerator[pb.SessionResponse]:
        """The answers of one stream, until the caller leaves or half-closes it, which changes nothing.

        Writes are done one after the other, in the order in which they came, and so are renewals; neither waits for
        the other.

        Raises:
            AgentExists, AgentLost, SessionMoved, EtcdError: as `open_session` and `HeldSession` do; but what only one
                message fails for is its answer.
            BadField: for messages that cannot be, or not in this order, and where the first one does not come.
        """
        requests = aiter(requests)
        first: pb.SessionRequest | None = await first_of(requests)
        if first is None or not first.HasField("open"):
            raise BadField("the first message of a session has to be `open`", field="open")
        opening = opening_from(first.open)
        current_caller.get().require(Role.AGENT, agent=opening.record.id)
        async with self._opening:
            held = await open_session(self._client, self._renewer, self._keyspace, opening)
        stream = _Stream(held, self._reader)
        self._begin(stream)
        try:
            yield stream.opened(first.sequence)
            async with aclosing(stream.answers(requests, first.sequence)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            if self._streams.get(held.agent) is stream:
                del self._streams[held.agent]

    def _begin(self, stream: _Stream) -> None:
        """The stream that was opened last has the session; another one of this server that has it still is ended."""
        held, other = stream.held, self._streams.get(stream.held.agent)
        if other is not None:
            if other.held.mark > held.mark:
                raise held.moved() if other.held.incarnation == held.incarnation else held.lost()
            other.end(other.held.moved() if other.held.incarnation == held.incarnation else other.held.lost())
        self._streams[held.agent] = stream


class _Stream:
    """One stream of a session that is open. The caller cannot make it hold more than a few messages."""

    def __init__(self, held: HeldSession, reader: ServedReader) -> None:
        self.held = held
        self._reader = reader
        self._writing = asyncio.Lock()
        self._renewing = asyncio.Lock()  # two at once would cost etcd a stream of their own
        self._room = asyncio.Semaphore(_WINDOW)
        self._running: set[asyncio.Task[Any]] = set()
        self._done: asyncio.Queue[asyncio.Task[Any] | ElectionError] = asyncio.Queue()

    def end(self, why: ElectionError) -> None:
        """Ends the stream from outside; what is under way is given up."""
        self._done.put_nowait(why)

    def opened(self, sequence: int) -> pb.SessionResponse:
        """The answer to `open`."""
        opened = self.held.opened
        return pb.SessionResponse(
            view=self._view(opened.header),
            sequence=sequence,
            opened=pb.SessionResponse.Opened(
                incarnation=opened.registration.incarnation,
                lease=opened.registration.lease,
                ttl=seconds(opened.ttl_s),
                resumed=opened.resumed,
                draining=opened.draining,
            ),
        )

    async def answers(
        self, requests: AsyncIterator[pb.SessionRequest], after: int
    ) -> AsyncGenerator[pb.SessionResponse]:
        """The answers to what comes after `open`."""
        reading = self._run(self._read(requests, after))
        left = False
        try:
            while self._running and not left:
                done = await self._done.get()
                if isinstance(done, ElectionError):
                    raise done
                self._running.discard(done)
                answer = done.result()
                if done is not reading:
                    self._room.release()
                    yield answer
                    left = answer.HasField("left")
        finally:
            running = tuple(self._running)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _read(self, requests: AsyncIterator[pb.SessionRequest], after: int) -> None:
        """Begins what is asked for, until the caller has said all."""
        async for request in requests:
            if request.sequence <= after:
                raise BadField(f"sequence {request.sequence} comes after {after}: it has to grow", field="sequence")
            after = request.sequence
            action = request.WhichOneof("action")
            if action is None or action == "open":
                raise BadField("a message has to ask for one thing, and only the first one for `open`", field="action")
            await self._room.acquire()
            self._run(self._answer(request, action))

    def _run(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=f"session of {self.held.agent}")
        self._running.add(task)
        task.add_done_callback(self._done.put_nowait)
        return task

    async def _answer(self, request: pb.SessionRequest, action: str) -> pb.SessionResponse:
        answer = pb.SessionResponse(sequence=request.sequence)
        try:
            if action == "renew":
                async with self._renewing:
                    await self._renew(answer)
            else:
                async with self._writing:
                    await self._write(request, action, answer)
        except (EtcdError, ConfigError) as error:
            answer.failure.CopyFrom(failure_message(error))
        return answer

    async def _renew(self, answer: pb.SessionResponse) -> None:
        # etcd keeps a lease also when somebody has deleted its liveness key, which only the watch tells.
        agent, revision = self._reader.known_agent(self.held.agent)
        state = agent.state if agent and agent.incarnation == self.held.incarnation else None
        is_alive = state in (AgentState.ALIVE, AgentState.DRAINING)
        if revision >= self.held.incarnation and not is_alive:
            raise self.held.lost()
        renewed = await self.held.renew()
        answer.renewed.ttl.CopyFrom(seconds(renewed.TTL))
        answer.renewed.draining = state is AgentState.DRAINING if is_alive else self.held.opened.draining
        answer.view.CopyFrom(self._view(renewed.header))

    async def _write(self, request: pb.SessionRequest, action: str, answer: pb.SessionResponse) -> None:
        match action:
            case "put":
                answer.view.CopyFrom(self._view(await self.held.put(request.put.key, request.put.value)))
                answer.written.SetInParent()
            case "delete":
                answer.view.CopyFrom(self._view(await self.held.delete(request.delete.key)))
                answer.written.SetInParent()
            case "leave":
                await self.held.leave(keep_state=not request.leave.drop_state)
                answer.left.SetInParent()

    def _view(self, header: rpc.ResponseHeader) -> pb.View:
        return view_message(Source(header.cluster_id, header.revision, 0.0), self._reader.namespace)
