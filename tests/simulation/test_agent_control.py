"""What operators do with agents, on the fake etcd in virtual time: each is refused where it does not fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.message import Message

from election.agent_control import REQUEST_TTL_S, ask_to_reap, await_reap, drain, remains, undrain
from election.agent_records import AgentRecord, DrainMark, ReapRequest, StateEntry, Tombstone
from election.agent_restore import restore
from election.agents import Agent
from election.config import AgentConfig
from election.errors import AgentAlive, AgentUnknown, ConfigError, EtcdError, StateExists
from election.etcd.client import EtcdClient
from election.etcd.methods import RANGE, TXN, Method
from election.keys import REGISTRATION
from election.pb.etcd import rpc_pb2 as rpc
from election.token import Token
from tests.fake import statuses
from tests.fake.clock import virtual
from tests.simulation.world import KEYS, Machine, world

TTL_S = 6
W = "w"
RECORD = AgentRecord(W, "h:1", {"zone": "a"})


@asynccontextmanager
async def alive(machine: Machine) -> AsyncGenerator[Agent]:
    """The agent, registered, with a value in its state."""
    async with Agent(machine.client, KEYS, W, config=AgentConfig(ttl_s=TTL_S)) as agent:
        await agent.put("task", "x")
        yield agent


async def die(machine: Machine) -> int:
    """What a dead agent leaves; returns its incarnation."""
    return (await put(machine.client, {REGISTRATION: RECORD.encode(), "task": b"x"})).header.revision


async def put(client: EtcdClient, values: Mapping[str, bytes], *, liveness: bool = False) -> rpc.TxnResponse:
    """Writes state, with a liveness key or without, as nobody compares anything."""
    puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=KEYS.state(W, k), value=v)) for k, v in values.items()]
    if liveness:
        puts.append(rpc.RequestOp(request_put=rpc.PutRequest(key=KEYS.alive(W), value=RECORD.encode())))
    return await client.txn([], puts)


async def stored(client: EtcdClient) -> dict[str, bytes]:
    """The agent's state, the registration included."""
    prefix = KEYS.states(W)
    return {kv.key[len(prefix) :].decode(): kv.value for kv in (await client.list(prefix)).kvs}


async def bury(
    client: EtcdClient, values: Mapping[str, bytes], *, incarnation: int = 7, part: int = 0, record: bool = True
) -> int:
    """Writes a tombstone; returns the revision."""
    entries = tuple(StateEntry(name, value, 5) for name, value in values.items())
    tombstone = Tombstone(
        W, incarnation, client.clock.wall(), "c", Token(0, 3), entries, part, agent_record=RECORD if record else None
    )
    return (await client.put(KEYS.tombstone(W, incarnation, part), tombstone.encode())).header.revision


def before(machine: Machine, number: int, act: Callable[[], Awaitable[object]]) -> None:
    """Lets something happen right before a transaction that compares reaches etcd: the `number`th, counted from 1."""
    seen = 0

    async def hook(_: int, method: Method[Any, Any], request: Message) -> None:
        nonlocal seen
        if isinstance(request, rpc.TxnRequest) and request.compare:
            seen += 1
            if seen == number:
                await act()

    machine.transport.before_call = hook


def lose_answer(machine: Machine) -> None:
    """The answer of the next transaction does not arrive, although it was executed."""

    async def hook(_: int, method: Method[Any, Any], answer: Message) -> None:
        if method.path == TXN.path:
            machine.transport.after_call = None
            raise statuses.SOCKET_CLOSED.error()

    machine.transport.after_call = hook


# --- drain -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_live_agent_drains_until_it_is_told_not_to() -> None:
    """Both say whether they changed anything, and who asked for it first."""
    async with world().machine() as machine, alive(machine):
        client = machine.client
        first = await drain(client, KEYS, W, by="ann")
        again = await drain(client, KEYS, W, by="bob")
        assert (first.draining, first.changed, again.draining, again.changed) == (True, True, True, False)
        assert first.mark == again.mark == DrainMark("ann", first.mark.at if first.mark else None)
        found, _ = await client.get(KEYS.draining(W))
        assert found is not None
        assert (found.lease, DrainMark.decode(found.value)) == (0, first.mark)
        gone = await undrain(client, KEYS, W)
        assert (gone.draining, gone.changed, gone.mark) == (False, True, first.mark)
        assert (await client.get(KEYS.draining(W)))[0] is None
        assert not (await undrain(client, KEYS, W)).changed


@virtual
async def test_a_suspect_can_be_marked_so_that_it_drains_when_it_is_back() -> None:
    """Its registration is there, so it is known."""
    async with world().machine() as machine:
        await die(machine)
        assert (await drain(machine.client, KEYS, W, by="ann")).changed


@virtual
async def test_an_agent_that_nobody_knows_cannot_be_marked() -> None:
    """Neither one that never was, nor one of which only foreign state or a tombstone is left."""
    async with world().machine() as machine:
        client = machine.client
        await put(client, {"task": b"x"})
        await bury(client, {"task": b"x"})
        await client.put(KEYS.alive("other"), b"")
        for asked in (drain(client, KEYS, W, by="ann"), undrain(client, KEYS, W)):
            with pytest.raises(AgentUnknown, match="'w' is not known in namespace 'sim'"):
                await asked
        assert (await client.get(KEYS.draining(W)))[0] is None
        with pytest.raises(ConfigError, match="not a valid name"):
            await drain(client, KEYS, "a/b", by="ann")


@virtual
async def test_a_drain_whose_answer_is_lost_is_still_told_as_the_one_that_did_it() -> None:
    """It is sent again, and finds its own mark."""
    async with world().machine() as machine, alive(machine):
        lose_answer(machine)
        drained = await drain(machine.client, KEYS, W, by="ann")
        assert machine.transport.after_call is None
        assert drained.changed


@virtual
async def test_an_agent_that_is_reaped_right_before_the_mark_leaves_none() -> None:
    """The transaction that marks it compares what it was known by."""
    async with world().machine() as machine:
        await die(machine)
        before(machine, 1, lambda: machine.client.delete(KEYS.state(W, REGISTRATION)))
        with pytest.raises(AgentUnknown):
            await drain(machine.client, KEYS, W, by="ann")
        assert (await machine.client.get(KEYS.draining(W)))[0] is None


# --- reap ------------------------------------------------------------------------------------------------------------


@virtual
async def test_what_would_be_reaped_is_told_from_one_read() -> None:
    """All keys of an agent's state with their values, and no key of others."""
    async with world().machine() as machine:
        incarnation = await die(machine)
        await machine.client.put(KEYS.states(W) + b"a/b", b"foreign")
        await machine.client.put(KEYS.state("w2", "task"), b"y")
        reads = 0

        async def count(_: int, method: Method[Any, Any], __: Message) -> None:
            nonlocal reads
            reads += method.path in (TXN.path, RANGE.path)

        machine.transport.before_call = count
        found = await remains(machine.client, KEYS, W)
        assert reads == 1
        assert (found.incarnation, found.record, found.draining) == (incarnation, RECORD, False)
        assert {entry.key: entry.value for entry in found.entries} == {REGISTRATION: RECORD.encode(), "task": b"x"}


@virtual
async def test_a_request_to_reap_names_the_incarnation_that_is_dead() -> None:
    """Also one that is in the record, since the agent left; it is on a short lease of its own."""
    async with world().machine() as machine:
        client = machine.client
        left = AgentRecord(W, left_at=client.clock.wall(), incarnation=3)
        for value, incarnation in ((RECORD.encode(), None), (left.encode(), 3)):
            revision = (await put(client, {REGISTRATION: value})).header.revision
            asked = await ask_to_reap(client, KEYS, W, by="ann")
            found, _ = await client.get(KEYS.reap_request(W))
            assert found is not None
            assert (found.lease, found.mod_revision) == (asked.lease, asked.revision)
            assert ReapRequest.decode(W, found.value) == asked.request
            assert (asked.request.incarnation, asked.request.by) == (incarnation or revision, "ann")
        assert (await client.lease_time_to_live(asked.lease)).grantedTTL == REQUEST_TTL_S
        await asyncio.sleep(REQUEST_TTL_S + 2)
        assert (await client.get(KEYS.reap_request(W)))[0] is None


@virtual
async def test_a_live_agent_is_never_asked_to_be_reaped() -> None:
    """Nor one that comes alive right before the request; and no lease is left behind."""
    async with world().machine() as machine:
        client = machine.client
        async with alive(machine):
            for refused in (ask_to_reap(client, KEYS, W, by="ann"), remains(client, KEYS, W)):
                with pytest.raises(AgentAlive, match="agent 'w' is alive: stop it first"):
                    await refused
            leases = len((await client.leases()).leases)
        await die(machine)
        before(machine, 1, lambda: client.put(KEYS.alive(W), b""))
        with pytest.raises(AgentAlive):
            await ask_to_reap(client, KEYS, W, by="ann")
        assert (await client.get(KEYS.reap_request(W)))[0] is None
        assert len((await client.leases()).leases) == leases - 1


@virtual
async def test_an_agent_without_state_cannot_be_reaped() -> None:
    """Neither when it never had any, nor when it is collected right before the request."""
    async with world().machine() as machine:
        client = machine.client
        with pytest.raises(AgentUnknown, match="'w' has no state in namespace 'sim'"):
            await ask_to_reap(client, KEYS, W, by="ann")
        await put(client, {"task": b"x"})  # it never registered
        before(machine, 1, lambda: client.delete(KEYS.state(W, "task")))
        with pytest.raises(AgentUnknown):
            await ask_to_reap(client, KEYS, W, by="ann")
        assert (await client.get(KEYS.reap_request(W)))[0] is None


@virtual
async def test_a_request_is_for_the_incarnation_that_was_left_last() -> None:
    """An agent that was there for a moment, right before the request, is another one."""
    async with world().machine() as machine:
        await put(machine.client, {"a": b"untouched"})
        await die(machine)
        later: list[int] = []

        async def live_and_die() -> None:
            later.append(await die(machine))

        before(machine, 1, live_and_die)
        asked = await ask_to_reap(machine.client, KEYS, W, by="ann")
        assert [asked.request.incarnation] == later


@virtual
async def test_a_request_whose_fate_is_not_known_keeps_its_lease() -> None:
    """It fails as indefinite: a collector may act on it, until its lease has ended."""
    async with world().machine() as machine:
        await die(machine)
        lose_next_write(machine)
        with pytest.raises(EtcdError) as failed:
            await ask_to_reap(machine.client, KEYS, W, by="ann")
        assert failed.value.indefinite
        assert (await machine.client.get(KEYS.reap_request(W)))[0] is not None


def lose_next_write(machine: Machine) -> None:
    """The answer of the next transaction that writes does not arrive."""

    async def lose() -> None:
        lose_answer(machine)

    before(machine, 1, lose)


@virtual
async def test_who_waits_for_a_reap_gets_its_tombstones() -> None:
    """Those of this reap alone, all parts, once the request is gone."""
    async with world().machine() as machine:
        client = machine.client
        incarnation = await die(machine)
        await bury(client, {"old": b"x"}, incarnation=incarnation, part=2)
        await bury(client, {"old": b"x"}, incarnation=1)
        asked = await ask_to_reap(client, KEYS, W, by="ann")

        async def collect() -> None:
            await bury(client, {"task": b"x"}, incarnation=incarnation)
            await asyncio.sleep(3)
            await bury(client, {"more": b"x"}, incarnation=incarnation, part=1)
            await bury(client, {"other": b"x"}, incarnation=1)
            await client.delete(KEYS.reap_request(W))

        collecting = asyncio.create_task(collect())
        found = await await_reap(client, KEYS, asked, timeout_s=10)
        await collecting
        assert [(tombstone.part, tombstone.collected[0].key) for tombstone in found] == [(0, "task"), (1, "more")]
        assert asyncio.get_running_loop().time() < 4


@virtual
async def test_a_request_that_nobody_acts_on_is_withdrawn() -> None:
    """So nothing is reaped later on, when nobody expects it."""
    async with world().machine() as machine:
        incarnation = await die(machine)
        await bury(machine.client, {"task": b"x"}, incarnation=incarnation)
        asked = await ask_to_reap(machine.client, KEYS, W, by="ann")
        assert await await_reap(machine.client, KEYS, asked, timeout_s=10) == ()
        assert (await machine.client.get(KEYS.reap_request(W)))[0] is None
        asked = await ask_to_reap(machine.client, KEYS, W, by="ann")
        waiting = asyncio.create_task(await_reap(machine.client, KEYS, asked, timeout_s=10))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await machine.client.get(KEYS.reap_request(W)))[0] is None


@virtual
async def test_a_request_whose_asker_goes_before_the_answer_is_there_is_withdrawn() -> None:
    """It was written, and the asker does not know it."""
    async with world().machine() as machine:
        await die(machine)
        asking = asyncio.create_task(ask_to_reap(machine.client, KEYS, W, by="ann"))

        async def go(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == TXN.path and (await machine.client.get(KEYS.reap_request(W)))[0] is not None:
                machine.transport.after_call = None
                asking.cancel()
                await asyncio.sleep(0)

        machine.transport.after_call = go
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert machine.transport.after_call is None
        assert (await machine.client.get(KEYS.reap_request(W)))[0] is None


# --- restore ---------------------------------------------------------------------------------------------------------

VALUES = {"binary": bytes(range(256)), "empty": b"", "task": b"x"}


@virtual
async def test_what_was_collected_is_put_back_byte_by_byte() -> None:
    """All parts of the newest incarnation, and a registration that makes it a suspect of that incarnation."""
    async with world().machine() as machine:
        client = machine.client
        await bury(client, {"task": b"old"}, incarnation=6)
        await bury(client, {"task": b"x"})
        await bury(client, {"binary": VALUES["binary"], "empty": b""}, part=1, record=False)
        await bury(client, {"stray": b"y"}, incarnation=0, record=False)
        done = await restore(client, KEYS, W)
        assert (done.incarnation, done.alive, done.unchanged) == (7, False, ())
        assert set(done.written) == {*VALUES, REGISTRATION}
        found = await stored(client)
        record = AgentRecord.decode(W, found.pop(REGISTRATION))
        assert found == VALUES
        assert (record.incarnation, record.address, record.labels) == (7, "h:1", {"zone": "a"})
        assert (await remains(client, KEYS, W)).incarnation == 7
        assert len((await client.list(KEYS.tombstones(W))).kvs) == 4
        again = await restore(client, KEYS, W)
        assert (again.written, set(again.unchanged)) == ((), {*VALUES, REGISTRATION})


@virtual
async def test_of_two_values_that_were_collected_of_one_key_the_newer_is_put_back() -> None:
    """An agent that was restored and collected again can have the key in two parts."""
    async with world().machine() as machine:
        await bury(machine.client, {"task": b"old"}, part=1)
        await bury(machine.client, {"task": b"new"})
        await restore(machine.client, KEYS, W)
        assert (await stored(machine.client))["task"] == b"new"


@virtual
async def test_many_small_values_are_put_back() -> None:
    """More than etcd takes in one transaction."""
    async with world().machine() as machine:
        values = {f"k{number}": b"x" for number in range(500)}
        await bury(machine.client, values)
        assert set((await restore(machine.client, KEYS, W)).written) == {*values, REGISTRATION}
        assert len(await stored(machine.client)) == 501


@virtual
async def test_an_older_incarnation_is_restored_by_name() -> None:
    """One that has no tombstone is refused, with those that have."""
    async with world().machine() as machine:
        client = machine.client
        with pytest.raises(AgentUnknown, match="agent 'w' has no tombstone in namespace 'sim'"):
            await restore(client, KEYS, W)
        await bury(client, {"task": b"old"}, incarnation=6)
        await bury(client, {"task": b"x"})
        with pytest.raises(AgentUnknown, match="no tombstone of incarnation 5: there are those of 6, 7"):
            await restore(client, KEYS, W, incarnation=5)
        assert (await restore(client, KEYS, W, incarnation=6)).incarnation == 6
        assert (await stored(client))["task"] == b"old"


@virtual
async def test_a_restore_overwrites_nothing_that_it_is_not_told_to() -> None:
    """It names the keys that have other values, and writes none at all."""
    async with world().machine() as machine:
        client = machine.client
        await bury(client, VALUES)
        there = {"task": b"mine", "empty": b""}
        await put(client, there)
        with pytest.raises(StateExists, match="other values for task: nothing is put back") as refused:
            await restore(client, KEYS, W)
        assert refused.value.keys == ("task",)
        assert await stored(client) == there
        done = await restore(client, KEYS, W, overwrite=True)
        assert (set(done.written), done.unchanged) == ({"binary", "task", REGISTRATION}, ("empty",))
        assert (await stored(client))["task"] == b"x"


@virtual
async def test_the_registration_of_another_life_is_not_overwritten_either() -> None:
    """That of an incarnation which is dead as well, and newer."""
    async with world().machine() as machine:
        await bury(machine.client, VALUES)
        await die(machine)
        with pytest.raises(StateExists) as refused:
            await restore(machine.client, KEYS, W)
        assert refused.value.keys == (REGISTRATION,)


@virtual
async def test_a_live_agent_gets_its_state_back_and_keeps_its_registration() -> None:
    """It is the same incarnation as before."""
    async with world().machine() as machine:
        await bury(machine.client, {"lost": b"y"})
        async with alive(machine) as agent:
            registration = (await stored(machine.client))[REGISTRATION]
            done = await restore(machine.client, KEYS, W)
            assert (done.written, done.alive) == (("lost",), True)
            assert await agent.items() == {"lost": b"y", "task": b"x"}
            assert (await stored(machine.client))[REGISTRATION] == registration


@virtual
async def test_what_an_agent_writes_meanwhile_is_not_overwritten() -> None:
    """The transaction compares each key with what was seen."""
    for overwrite, then in ((False, b"mine"), (True, b"x")):
        async with world().machine() as machine:
            client = machine.client
            await bury(client, VALUES)
            before(machine, 1, lambda: put(client, {"task": b"mine"}))  # noqa: B023 - used in this turn
            if overwrite:
                await restore(client, KEYS, W, overwrite=True)  # looked again, and was told to
            else:
                with pytest.raises(StateExists):
                    await restore(client, KEYS, W)
            assert (await stored(client))["task"] == then


@virtual
async def test_an_agent_that_comes_back_meanwhile_keeps_its_registration() -> None:
    """The transaction compares the liveness key, seen as absent."""
    async with world().machine() as machine:
        client = machine.client
        await bury(client, VALUES)
        before(machine, 1, lambda: client.put(KEYS.alive(W), b""))
        done = await restore(client, KEYS, W)
        assert (done.alive, set(done.written)) == (True, set(VALUES))
        assert REGISTRATION not in await stored(client)


@virtual
async def test_state_is_given_to_the_life_that_was_seen_only() -> None:
    """An agent that died and is collected right before the write, or has another life, is looked at again."""
    async with world().machine() as machine:
        client = machine.client
        await bury(client, VALUES)
        await put(client, {REGISTRATION: b"one"}, liveness=True)
        before(machine, 1, lambda: client.delete(KEYS.alive(W)))
        with pytest.raises(StateExists) as refused:  # now it is a suspect, and its registration would be replaced
            await restore(client, KEYS, W)
        assert refused.value.keys == (REGISTRATION,)
        assert await stored(client) == {REGISTRATION: b"one"}


MANY = {f"k{number:03}": bytes(60_000) for number in range(300)}
"""17 MiB: more than one transaction takes, by bytes, and more keys than comparisons."""


async def bury_many(client: EtcdClient) -> None:
    names = list(MANY)
    for part in range(20):
        chosen = {name: MANY[name] for name in names[part * 15 : part * 15 + 15]}
        await bury(client, chosen, part=part, record=part == 0)


@virtual
async def test_a_large_restore_that_is_interrupted_is_repeated() -> None:
    """The registration comes last, so half a restore belongs to no incarnation; nothing of it is in the way."""
    async with world().machine() as machine:
        client = machine.client
        await bury_many(client)
        repeated = asyncio.create_task(restore(client, KEYS, W))
        before(machine, 5, lambda: asyncio.sleep(0, repeated.cancel()))
        with pytest.raises(asyncio.CancelledError):
            await repeated
        machine.transport.before_call = None
        half = await stored(client)
        assert 0 < len(half) < len(MANY)
        assert REGISTRATION not in half
        done = await restore(client, KEYS, W)
        assert {*done.written, *done.unchanged} == {*MANY, REGISTRATION}
        assert set(done.unchanged) == set(half)
        found = await stored(client)
        assert AgentRecord.decode(W, found.pop(REGISTRATION)).incarnation == 7
        assert found == MANY


@virtual
async def test_what_is_collected_in_the_middle_of_a_restore_is_put_back_as_well() -> None:
    """A collector with a short grace finds half of it; each transaction compares that nothing was collected since."""
    async with world().machine() as machine:
        client = machine.client
        await bury_many(client)

        async def collect() -> None:
            half = await stored(client)
            for name in half:
                await client.delete(KEYS.state(W, name))
            await bury(client, dict.fromkeys(half, b""), incarnation=0, record=False)

        before(machine, 5, collect)
        await restore(client, KEYS, W)
        found = await stored(client)
        del found[REGISTRATION]
        assert found == MANY


@virtual
async def test_what_the_agent_writes_in_the_middle_of_a_restore_stays() -> None:
    """What was put back before is not put back again over what is newer."""
    async with world().machine() as machine:
        client = machine.client
        await bury_many(client)
        first, last = next(iter(MANY)), list(MANY)[-1]
        await put(client, {}, liveness=True)

        async def live() -> None:
            assert first in await stored(client)
            await put(client, {first: b"newer", last: MANY[last]})

        before(machine, 3, live)
        done = await restore(client, KEYS, W)
        assert done.alive
        assert await stored(client) == {**MANY, first: b"newer"}


@virtual
async def test_a_restore_whose_answers_are_lost_goes_on() -> None:
    """A transaction that is sent again is refused, and what the first one wrote is found."""
    async with world().machine() as machine:
        await bury(machine.client, VALUES)
        lose_next_write(machine)
        done = await restore(machine.client, KEYS, W)
        assert machine.transport.after_call is None
        assert {*done.written, *done.unchanged} == {*VALUES, REGISTRATION}
        found = await stored(machine.client)
        del found[REGISTRATION]
        assert found == VALUES


@virtual
async def test_restoring_an_agent_that_changes_all_the_time_ends() -> None:
    """With an error that says so, after a few attempts."""
    async with world().machine() as machine:
        client = machine.client
        await bury(client, VALUES)
        turns = iter(range(100))

        async def hook(_: int, method: Method[Any, Any], request: Message) -> None:
            if isinstance(request, rpc.TxnRequest) and request.compare:
                machine.transport.before_call = None
                await bury(client, {}, incarnation=0, part=next(turns))
                machine.transport.before_call = hook

        machine.transport.before_call = hook
        with pytest.raises(EtcdError, match="changes all the time"):
            await restore(client, KEYS, W)
        assert next(turns) < 10
