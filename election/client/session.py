"""An agent through the API: registers at one server, goes on at another, and needs no access to etcd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from election.agent_records import AgentRecord, checked_key, checked_value
from election.api.sessions import failure_from
from election.client.servers import ServerUnavailable
from election.client.session_keeper import SessionKeeper, SessionServers
from election.client.session_stream import Wire
from election.config import AgentConfig, check_labels
from election.errors import AgentLost, ElectionError, EtcdUnavailable, LossReason
from election.keys import check_name
from election.lives import Lives
from election.pb.election.v1 import election_pb2 as pb
from election.registration import Registration, checked

logger = logging.getLogger("election")


class Session:
    """An agent, registered inside its `async with` block; made by `Client.session`.

    It is alive for as long as some server renews its lease for it, one after the other if need be: a server that dies
    or hangs costs no incarnation. Its deadline is its own: `sent_at + ttl - margin`, where `sent_at` is read before
    the request was written whose answer confirms it. When its lease is lost it registers again by itself, as a new
    incarnation, unless the settings say otherwise; in between `check` raises. What it stored outlives it until a
    collector has collected it, or until it comes back.
    """

    def __init__(
        self,
        servers: SessionServers,
        call: Callable[[], Wire],
        id: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        config: AgentConfig | None = None,
        takeover: bool = False,
    ) -> None:
        self.id = check_name("agent", id)
        self.config = config or AgentConfig()
        self._servers = servers
        self._clock = servers.clock
        self._takeover = takeover
        self._lives = Lives(id, register_again=self.config.register_again)
        record = checked(AgentRecord(id, address, check_labels(labels or {})))
        self._keeper = SessionKeeper(servers, call, record, self.config, self._lives)
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Registers.

        Raises:
            AgentExists: another live process holds the id.
            ServerUnavailable: no server has answered within `call_timeout_s`, or none can reach etcd. The agent may be
                registered all the same, until its TTL is over; entering again goes on with that.
            ElectionError: what the servers refuse it for.
        """
        self._lives.prepare()
        give_up_at_s = self._clock.now_s() + self._servers.call_timeout_s
        backoff = self._keeper.backoff()
        while True:
            try:
                await self._keeper.register(takeover=self._takeover)
                break
            except (ServerUnavailable, EtcdUnavailable):
                pause_s = backoff.next_s()
                if self._clock.now_s() + pause_s >= give_up_at_s:
                    raise
                await self._clock.sleep_s(pause_s)
        self._task = asyncio.create_task(self._keeper.run(), name=f"session of {self.id}")
        self._task.add_done_callback(self._noticed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Says that it leaves, so that its life ends at once; never raises for the servers' sake.

        Its state stays for the collector, or is deleted in the same transaction, as the settings say.

        Raises:
            RuntimeError: what keeps the session has failed, because of an error in this library.
        """
        keeper, task = self._keeper, self._task
        keeper.left_behind = self.registration or keeper.left_behind
        self._lives.leave()
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        finally:
            await keeper.leave()
        if self._lives.failure is not None:
            raise RuntimeError(f"the session of agent {self.id!r} was not kept any more") from self._lives.failure

    # --- life ------------------------------------------------------------------------------------------------

    @property
    def registration(self) -> Registration | None:
        """The present registration; None while there is none."""
        return self._lives.registration

    def registrations(self) -> AsyncGenerator[Registration | None]:
        """The present registration and every later one, and None for each loss; ends when it stays lost, or leaves."""
        return self._lives.registrations()

    @property
    def lost(self) -> Awaitable[LossReason]:
        """To be awaited, by any number of tasks: why the present registration ended, as soon as that is noticed.

        Where there is none at present, it is why the last one ended. Cancelling the wait does nothing else.
        """
        return self._lives.lost

    @property
    def incarnation(self) -> int:
        """The present incarnation; raises AgentLost as `check` does."""
        return self.check().incarnation

    def remaining_s(self) -> float:
        """Seconds until the deadline, as it stands now; 0 while there is no registration."""
        return self._keeper.remaining_s

    def check(self) -> Registration:
        """The registration, if the lease is certainly alive. Compares the clock with its deadline at every call.

        Raises:
            AgentLost: the lease is gone, or its deadline has passed without a renewal; or this process was forked from
                the one that registered, and renews nothing.
        """
        return self._lives.check(self._keeper.remaining_s)

    @property
    def draining(self) -> bool:
        """Whether the agent is to take no new work, as the newest answer of a server has said it."""
        return self._keeper.draining

    # --- state -----------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes | str) -> None:
        """Stores a value of at most 64 KiB, if this incarnation is still alive; one write after the other.

        Where no server says what has become of it, it is written again at the next one. It may be written twice then,
        but never after a later write of this session: whoever opens a session refuses what was under way before.

        Raises:
            AgentLost: this incarnation is over; nothing was written, or nothing that will not be collected.
            ConfigError: the key or the value cannot be used; nothing was written.
            ServerUnavailable: no server has confirmed it within `call_timeout_s`; `indefinite` when it may have been
                written all the same.
            EtcdError: etcd refused it, and nothing was written.
        """
        await self._write(put=pb.SessionRequest.Put(key=checked_key(key), value=checked_value(key, value)))

    async def delete(self, key: str) -> None:
        """Deletes a value, if this incarnation is still alive; raises as `put` does."""
        await self._write(delete=pb.SessionRequest.Delete(key=checked_key(key)))

    async def _write(self, **action: Any) -> None:
        give_up_at_s = self._clock.now_s() + self._servers.call_timeout_s
        registration, sent = self.check(), False
        try:
            async with asyncio.timeout(self._servers.call_timeout_s) as limit, self._writing:
                while self.check() == registration:
                    stream = await self._keeper.stream.until(lambda stream: stream is None or not stream.is_over)
                    if stream is None or self.registration != registration:
                        continue
                    sent = True
                    left_s = give_up_at_s - self._clock.now_s()
                    try:
                        answer = await stream.ask(max(min(left_s, self._servers.attempt_timeout_s), 0.001), **action)
                    except ElectionError:
                        continue  # the next stream, if there is one, refuses what this one has still under way
                    if not answer.HasField("failure"):
                        return
                    error = failure_from(answer.failure)
                    if not answer.failure.indefinite and not isinstance(error, EtcdUnavailable):
                        raise error
                    stream.give_up(str(error))
        except TimeoutError:
            if not limit.expired():
                raise
            why = "no server has confirmed the write in time"
            raise ServerUnavailable(
                f"{why} (it may have happened all the same)" if sent else why, indefinite=sent
            ) from None
        raise AgentLost(
            f"agent {self.id!r} is not incarnation {registration.incarnation} any more: it was lost meanwhile"
        )

    def _noticed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the session of agent %s is not kept any more", self.id, exc_info=error)
            self._lives.fail(error)
