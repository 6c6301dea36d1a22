"""What keeps a session alive: it renews the lease, goes on at another server, and registers again."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from election.agent_records import AgentRecord
from election.api.sessions import LONGEST_SECRET, check_ttl
from election.api.values import seconds
from election.backoff import Backoff
from election.client.session_stream import SessionStream, Wire
from election.clock import Clock
from election.config import AgentConfig
from election.errors import AgentExists, AgentLost, ElectionError, LossReason
from election.lives import Lives
from election.pb.election.v1 import election_pb2 as pb
from election.published import Published
from election.registration import Registration

logger = logging.getLogger("election")

_RETRY_S, _RETRY_MAX_S = 0.05, 0.5
_LOOK_S = 1.0
"""The longest time between two looks at the clock, which goes on in a suspend, when timers stand still."""
_LEAST_S = 0.001


class SessionServers(Protocol):
    """What a session has to know of the servers: see `election.client.servers.Servers`."""

    clock: Clock
    rng: Random
    call_timeout_s: float
    attempt_timeout_s: float


class SessionKeeper:
    """Keeps the session of one agent, whose `lives` it tells what becomes of it."""

    def __init__(
        self, servers: SessionServers, call: Callable[[], Wire], record: AgentRecord, config: AgentConfig, lives: Lives
    ) -> None:
        self.deadline_s = 0.0
        """Up to when the lease is certainly alive, on the servers' clock."""
        self.draining = False
        self.stream: Published[SessionStream | None] = Published(None)
        """The newest stream, also when it is over; None while the agent is lost."""
        self.left_behind: Registration | None = None
        """The registration that nobody keeps alive any more, and that nobody has ended."""
        self._servers = servers
        self._clock = servers.clock
        self._call = call
        self._record = record
        self._config = config
        self._ttl_s = check_ttl(config.ttl_s)
        self._lives = lives
        self._secret = b""
        """Opens the present incarnation, or what was asked for last; empty where a new one is to be made."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, as it stands now; 0 while there is no registration."""
        return 0.0 if self._lives.registration is None else max(self.deadline_s - self._clock.now_s(), 0.0)

    def backoff(self) -> Backoff:
        """The pauses between attempts."""
        return Backoff(_RETRY_S, _RETRY_MAX_S, self._servers.rng)

    async def register(self, *, takeover: bool = False) -> None:
        """Begins a life, or goes on with one that has begun without our hearing of it; one attempt, at one server.

        Raises:
            AgentExists: another live process holds the id.
            ElectionError: the server cannot, or refuses it.
        """
        self._secret = self._secret or secrets.token_bytes(LONGEST_SECRET)
        sent_at_s = self._clock.now_s()
        stream, opened = await self._open(self._servers.attempt_timeout_s, takeover=takeover)
        self.deadline_s = 0.0
        self._extend(sent_at_s, opened.ttl.ToNanoseconds() / 1e9)
        self.draining = opened.draining
        self.stream.set(stream)
        self._lives.begin(Registration(opened.incarnation, opened.lease))

    async def run(self) -> None:
        """Keeps the session that is registered, and registers again when it is lost; ends when it stays lost."""
        while True:
            reason = await self._stay_alive()
            logger.warning("agent %s has lost its registration (%s)", self._record.id, reason.value)
            self.left_behind = self._lives.registration if reason is LossReason.EXPIRED else None
            self._lives.lose(reason)
            await self.close()
            self.stream.set(None)
            if not self._config.register_again:
                return
            await self._come_back()

    async def leave(self) -> None:
        """Ends what is left of the agent's life; a failure is logged, and harmless: the lease ends by itself."""
        registration, self.left_behind = self.left_behind, None
        try:
            async with asyncio.timeout(self._servers.call_timeout_s):
                backoff = self.backoff()
                while registration is not None:
                    try:
                        await self._end(registration, drop_state=not self._config.keep_state)
                        break
                    except ElectionError as error:
                        logger.info("agent %s tries to leave elsewhere: %s", self._record.id, error)
                        await self._clock.sleep_s(backoff.next_s())
        except TimeoutError:
            logger.warning("agent %s could not say that it leaves: its lease ends by itself", self._record.id)
        finally:
            self._secret = b""
            await self.close()
            self.stream.set(None)

    async def close(self) -> None:
        """Ends the stream, and changes nothing."""
        if (stream := self.stream.value) is not None:
            await stream.close()

    async def _stay_alive(self) -> LossReason:
        """Renews the lease, at whichever server does it; returns when it is lost, and why."""
        backoff = self.backoff()
        stream = self.stream.value
        while True:
            try:
                if stream is None or stream.is_over:
                    stream = await self._resume()
                await self._renew_on(stream, backoff)
            except AgentLost:
                return LossReason.EXPIRED if self.remaining_s <= 0 else LossReason.KEY_DELETED
            except ElectionError as error:
                if stream is not None:
                    await stream.close()
                logger.info("the session of agent %s goes on elsewhere: %s", self._record.id, error)
            if (left_s := self.remaining_s) <= 0:
                return LossReason.EXPIRED
            await self._clock.sleep_s(min(backoff.next_s(), left_s))

    async def _renew_on(self, stream: SessionStream, backoff: Backoff) -> None:
        """Renews the lease every third of its TTL; raises what the stream ends with, and returns at the deadline."""
        due_at_s = self._clock.now_s() + self._pause_s()
        while (left_s := self.remaining_s) > 0:
            if stream.error is not None:
                raise stream.error
            if (wait_s := due_at_s - self._clock.now_s()) > 0:
                await asyncio.wait({stream.reading}, timeout=max(min(wait_s, left_s, _LOOK_S), _LEAST_S))
                continue
            sent_at_s = self._clock.now_s()
            answer = await stream.ask(min(self._servers.attempt_timeout_s, left_s), renew=pb.SessionRequest.Renew())
            if answer.HasField("failure"):
                raise stream.give_up(answer.failure.message)
            self._extend(sent_at_s, answer.renewed.ttl.ToNanoseconds() / 1e9)
            self.draining = answer.renewed.draining
            backoff.reset()
            due_at_s = sent_at_s + self._pause_s()

    async def _resume(self) -> SessionStream:
        """Goes on with the present incarnation on a new stream; raises AgentLost where that is over."""
        registration = self._lives.registration
        assert registration is not None
        sent_at_s = self._clock.now_s()
        limit_s = min(self._servers.attempt_timeout_s, max(self.remaining_s, 0.001))
        stream, opened = await self._open(limit_s, incarnation=registration.incarnation)
        self._extend(sent_at_s, opened.ttl.ToNanoseconds() / 1e9)
        self.draining = opened.draining
        self.stream.set(stream)
        return stream

    async def _come_back(self) -> None:
        """Ends the lease that may still be there, so that its key cannot be in the way, and registers; without end."""
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._servers.rng)
        told, is_new = None, False
        while True:
            try:
                if self.left_behind is not None:
                    await self._end(self.left_behind, drop_state=False)
                    self.left_behind = None
                if not is_new:
                    self._secret, is_new = b"", True
                await self.register()
                return
            except ElectionError as error:
                if told is not type(error):
                    logger.warning("agent %s cannot register: %s", self._record.id, error)
                told = type(error)
                await self._clock.sleep_s(backoff.next_s())

    async def _end(self, registration: Registration, *, drop_state: bool) -> None:
        """Ends an incarnation, if it has not ended."""
        stream = self.stream.value
        if stream is None or stream.is_over:
            try:
                limit_s = self._servers.attempt_timeout_s
                stream, _ = await self._open(limit_s, incarnation=registration.incarnation)
            except (AgentLost, AgentExists):
                return
        try:
            await stream.ask(self._servers.attempt_timeout_s, leave=pb.SessionRequest.Leave(drop_state=drop_state))
        except AgentLost:
            pass
        finally:
            await stream.close()

    async def _open(self, limit_s: float, **more: Any) -> tuple[SessionStream, pb.SessionResponse.Opened]:
        stream = SessionStream(self._call())
        record = self._record
        opening = pb.SessionRequest.Open(
            agent=record.id,
            secret=self._secret,
            address=record.address,
            labels=record.labels,
            ttl=seconds(self._ttl_s),
            **more,
        )
        try:
            answer = await stream.ask(limit_s, open=opening)
        except BaseException:
            await stream.close()
            raise
        return stream, answer.opened

    def _extend(self, sent_at_s: float, ttl_s: float) -> None:
        self.deadline_s = max(self.deadline_s, sent_at_s + ttl_s - self._config.margin_s)

    def _pause_s(self) -> float:
        """Until the next renewal: somewhat less than a third, so that those who began together do not stay so."""
        return self._ttl_s / 3 * (0.9 + 0.1 * self._servers.rng.random())
