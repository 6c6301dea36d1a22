"""Reads from etcd who has state, since when who is gone, and who of those that are gone is a suspect."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

from election.agent_records import AgentRecord
from election.collector.suspects import Suspect
from election.errors import Compacted
from election.etcd.client import EtcdClient, Repeat
from election.etcd.listing import list_pages
from election.etcd.txn import get, names
from election.fields import printable
from election.keys import REGISTRATION, AliveKey, Keyspace, StateKey, range_end
from election.pb.etcd import rpc_pb2 as rpc

MOST_SUSPECTS = 60
"""How many agents are looked at in one transaction, which etcd lets have 128 operations."""

_FOREIGN_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Stored:
    """The agents that have state, and the first keys between it that are not ours."""

    agents: frozenset[str]
    foreign: tuple[str, ...]


async def stored(client: EtcdClient, keyspace: Keyspace, revision: int) -> Stored:
    """Who has state at a revision: names only, page by page; raises Compacted when it takes too long."""
    agents: set[str] = set()
    foreign: list[str] = []
    async with aclosing(list_pages(client, keyspace.state_prefix, keys_only=True, revision=revision)) as pages:
        async for page in pages:
            for kv in page.kvs:
                key = keyspace.parse(kv.key)
                if isinstance(key, StateKey):
                    agents.add(key.agent)
                elif len(foreign) < _FOREIGN_SHOWN:
                    foreign.append(printable(kv.key))
    return Stored(frozenset(agents), tuple(foreign))


async def when_gone(
    client: EtcdClient, keyspace: Keyspace, agents: frozenset[str], *, revision: int, given_up_at: int
) -> dict[str, int]:
    """A revision for each at which it was gone: an early one for those who were given up at `given_up_at`.

    Without etcd's history, a collector that has just begun would take them for agents that vanish now.
    """
    if not agents or not given_up_at:
        return dict.fromkeys(agents, revision)
    prefix = keyspace.alive_prefix
    request = rpc.RangeRequest(key=prefix, range_end=range_end(prefix), revision=given_up_at, keys_only=True)
    try:
        listed = await client.range(request)
    except Compacted:
        return dict.fromkeys(agents, revision)
    alive = {key.agent for kv in listed.kvs if isinstance(key := keyspace.parse(kv.key), AliveKey)}
    return {agent: revision if agent in alive else given_up_at for agent in agents}


async def look(client: EtcdClient, keyspace: Keyspace, gone: Mapping[str, int]) -> dict[str, Suspect]:
    """Those of a few agents who have state, as suspects whose grace is to begin.

    `gone` has for each a revision at which it was gone.
    """
    operations = [
        operation
        for agent in gone
        for operation in (get(keyspace.state(agent, REGISTRATION)), names(keyspace.states(agent), limit=1))
    ]
    looked = await client.txn([], operations, repeat=Repeat.SAFE)
    found = [response.response_range.kvs for response in looked.responses]
    suspects = {}
    for agent, registration, state in zip(gone, found[::2], found[1::2], strict=True):
        if state:
            record = AgentRecord.decode(agent, registration[0].value) if registration else AgentRecord(agent)
            written_at = registration[0].mod_revision if registration else 0
            suspects[agent] = Suspect(
                agent,
                record.incarnation_at(written_at),
                max(gone[agent], written_at),
                since_s=0.0,
                due_at_s=0.0,
                left=record.left_at is not None,
            )
    return suspects
