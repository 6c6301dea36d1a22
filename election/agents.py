"""An agent: registers under a lease, and stores state that only its living incarnation can write."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from election.agent_records import AgentRecord, StateEntry, checked_key, checked_value
from election.config import AgentConfig, check_labels
from election.errors import AgentExists, AgentLost, EtcdError, LossReason
from election.etcd import txn
from election.etcd.client import EtcdClient
from election.etcd.keepalive import KeptLease
from election.etcd.lease import Lease
from election.kept import KeptValues
from election.keys import REGISTRATION, Keyspace, check_name
from election.lives import Lives
from election.pb.etcd import rpc_pb2 as rpc
from election.registration import Registration, checked, evict, leave, register
from election.roster import Roster


class Agent:
    """An agent, registered inside its `async with` block; made by `Store.agent`.

    When its lease is lost it registers again by itself, as a new incarnation, unless the settings say otherwise; in
    between `check` raises. What it stored outlives it until a collector has collected it, or until it comes back.
    With `takeover`, its first registration ends the life of another holder of the id; the later ones do not, or two
    processes would take turns for ever.
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
        takeover: bool = False,
        roster: Roster | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.id = check_name("agent", id)
        self.config = config or AgentConfig()
        self.alive_key = keyspace.alive(id)
        self._client = client
        self._keyspace = keyspace
        self._takeover = takeover
        self._roster = roster or Roster(client, rng=rng)
        self._record = checked(AgentRecord(id, address, check_labels(labels or {}), client.clock.wall()))
        self._lives = Lives(id, register_again=self.config.register_again)
        self._lease: KeptLease | None = None
        self._left_behind: Registration | None = None
        """The registration that nobody keeps alive any more, and that nobody has ended."""
        self._kept = KeptValues()
        self._last_incarnation = 0

    async def __aenter__(self) -> Self:
        """Registers.

        Raises:
            AgentExists: another live process holds the id.
            EtcdError: etcd could not be used.
        """
        self._lives.prepare()
        self._left_behind = None
        try:
            await self._roster.enter(self)
        except AgentExists:
            if not self._takeover:
                raise
            await evict(self._client, self._keyspace, self.id)
            await self._roster.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Says that it leaves, and removes the liveness key; never raises for etcd's sake.

        Its state stays for the collector, or is deleted in the same transaction, as the settings say.

        Raises:
            RuntimeError: what keeps agents alive has failed, because of an error in this library.
        """
        registration = self.registration or self._left_behind
        self._lives.leave()
        self._kept.clear()
        try:
            await self._roster.leave(self)
        finally:
            if registration is not None:
                await leave(self._client, self._keyspace, self._record, registration, keep_state=self.config.keep_state)
        if self._lives.failure is not None:
            raise RuntimeError(f"agent {self.id!r} was not kept alive any more") from self._lives.failure

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
        if self.registration is None or self._lease is None:
            return 0.0
        return max(self._lease.deadline_s - self._client.clock.now_s(), 0.0)

    def check(self) -> Registration:
        """The registration, if the lease is certainly alive. Compares the clock with its deadline at every call.

        Raises:
            AgentLost: the lease is gone, or its deadline has passed without a renewal; or this process was forked from
                the one that registered, and renews nothing.
        """
        return self._lives.check(self.remaining_s())

    # --- state -----------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes | str, *, keep: bool = False) -> None:
        """Stores a value of at most 64 KiB, if this incarnation is still alive.

        With `keep` it is also kept in memory, until the key is put or deleted again: where a collector has collected
        what this agent had, although it comes back, the value is stored anew in the transaction that registers it.

        Raises:
            AgentLost: this incarnation is over; nothing was written, or nothing that will not be collected.
            ConfigError: the key or the value cannot be used, or not be kept; nothing was written.
            EtcdError: `indefinite` when it may have been written all the same; the key is not kept then.
        """
        data = checked_value(key, value)
        operation = txn.put(self._state_key(key), data)
        if not keep:
            await self._write(key, operation)
            self._kept.forget(key)
            return
        with self._kept.room_for(key, data):
            incarnation = await self._write(key, operation)
            if self.registration is None or self.registration.incarnation != incarnation:
                raise AgentLost(
                    f"agent {self.id!r} lost incarnation {incarnation} while it stored {key!r}: put it again"
                )
            self._kept.keep(key, data)

    async def delete(self, key: str) -> None:
        """Deletes a value, if this incarnation is still alive, and keeps it no more; raises as `put` does."""
        operation = txn.delete(self._state_key(key))
        self._kept.forget(key)
        await self._write(key, operation)

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
        return self._keyspace.state(self.id, checked_key(key))

    async def _write(self, key: str, operation: rpc.RequestOp) -> int:
        """Writes, and returns the incarnation under which it was done."""
        registration = self.check()
        own = txn.created_at(self.alive_key, registration.incarnation)
        try:
            answer = await self._client.txn([own], [operation])
        except BaseException as error:
            if not isinstance(error, EtcdError) or error.indefinite:
                self._kept.forget(key)  # nobody knows which value is there
            raise
        if not answer.succeeded:
            self._roster.lose(self, registration)
            raise AgentLost(
                f"agent {self.id!r} is not incarnation {registration.incarnation} any more: nothing was written"
            )
        return registration.incarnation

    # --- what its roster calls -------------------------------------------------------------------------------

    async def register(self) -> tuple[Registration, Lease]:
        """Registers with etcd, and nothing else; raises AgentExists or EtcdError."""
        self._record = replace(self._record, registered_at=self._client.clock.wall())
        incarnation, lease = await register(
            self._client,
            self._keyspace,
            self._record,
            self.config,
            before=self._last_incarnation,
            put_back=self._kept.values,
        )
        return Registration(incarnation, lease.id), lease

    def begin(self, registration: Registration, lease: KeptLease) -> None:
        """It is registered, and the lease is kept alive."""
        self._lease = lease
        self._last_incarnation = registration.incarnation
        self._lives.begin(registration)

    def lose(self, reason: LossReason) -> None:
        """The registration is over."""
        self._lives.lose(reason)

    def fail(self, error: BaseException | None) -> None:
        """Nobody keeps it alive any more."""
        self._left_behind = self.registration
        self._lives.fail(error)
