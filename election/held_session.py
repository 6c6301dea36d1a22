"""An agent's registration that whoever knows its secret can go on with, from anywhere.

What it takes lies in etcd, on the agent's lease: the hash of the secret, in a key that is written in the transaction
that registers, and written anew whenever the session is opened. Every write compares that key's mod revision. So
whoever has opened the session last can write, and nobody who held it before: what such a one has still under way is
refused, however late it arrives. An etcd that is full takes no such write, and any other neither; then the key is
written anew before the first write that comes after.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Self

from election.agent_records import AgentRecord, checked_key, checked_value
from election.config import AgentConfig
from election.errors import AgentLost, EtcdError, LeaseNotFound, NoSpace, SessionMoved
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import grant, let_go
from election.etcd.renewer import Renewer
from election.keys import Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import KeyValue
from election.registration import Registration, beginning, checked, evict, exists, leave

_ATTEMPTS = 5
"""How often it is looked again because something has changed in between."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What somebody asks for who opens a session; `incarnation` is 0 unless it is to go on with that one alone."""

    record: AgentRecord
    secret: bytes
    ttl_s: int
    takeover: bool = False
    incarnation: int = 0

    def __repr__(self) -> str:
        return f"Opening({self.record!r}, ttl_s={self.ttl_s}, incarnation={self.incarnation})"

    @property
    def digest(self) -> bytes:
        """What is stored of the secret. It is random and long, so that its hash needs no salt."""
        return hashlib.sha256(self.secret).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Opened:
    """What there is after a session was opened: `mark` is the mod revision of its key, `ttl_s` what etcd granted.

    `taken` says that the key was written for whoever has opened it now, so that nobody else can write.
    """

    record: AgentRecord
    registration: Registration
    mark: int
    taken: bool
    ttl_s: int
    resumed: bool
    draining: bool
    header: rpc.ResponseHeader


@dataclass(frozen=True, slots=True)
class _Found:
    alive: KeyValue | None
    session: KeyValue | None
    draining: bool

    @classmethod
    def of(cls, answer: rpc.TxnResponse) -> Self:
        alive, session, draining = (each.response_range.kvs for each in answer.responses)
        return cls(alive[0] if alive else None, session[0] if session else None, bool(draining))

    def is_opened_by(self, digest: bytes) -> bool:
        """Whether the hash is that of the secret. A session's key that another life has left is on another lease."""
        if self.alive is None or self.session is None or self.session.lease != self.alive.lease:
            return False
        return hmac.compare_digest(self.session.value, digest)


class HeldSession:
    """A session, for as long as nobody opens it anew. Nothing is renewed unless `renew` is called.

    All methods but `leave` raise AgentLost when the incarnation is over, SessionMoved when the session was opened
    anew, and EtcdError when etcd could not be used.
    """

    def __init__(self, client: EtcdClient, renewer: Renewer, keyspace: Keyspace, opened: Opened, digest: bytes) -> None:
        self.agent = opened.record.id
        self.opened = opened
        self.mark = opened.mark
        self.incarnation = opened.registration.incarnation
        self._client = client
        self._renewer = renewer
        self._keyspace = keyspace
        self._digest = digest
        self._taken = opened.taken
        self._alive_until_s = client.clock.now_s() + opened.ttl_s

    async def renew(self) -> rpc.LeaseKeepAliveResponse:
        """Renews the lease, once; it is renewed when this returns."""
        may_have_ended = self._client.clock.now_s() >= self._alive_until_s
        lease = self.opened.registration.lease
        try:
            answer = await self._renewer.renew(lease, may_have_ended=may_have_ended)
        except LeaseNotFound:
            raise self.lost() from None
        self._alive_until_s = self._client.clock.now_s() + answer.TTL
        return answer

    async def put(self, key: str, value: bytes) -> rpc.ResponseHeader:
        """Stores a value; raises RecordTooLarge above STATE_LIMIT, and ConfigError for a key that cannot be."""
        return await self._write(txn.put(self._state_key(key), checked_value(key, value)))

    async def delete(self, key: str) -> rpc.ResponseHeader:
        """Deletes a value."""
        return await self._write(txn.delete(self._state_key(key)))

    async def leave(self, *, keep_state: bool) -> None:
        """Ends the incarnation, if it has not ended; a failure is logged, and harmless: its lease ends by itself."""
        registration = self.opened.registration
        await leave(self._client, self._keyspace, self.opened.record, registration, keep_state=keep_state)

    def lost(self) -> AgentLost:
        """The error that says that the incarnation is over."""
        return _lost(self.agent, self.incarnation)

    def moved(self) -> SessionMoved:
        """The error that says that somebody has opened the session anew."""
        return SessionMoved(f"the session of agent {self.agent!r} was opened anew, on another stream or server")

    def _state_key(self, key: str) -> bytes:
        return self._keyspace.state(self.agent, checked_key(key))

    async def _write(self, operation: rpc.RequestOp) -> rpc.ResponseHeader:
        alive, session = self._keyspace.alive(self.agent), self._keyspace.session(self.agent)
        if not self._taken:
            taken = await _take(self._client, session, self._own(), self._digest, self.opened.registration.lease)
            if taken is not None:  # else the write is refused as well, and finds out why
                self.mark, self._taken = taken.revision, True
        answer = await self._client.txn(self._own(), [operation], [txn.head(alive)])
        if answer.succeeded:
            return answer.header
        found = answer.responses[0].response_range.kvs
        raise self.moved() if found and found[0].create_revision == self.incarnation else self.lost()

    def _own(self) -> list[rpc.Compare]:
        return _held(self._keyspace, self.agent, self.incarnation, self.mark)


async def open_session(client: EtcdClient, renewer: Renewer, keyspace: Keyspace, opening: Opening) -> HeldSession:
    """Begins a session, or goes on with the one that the secret opens, whose lease is renewed then.

    It can be repeated: who has not heard the answer has the session after the next one. When it fails or is cancelled,
    the agent may be registered all the same; then the secret opens the session until its lease ends.

    Raises:
        AgentExists: the id has a living holder, and the secret is another one.
        AgentLost: the incarnation that was named is over.
        ConfigError: the TTL that etcd granted is too short, or the record is too large.
        EtcdError: etcd could not be used.
    """
    for _ in range(_ATTEMPTS):
        found = await _find(client, keyspace, opening.record.id)
        incarnation = found.alive.create_revision if found.alive else 0
        if opening.incarnation and opening.incarnation != incarnation:
            raise _lost(opening.record.id, opening.incarnation)
        if found.alive is None:
            opened = await _register(client, keyspace, opening, draining=found.draining)
        elif found.is_opened_by(opening.digest):
            opened = await _resume(client, renewer, keyspace, opening, found)
        elif opening.takeover and not opening.incarnation:
            await evict(client, keyspace, opening.record.id)
            opening, opened = replace(opening, takeover=False), None
        else:
            raise exists(opening.record.id)
        if opened is not None:
            return HeldSession(client, renewer, keyspace, opened, opening.digest)
    raise EtcdError(f"agent {opening.record.id!r} comes and goes all the time: its session could not be opened")


async def _find(client: EtcdClient, keyspace: Keyspace, agent: str) -> _Found:
    keys = (keyspace.alive(agent), keyspace.session(agent), keyspace.draining(agent))
    return _Found.of(await client.txn([], [txn.get(key) for key in keys], repeat=Repeat.SAFE))


async def _register(client: EtcdClient, keyspace: Keyspace, opening: Opening, *, draining: bool) -> Opened | None:
    """Registers under a new lease; None when somebody else has been faster.

    Where it is not known whether it has registered, the lease stays: somebody with the secret may have gone on with it.
    """
    record = checked(replace(opening.record, registered_at=client.clock.wall()))
    config = AgentConfig(ttl_s=opening.ttl_s)
    lease = await grant(client, ttl_s=config.ttl_s, margin_s=config.margin_s, renew_s=config.ttl_s / 3)
    alive = keyspace.alive(record.id)
    begin = [
        *beginning(keyspace, record, lease.id),
        txn.put(keyspace.session(record.id), opening.digest, lease=lease.id),
    ]
    # A second execution finds the first one's key, with our own lease.
    answer = await client.txn([txn.absent(alive)], begin, [txn.head(alive)], repeat=Repeat.SAFE)
    incarnation = answer.header.revision
    if not answer.succeeded:
        found = answer.responses[0].response_range.kvs
        if not found or found[0].lease != lease.id:
            await let_go(client, lease.id, whose=f"agent {record.id}")
            return None
        incarnation = found[0].create_revision
    registration = Registration(incarnation, lease.id)
    return Opened(record, registration, incarnation, True, lease.ttl_s, False, draining, answer.header)


async def _resume(
    client: EtcdClient, renewer: Renewer, keyspace: Keyspace, opening: Opening, found: _Found
) -> Opened | None:
    """Takes the session from whoever holds it, and renews its lease; None when it has changed or ended meanwhile."""
    assert found.alive is not None
    assert found.session is not None
    agent, registration = opening.record.id, Registration(found.alive.create_revision, found.alive.lease)
    seen, taken = found.session.mod_revision, True
    held = _held(keyspace, agent, registration.incarnation, seen)
    try:
        try:
            header = await _take(client, keyspace.session(agent), held, opening.digest, registration.lease)
        except NoSpace:
            header, taken = rpc.ResponseHeader(revision=seen), False
        if header is None:
            return None
        renewed = await renewer.renew(registration.lease, may_have_ended=True)
    except LeaseNotFound:
        return None
    record = AgentRecord.decode(agent, found.alive.value)
    return Opened(record, registration, header.revision, taken, renewed.TTL, True, found.draining, renewed.header)


def _held(keyspace: Keyspace, agent: str, incarnation: int, mark: int) -> list[rpc.Compare]:
    """Holds while nobody has opened the session of this incarnation anew."""
    return [txn.created_at(keyspace.alive(agent), incarnation), txn.modified_at(keyspace.session(agent), mark)]


async def _take(
    client: EtcdClient, session: bytes, held: list[rpc.Compare], digest: bytes, lease: int
) -> rpc.ResponseHeader | None:
    """Writes the session's key anew, so that nobody else can write; None when somebody has done so before."""
    # A second execution is refused, since the first one has changed the key: then it is looked again.
    answer = await client.txn(held, [txn.put(session, digest, lease=lease)], repeat=Repeat.SAFE)
    return answer.header if answer.succeeded else None


def _lost(agent: str, incarnation: int) -> AgentLost:
    return AgentLost(f"agent {agent!r} is not incarnation {incarnation} any more: register anew")
