"""What an operator does with an agent: let it drain, and have a dead one reaped at once.

Each of these is one transaction that compares what it relies on, so none of them acts on what was true a moment ago.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from election.agent_records import AgentRecord, DrainMark, ReapRequest, StateEntry, Tombstone
from election.errors import AgentAlive, AgentUnknown, CollectorSilent, EtcdError
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.etcd.lease import let_go
from election.keys import COLLECTOR_ELECTION, REGISTRATION, Keyspace, StateKey, TombstoneKey
from election.pb.etcd import rpc_pb2 as rpc
from election.records import Candidate, leader_of

REQUEST_TTL_S = 60
"""A request to reap that nobody has acted on is void after that."""

_ATTEMPTS = 5
"""How often something is read again because it changed in between."""

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Drained:
    """Whether an agent drains now, and whether that is new. `mark` is the present one, or the one that was removed."""

    agent: str
    draining: bool
    changed: bool
    mark: DrainMark | None
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Remains:
    """What a dead agent has left, at one revision: all of it is what a reap collects.

    `entries` are all keys that an agent can have, the registration among them; what others wrote beside them is not
    touched. `incarnation` is 0 for an agent that never registered.
    """

    agent: str
    incarnation: int
    record: AgentRecord | None
    entries: tuple[StateEntry, ...]
    draining: bool
    revision: int


@dataclass(frozen=True, slots=True)
class ReapAsked:
    """A request that is written, at `revision`, and stays until a collector has acted on it or its lease has ended."""

    request: ReapRequest
    lease: int
    revision: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a collector has made of a dead agent, on request."""

    agent: str
    incarnation: int
    tombstones: tuple[Tombstone, ...]
    revision: int = field(default=0, compare=False)


async def drain(client: EtcdClient, keyspace: Keyspace, agent: str, *, by: str) -> Drained:
    """Marks an agent as one that is to take nothing new; the mark outlives restarts of the agent.

    Raises:
        AgentUnknown: it is not alive, and never registered or is reaped; nothing was written.
    """
    key = keyspace.draining(agent)
    mark = DrainMark(by, client.clock.wall())
    # A repetition finds the mark of the first execution, which is told from that of somebody else by its value.
    marking = txn.nested([txn.absent(key)], [txn.put(key, mark.encode())], [txn.get(key)])
    answer, revision = await _if_known(client, keyspace, agent, marking)
    if (done := answer.response_txn).succeeded:
        return Drained(agent, True, True, mark, revision)
    value = done.responses[0].response_range.kvs[0].value
    return Drained(agent, True, value == mark.encode(), DrainMark.decode(value), revision)


async def undrain(client: EtcdClient, keyspace: Keyspace, agent: str) -> Drained:
    """Removes the mark again; raises as `drain` does. `changed` says whether there was one a moment before."""
    key = keyspace.draining(agent)
    before, _ = await client.get(key)
    _, revision = await _if_known(client, keyspace, agent, txn.delete(key))
    mark = DrainMark.decode(before.value) if before else None
    return Drained(agent, False, mark is not None, mark, revision)


async def remains(client: EtcdClient, keyspace: Keyspace, agent: str) -> Remains:
    """What a reap of this agent would collect, from one read.

    Raises:
        AgentAlive: it is alive, so nothing of it is ever reaped.
        AgentUnknown: it has no state.
    """
    prefix = keyspace.states(agent)
    reads = [txn.get(keyspace.alive(agent)), txn.get_prefix(prefix), txn.get(keyspace.draining(agent))]
    answer = await client.txn([], reads, repeat=Repeat.SAFE)
    alive, stored, marks = (response.response_range.kvs for response in answer.responses)
    if alive:
        raise AgentAlive(f"agent {agent!r} is alive: stop it first")
    entries = tuple(StateEntry.of(prefix, kv) for kv in stored if isinstance(keyspace.parse(kv.key), StateKey))
    if not entries:
        raise AgentUnknown(
            f"agent {agent!r} has no state in namespace {keyspace.namespace!r}: there is nothing to reap"
        )
    record, incarnation = None, 0
    for entry in entries:
        if entry.key == REGISTRATION:
            record = AgentRecord.decode(agent, entry.value)
            incarnation = record.incarnation_at(entry.mod_revision)
    return Remains(agent, incarnation, record, entries, bool(marks), answer.header.revision)


async def reap(client: EtcdClient, keyspace: Keyspace, agent: str, *, by: str, timeout_s: float) -> Reaped:
    """Has a dead agent collected now, and waits for it; what is not done by then is asked for no longer.

    Raises:
        AgentAlive, AgentUnknown: as `remains`.
        CollectorSilent: no collector has done it within `timeout_s`.
    """
    asked = await ask_to_reap(client, keyspace, agent, by=by)
    found = await await_reap(client, keyspace, asked, timeout_s=timeout_s)
    if not found:
        await remains(client, keyspace, agent)  # says why, when there is nothing to reap any more
        raise CollectorSilent(await _unanswered(client, keyspace, timeout_s))
    return Reaped(agent, asked.request.incarnation, found, asked.revision)


async def ask_to_reap(client: EtcdClient, keyspace: Keyspace, agent: str, *, by: str) -> ReapAsked:
    """Asks the collectors to reap a dead agent now, whatever the grace and the breaker say.

    The request counts for the incarnation that is dead at present, and only for as long as nobody registers.

    Raises:
        AgentAlive, AgentUnknown: as `remains`; nothing was written.
        EtcdError: `indefinite` when the request may have been written all the same.
    """
    for _ in range(_ATTEMPTS):
        found = await remains(client, keyspace, agent)
        request = ReapRequest(agent, found.incarnation, by, client.clock.wall())
        seen = found.entries[0]
        lease = (await client.lease_grant(REQUEST_TTL_S)).ID
        try:
            answer = await client.txn(
                [
                    txn.absent(keyspace.alive(agent)),
                    txn.nothing_newer(keyspace.states(agent), found.revision),
                    txn.modified_at(keyspace.state(agent, seen.key), seen.mod_revision),  # it has not been reaped
                ],
                [txn.put(keyspace.reap_request(agent), request.encode(), lease=lease)],
            )
        except EtcdError as error:
            if not error.indefinite:
                await _void(client, agent, lease)
            raise
        except asyncio.CancelledError:  # it may have been written, and nobody waits for it
            await _void(client, agent, lease)
            raise
        if answer.succeeded:
            return ReapAsked(request, lease, answer.header.revision)
        await _void(client, agent, lease)
    raise EtcdError(f"the state of agent {agent!r} changes all the time: nothing was asked for")


async def await_reap(
    client: EtcdClient, keyspace: Keyspace, asked: ReapAsked, *, timeout_s: float
) -> tuple[Tombstone, ...]:
    """The tombstones that a collector has made for the request; none when nobody has acted on it within `timeout_s`.

    The request is withdrawn then, and also when this is cancelled: nothing is reaped later that nobody waits for.
    """
    try:
        async with asyncio.timeout(timeout_s):
            # The reaping transaction deletes the request, so it is gone exactly when all is done, or it has expired.
            while (await client.get(keyspace.reap_request(asked.request.agent)))[0] is not None:
                await client.clock.sleep_s(_POLL_S)
    except TimeoutError:
        pass
    finally:
        await _void(client, asked.request.agent, asked.lease)
    found = []
    for kv in (await client.list(keyspace.tombstones(asked.request.agent))).kvs:
        key = keyspace.parse(kv.key)
        if not isinstance(key, TombstoneKey) or key.incarnation != asked.request.incarnation:
            continue
        if kv.mod_revision > asked.revision:
            found.append(Tombstone.of(key, kv.value))
    return tuple(sorted(found, key=lambda tombstone: tombstone.part))


async def _if_known(
    client: EtcdClient, keyspace: Keyspace, agent: str, operation: rpc.RequestOp
) -> tuple[rpc.ResponseOp, int]:
    """Does something if the agent is alive or has registered; it has to be harmless to repeat."""
    registered = txn.nested([txn.present(keyspace.state(agent, REGISTRATION))], [operation])
    answer = await client.txn(
        [txn.present(keyspace.alive(agent))], [operation], [registered], repeat=Repeat.SAFE
    )  # fmt: skip
    if answer.succeeded:
        return answer.responses[0], answer.header.revision
    inner = answer.responses[0].response_txn
    if not inner.succeeded:
        raise AgentUnknown(
            f"agent {agent!r} is not known in namespace {keyspace.namespace!r}: it is not alive and has no registration"
        )
    return inner.responses[0], answer.header.revision


async def _unanswered(client: EtcdClient, keyspace: Keyspace, timeout_s: float) -> str:
    queue = await client.list(keyspace.campaign(COLLECTOR_ELECTION))
    leader = leader_of(Candidate.of(COLLECTOR_ELECTION, kv) for kv in queue.kvs)
    if leader is None:
        return f"no collector answered in {timeout_s:g} s: run `election collect`"
    return f"collector {leader.id} did not answer in {timeout_s:g} s, and was asked no longer: look at its log"


async def _void(client: EtcdClient, agent: str, lease: int) -> None:
    await let_go(client, lease, whose=f"the request to reap {agent}")
