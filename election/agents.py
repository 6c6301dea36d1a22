"""An agent: registers under a lease, keeps it alive, and stores state that only its living incarnation can write."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from election.backoff import Backoff
from election.config import AgentConfig, check_labels
from election.errors import AgentExists, AgentLost, ConfigError, EtcdError, LeaseNotFound, RecordTooLarge
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import Lease, grant, let_go, renewals
from election.keys import REGISTRATION, Keyspace, check_name
from election.pb.etcd import rpc_pb2 as rpc
from election.published import Published
from election.records import STATE_LIMIT, AgentRecord, StateEntry

logger = logging.getLogger("election")


@dataclass(frozen=True, slots=True)
class Registration:
    """One life of an agent. The incarnation is the create revision of its liveness key."""

    incarnation: int
    lease: int
    deadline_s: float


class Agent:
    """An agent, registered inside its `async with` block; made by `Store.agent`.

    When its lease is lost it registers again by itself, as a new incarnation; in between `check` raises. What it
    stored outlives it until the collector has collected it, or until it comes back within the grace.
    """

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        id: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        config: AgentConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.id = check_name("agent", id)
        self._client = client
        self._keyspace = keyspace
        self._config = config or AgentConfig()
        self._rng = rng or random.Random()
        self._alive_key = keyspace.alive(id)
        self._record = AgentRecord(id, address, check_labels(labels or {}))
        self._published: Published[Registration | None] = Published(None)
        self._living: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Registers.

        Raises:
            AgentExists: another live process holds the id.
            EtcdError: etcd could not be used.
        """
        lease = await self._register()
        self._living = asyncio.create_task(self._live(lease), name=f"agent {self.id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the liveness key; the state stays for the collector. Never raises for etcd's sake."""
        registration = self._published.value
        self._published.set(None)
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait({self._living})
            if not self._living.cancelled():
                self._living.result()
        if registration is not None:
            await let_go(self._client, registration.lease, whose=f"agent {self.id}")

    @property
    def registration(self) -> Registration | None:
        """The present registration; None while there is none."""
        return self._published.value

    def registrations(self) -> AsyncGenerator[Registration | None]:
        """The present registration and every later one (also after each renewal); None for each loss."""
        return self._published.values()

    @property
    def incarnation(self) -> int:
        """The present incarnation; raises AgentLost as `check` does."""
        return self.check().incarnation

    def check(self) -> Registration:
        """The registration, if the lease is certainly alive. Compares the clock with its deadline at every call.

        Raises:
            AgentLost: the lease is gone, or its deadline has passed without a renewal.
        """
        registration = self._published.value
        if registration is None or self._client.clock.now_s() >= registration.deadline_s:
            raise AgentLost(f"agent {self.id!r} has no living lease at present: wait until it has registered again")
        return registration

    # --- state -----------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes | str) -> None:
        """Stores a value of at most 64 KiB, if this incarnation is still alive.

        Raises:
            AgentLost: this incarnation is over; nothing was written.
            ConfigError: the key or the value cannot be used; nothing was written.
            EtcdError: `indefinite` when it may have been written all the same.
        """
        data = value.encode() if isinstance(value, str) else value
        if len(data) > STATE_LIMIT:
            raise RecordTooLarge(f"the value of {key!r} has {len(data)} bytes, and {STATE_LIMIT} are allowed")
        await self._write(txn.put(self._state_key(key), data))

    async def delete(self, key: str) -> None:
        """Deletes a value, if this incarnation is still alive; raises as `put` does."""
        await self._write(txn.delete(self._state_key(key)))

    async def get(self, key: str) -> bytes | None:
        """Reads one of its own values, linearizably."""
        found, _ = await self._client.get(self._keyspace.state(self.id, key))
        return None if found is None else found.value

    async def items(self) -> dict[str, bytes]:
        """Reads all of its own values, at one revision."""
        prefix = self._keyspace.states(self.id)
        listed = await self._client.list(prefix)
        entries = (StateEntry.of(prefix, kv) for kv in listed.kvs)
        return {entry.key: entry.value for entry in entries if entry.key != REGISTRATION}

    def _state_key(self, key: str) -> bytes:
        if key == REGISTRATION:
            raise ConfigError(f"the state key {REGISTRATION!r} is the agent's own record: use another name")
        return self._keyspace.state(self.id, key)

    async def _write(self, operation: rpc.RequestOp) -> None:
        incarnation = self.check().incarnation
        answer = await self._client.txn([txn.created_at(self._alive_key, incarnation)], [operation])
        if not answer.succeeded:
            registration = self._published.value
            if registration and registration.incarnation == incarnation:
                self._published.set(None)  # register again: the lease may live on, but the key is gone
            raise AgentLost(f"agent {self.id!r} is not incarnation {incarnation} any more: nothing was written")

    # --- liveness --------------------------------------------------------------------------------------------

    async def _register(self) -> Lease:
        config = self._config
        lease = await grant(self._client, ttl_s=config.ttl_s, margin_s=config.margin_s, renew_s=config.ttl_s / 3)
        record = replace(self._record, registered_at=self._client.clock.wall()).encode()
        try:
            answer = await self._client.txn(
                [txn.absent(self._alive_key)],
                [
                    txn.put(self._alive_key, record, lease=lease.id),
                    # Outlives the lease: it tells the collector which incarnation left its state behind.
                    txn.put(self._keyspace.state(self.id, REGISTRATION), record),
                ],
                [txn.get(self._alive_key)],
                repeat=Repeat.SAFE,  # a second execution finds the first one's key, with our own lease
            )
            incarnation = answer.header.revision
            if not answer.succeeded:
                found = answer.responses[0].response_range.kvs
                if not found or found[0].lease != lease.id:
                    raise AgentExists(
                        f"agent {self.id!r} is alive elsewhere: use another id, or wait until its lease has ended"
                    )
                incarnation = found[0].create_revision
        except BaseException:
            await let_go(self._client, lease.id, whose=f"agent {self.id}")
            raise
        self._published.set(Registration(incarnation, lease.id, lease.deadline_s))
        return lease

    async def _live(self, lease: Lease) -> None:
        """Renews until the lease is lost, and registers again, for ever."""
        backoff = Backoff(self._config.retry_s, self._config.retry_max_s, self._rng)
        while True:
            await self._hold(lease)
            self._published.set(None)
            logger.warning("agent %s has lost its lease and registers again", self.id)
            await let_go(self._client, lease.id, whose=f"agent {self.id}")
            lease = await self._register_again(backoff)

    async def _hold(self, lease: Lease) -> None:
        """Returns when the lease or the liveness key is gone, or nothing was renewed by the deadline."""
        retry = Backoff(self._config.retry_s / 4, self._config.retry_s, self._rng)
        clock = self._client.clock
        renewing = asyncio.create_task(self._renew(lease, retry))
        look_at_s = clock.now_s() + lease.ttl_s
        try:
            while not renewing.done():
                registration = self._published.value
                left_s = registration.deadline_s - clock.now_s() if registration else 0
                if left_s <= 0:
                    return
                if clock.now_s() >= look_at_s:
                    look_at_s = clock.now_s() + lease.ttl_s
                    if not await self._has_key(lease):
                        return
                await asyncio.wait({renewing}, timeout=min(left_s, 1.0))
            await renewing
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})

    async def _has_key(self, lease: Lease) -> bool:
        """Whether the liveness key is still on the lease; taken to be while etcd cannot tell."""
        try:
            answer = await self._client.lease_time_to_live(lease.id, keys=True)
        except EtcdError:
            return True
        return self._alive_key in answer.keys

    async def _renew(self, lease: Lease, retry: Backoff) -> None:
        try:
            async with aclosing(renewals(self._client, lease, retry)) as confirmed:
                async for renewal in confirmed:
                    if registration := self._published.value:
                        self._published.set(replace(registration, deadline_s=renewal.deadline_s))
        except LeaseNotFound:
            return

    async def _register_again(self, backoff: Backoff) -> Lease:
        while True:
            try:
                return await self._register()
            except (EtcdError, AgentExists) as error:
                logger.warning("agent %s cannot register: %s", self.id, error)
            await self._client.clock.sleep_s(backoff.next_s())
