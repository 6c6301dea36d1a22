"""Watches of agents that are interrupted: each reap is told once, with what was collected, wherever it goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from election.agent_records import Agent, AgentState
from election.client.told import ToldAgents
from election.errors import ConfigError, RolledBack, ViewStale
from election.etcd import methods
from election.etcd.methods import Method, Req, Resp
from election.etcd.transport import Metadata
from election.reader import AgentEvent, AgentEventKind
from election.views import View
from tests.fake.clock import virtual
from tests.fake.transport import FakeTransport
from tests.simulation.scripted_fleet import Fleet, Watcher, reaped_in
from tests.simulation.world import KEYS, Machine, World, hurt, world

SEEDS = range(60)
FAULTS = ("cut off", "mend", "mend", "stop", "pause", "resume", "resume", "compact", "move")
SETTLED_S = 20.0


@asynccontextmanager
async def viewing(here: World) -> AsyncGenerator[tuple[Machine, View, Fleet]]:
    """A view on a machine of its own, and a fleet that is written from another one."""
    async with (
        here.machine() as elsewhere,
        here.machine() as machine,
        View(machine.client, KEYS, rng=here.rng("view")) as view,
    ):
        yield machine, view, Fleet(elsewhere.client, KEYS)


@asynccontextmanager
async def watching(view: View, after: int | None = None) -> AsyncGenerator[list[AgentEvent]]:
    """What a watch tells, as it comes."""
    events: list[AgentEvent] = []

    async def read() -> None:
        async with aclosing(view.watch_agents(after=after)) as told:
            async for event in told:
                events.append(event)  # noqa: PERF401 - it is read while it grows

    reading = asyncio.create_task(read())
    try:
        await asyncio.sleep(0.1)
        yield events
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()


def name_of(event: AgentEvent) -> str:
    return event.agent.id if event.agent else ""


def short(events: list[AgentEvent]) -> list[tuple[str, str, int]]:
    """Kind, agent and revision of each."""
    return [(event.kind.value, name_of(event), event.source.revision) for event in events]


async def told(view: View, after: int | None = None) -> list[AgentEvent]:
    """What a watch begins with, up to SYNCED."""
    events = []
    async with aclosing(view.watch_agents(after=after)) as stream:
        async for event in stream:
            events.append(event)
            if event.kind is AgentEventKind.SYNCED:
                return events
    raise AssertionError("the watch has ended")


# --- going on --------------------------------------------------------------------------------------------------


@virtual
async def test_a_watch_goes_on_with_what_was_reaped_meanwhile() -> None:
    """In order, each with its revision and what it held; then who is there, and then what happens."""
    async with viewing(world()) as (_, view, fleet):
        for name in "abc":
            await fleet.join(name)
        await fleet.die("a", "b")
        first = await fleet.reap("a")
        await fleet.store("b", "late", "x")
        second = await fleet.reap("b")
        again = await fleet.join("a")
        await asyncio.sleep(0.1)
        async with watching(view, after=first - 1) as events:
            died = (await fleet.client.delete(KEYS.alive("c"))).header.revision
            await asyncio.sleep(0.1)
            assert short(events) == [
                ("reaped", "a", first),
                ("reaped", "b", second),
                ("present", "a", died - 1),
                ("present", "c", died - 1),
                ("synced", "", died - 1),
                ("stale", "c", died),
            ]
            assert [tombstone for _, tombstone in reaped_in(events)] == list(fleet.reaped.values())
            agent = events[0].agent
            assert agent is not None
            assert (agent.state, agent.address, agent.state_keys) == (AgentState.REAPED, "a:1", ("task",))
            assert agent.incarnation < again
        assert short(await told(view, after=first))[:2] == [("reaped", "b", second), ("present", "a", died)]
        assert [event.kind for event in await told(view, after=second)].count(AgentEventKind.REAPED) == 0
        assert [event.kind for event in await told(view, after=0)].count(AgentEventKind.REAPED) == 2
        assert [event.kind for event in await told(view)].count(AgentEventKind.REAPED) == 0


@virtual
async def test_a_reader_that_lags_is_told_how_old_each_event_is() -> None:
    """What waited, and has newer ones behind it, is as old as that; the newest is as old as the view."""
    async with viewing(world()) as (_, view, fleet):
        streams = [view.watch_agents() for _ in range(2)]
        assert [(await anext(stream)).kind for stream in streams] == [AgentEventKind.SYNCED] * 2
        await fleet.join("a")
        await fleet.die("a")
        await asyncio.sleep(4)
        await fleet.join("b")
        await asyncio.sleep(0.1)
        events = []
        for _ in range(3):
            event, same = [await anext(stream) for stream in streams]
            assert same is event
            events.append(event)
        assert [event.kind.value for event in events] == ["joined", "stale", "joined"]
        assert all(4 < event.source.age_s < 6 for event in events[:2])
        assert events[2].source.age_s == view.source().age_s < 2
        await asyncio.sleep(4)
        await fleet.die("b")
        await asyncio.sleep(0.1)
        for stream in streams:
            assert (await anext(stream)).source.age_s == view.source().age_s < 2
            await stream.aclose()


@virtual
async def test_what_a_watch_begins_with_is_as_old_as_it_is_when_it_is_told() -> None:
    """As the view where nothing has changed since; as the time since then where something has."""
    async with viewing(world()) as (machine, view, fleet):
        for name in "abc":
            await fleet.join(name)
        await fleet.die("c")
        reaped = await fleet.reap("c")
        await asyncio.sleep(0.1)
        async with aclosing(view.watch_agents(after=reaped - 1)) as events:
            assert (await anext(events)).source.age_s < 2
            machine.transport.cut()
            await asyncio.sleep(4)
            unchanged = await anext(events)
            assert unchanged.kind is AgentEventKind.PRESENT
            assert unchanged.source.age_s == view.source().age_s > 3.5
            machine.transport.mend()
            await asyncio.sleep(4)
            assert view.source().age_s < 2
            await fleet.die("a")
            await asyncio.sleep(0.1)
            assert view.source().age_s < 2
            late = [await anext(events) for _ in range(2)]
            assert [event.kind for event in late] == [AgentEventKind.PRESENT, AgentEventKind.SYNCED]
            assert all(event.source.age_s > 8 for event in late)
            stale = await anext(events)
            assert stale.kind is AgentEventKind.STALE
            assert stale.source.age_s == view.source().age_s < 2


@virtual
async def test_what_was_reaped_before_is_as_old_as_the_watch() -> None:
    """Reading its tombstone takes a while, in which the view goes on."""
    async with viewing(world()) as (machine, view, fleet):
        await fleet.join("a")
        await fleet.die("a")
        await fleet.reap("a")
        await asyncio.sleep(2)

        async def slow(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path != methods.WATCH.path:
                await asyncio.sleep(0.8)

        machine.transport.after_call = slow
        age_s = view.source().age_s
        async with aclosing(view.watch_agents(after=0)) as events:
            reap = await anext(events)
            assert reap.kind is AgentEventKind.REAPED
            assert reap.source.age_s >= age_s + 0.8


@virtual
async def test_only_the_last_reap_of_a_revision_completes_it() -> None:
    """So whoever goes on after any of them misses none, live as well as from the tombstones."""
    async with viewing(world()) as (_, view, fleet):
        for name in "abc":
            await fleet.join(name)
        await fleet.die(*"abc")
        async with watching(view) as events:
            reaped = await fleet.reap(*"abc")
            await asyncio.sleep(0.1)
            live = [event for event in events if event.kind is AgentEventKind.REAPED]
        expected = [("reaped", "a", reaped - 1), ("reaped", "b", reaped - 1), ("reaped", "c", reaped)]
        assert short(live) == expected
        assert short(await told(view, after=live[0].source.revision))[:3] == expected
        assert reaped_in(await told(view, after=live[-1].source.revision)) == []


@virtual
async def test_each_part_of_a_state_is_told_once() -> None:
    """The agent is suspect until the last one, and has its incarnation throughout."""
    async with viewing(world()) as (_, view, fleet):
        incarnation = await fleet.join("a", zone="x")
        await fleet.store("a", "more", "y")
        await fleet.die("a")
        async with watching(view) as events:
            part = await fleet.reap_part("a", "more")
            await asyncio.sleep(0.1)
            [suspect] = (await view.agents()).value
            assert (suspect.state, suspect.incarnation) == (AgentState.SUSPECT, incarnation)
            in_the_middle = [event for event in await told(view, after=part - 1) if event.agent]
            await fleet.reap("a")
            await asyncio.sleep(0.1)
            parts = [event for event in events if event.kind is AgentEventKind.REAPED]
        assert [event.kind.value for event in in_the_middle] == ["reaped", "present"]
        states = [event.agent.state for event in (*in_the_middle[:1], *parts) if event.agent]
        assert states == [AgentState.SUSPECT, AgentState.SUSPECT, AgentState.REAPED]
        assert [each.part for _, each in reaped_in(parts)] == [0, 1]
        assert [entry.key for _, each in reaped_in(parts) for entry in each.collected] == ["more", "task"]
        assert reaped_in(await told(view, after=part - 1)) == reaped_in(parts)


@virtual
async def test_a_tombstone_whose_retention_is_over_is_not_told() -> None:
    """Also when it goes while the others are read."""
    async with viewing(world()) as (machine, view, fleet):
        for name in "abc":
            await fleet.join(name)
            await fleet.die(name)
            await fleet.reap(name)
        reaps = list(fleet.reaped)
        await fleet.forget(reaps[0])
        await asyncio.sleep(0.1)

        async def before(_: int, method: Method[Any, Any], request: Message) -> None:
            if method.path == methods.TXN.path:
                machine.transport.before_call = None
                await fleet.forget(reaps[1])

        machine.transport.before_call = before
        assert [reap for reap, _ in reaped_in(await told(view, after=0))] == [reaps[2]]


@virtual
async def test_a_tombstone_that_was_put_again_is_told_as_it_is_now() -> None:
    """In its new place, also by a view that has just been opened."""
    async with viewing(world()) as (machine, view, fleet):
        for name in "ab":
            await fleet.join(name)
            await fleet.die(name)
            await fleet.reap(name)
        [first, second] = fleet.reaped
        value, _ = await fleet.client.get(KEYS.tombstone(*first))
        assert value is not None
        again = (await fleet.client.put(value.key, value.value)).header.revision
        await asyncio.sleep(0.1)
        async with View(machine.client, KEYS, rng=random.Random(0)) as fresh:
            for each in (view, fresh):
                assert [reap for reap, _ in reaped_in(await told(each, after=0))] == [second, first]
                assert short(await told(each, after=again - 1))[0] == ("reaped", "a", again)


@virtual
async def test_an_agent_that_leaves_nothing_behind_is_told_to_be_gone() -> None:
    """As REAPED with a tombstone that was never put, so that nobody waits for its end."""
    async with viewing(world()) as (_, view, fleet):
        incarnation = await fleet.join("a", zone="x")
        async with watching(view) as events:
            await fleet.leave("a")
            await asyncio.sleep(0.1)
        end = events[-1]
        assert end.kind is AgentEventKind.REAPED
        assert end.tombstone is not None
        assert (end.tombstone.incarnation, end.tombstone.reaped_at, end.tombstone.collected) == (incarnation, None, ())
        assert end.agent is not None
        assert dict(end.agent.labels) == {"zone": "x"}


# --- views that are behind, and histories that were set back ------------------------------------------------------


@virtual
async def test_a_view_that_has_not_come_so_far_waits_until_it_has() -> None:
    """Also where nothing happens any more that it could be told: etcd says how far its watch is."""
    async with viewing(world()) as (_, view, fleet):
        await fleet.join("a")
        await asyncio.sleep(0.1)
        for _ in range(5):
            seen = (await fleet.client.put(b"elsewhere", b"")).header.revision
        before_s = asyncio.get_running_loop().time()
        events = await told(view, after=seen)
        assert asyncio.get_running_loop().time() - before_s < 1.5
        assert short(events) == [("present", "a", seen), ("synced", "", seen)]


@virtual
async def test_signs_of_life_are_never_of_before_what_was_told() -> None:
    """Whoever goes on after one is told nothing again, and misses nothing."""
    async with viewing(world()) as (_, view, fleet):
        await fleet.join("a")
        seen = (await fleet.client.put(b"elsewhere", b"")).header.revision
        async with aclosing(view.watch_agents(after=seen, heartbeat_s=1.0)) as events:
            began = [await anext(events) for _ in range(4)]
            assert short(began) == [
                ("present", "a", seen),
                ("synced", "", seen),
                ("heartbeat", "", seen),
                ("heartbeat", "", seen),
            ]
            await fleet.die("a")
            assert short([await anext(events), await anext(events)]) == [
                ("stale", "a", seen + 1),
                ("heartbeat", "", seen + 1),
            ]


@virtual
async def test_a_view_that_stays_behind_says_so() -> None:
    """It tells nothing of a past that its caller has left behind; what it missed, it tells when it has caught up."""
    here = world()
    async with viewing(here) as (machine, view, fleet), watching(view) as events:
        await fleet.join("a")
        await fleet.die("a")
        await asyncio.sleep(0.1)
        told_to = events[-1].source.revision

        async def slow(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == methods.WATCH.path:
                await asyncio.sleep(8)

        machine.transport.after_call = slow
        reaped = await fleet.reap("a")
        with pytest.raises(ViewStale, match=rf"the view is at revision \d+ of etcd, and {reaped} has been seen"):
            await told(view, after=reaped)
        machine.transport.after_call = None
        await asyncio.sleep(10)
        assert short(events)[-1] == ("reaped", "a", reaped)
        assert short(await told(view, after=told_to))[0] == ("reaped", "a", reaped)


@virtual
async def test_a_history_that_was_set_back_is_told() -> None:
    """Etcd has not come to what the caller has seen: it has to begin again, and knows it."""
    here = world()
    async with viewing(here) as (_, view, fleet):
        await fleet.join("a")
        snapshot = here.etcd.snapshot()
        watcher = Watcher()
        watch = asyncio.create_task(watcher.watch(view))
        for _ in range(20):
            await fleet.store("a", "task", "x")
        await fleet.join("b")
        await fleet.die("a")
        seen = await fleet.reap("a")
        await asyncio.sleep(0.1)
        watch.cancel()
        here.etcd.restore(snapshot)
        await asyncio.sleep(SETTLED_S)
        with pytest.raises(RolledBack, match=rf"etcd is at revision \d+, and {seen} has been seen: .* begin again"):
            await told(view, after=seen)
        await watcher.watch(view)  # is refused
        await watcher.watch(view, most=2)
        assert watcher.kinds("a")[-1] is AgentEventKind.JOINED
        assert watcher.kinds("b")[-1] is AgentEventKind.REAPED
        assert watcher.told.known.keys() == {"a"}


@pytest.mark.parametrize("after", [-1, 1 << 63, True, 1.5, "7"])
def test_what_is_no_revision_is_refused(after: int) -> None:
    """Before anything is waited for."""

    @virtual
    async def run() -> None:
        async with viewing(world()) as (_, view, _):
            with pytest.raises(ConfigError, match="is not a revision to go on after"):
                await told(view, after=after)

    run()


@virtual
async def test_a_view_whose_history_was_compacted_begins_anew_after_what_it_told() -> None:
    """RESET, several reaps of one agent among what was missed, in order, who is there; and its watches go on."""
    here = world()
    async with viewing(here) as (machine, view, fleet):
        await fleet.join("a")
        await fleet.join("b")
        async with watching(view) as events:
            machine.transport.cut()
            await asyncio.sleep(SETTLED_S)  # what was under way on the watch would arrive late
            for _ in range(3):
                await fleet.die("a")
                await fleet.reap("a")
                await fleet.join("a")
            await fleet.die("a", "b")
            last = await fleet.reap("a", "b")
            await fleet.join("c")
            here.etcd.compact()
            machine.transport.mend()
            await asyncio.sleep(SETTLED_S)
            assert reaped_in(events) == list(fleet.reaped.items())
            revisions = [event.source.revision for event in events]
            assert revisions == sorted(revisions)
            now = last + 2
            assert short(events)[:4] == [
                ("synced", "", 1),
                ("joined", "a", 2),
                ("joined", "b", 4),
                ("reset", "", 4),
            ]
            assert short(events)[-4:] == [
                ("reaped", "a", last - 1),
                ("reaped", "b", last),
                ("present", "c", now),
                ("synced", "", now),
            ]
            await fleet.die("c")
            await asyncio.sleep(0.1)
            assert short(events)[-1] == ("stale", "c", now + 1)


@virtual
async def test_a_watch_of_agents_goes_on_when_the_history_is_set_back() -> None:
    """RESET with a revision that is possible again, and who is there now; what was told of the other past is void."""
    here = world()
    async with viewing(here) as (_, view, fleet):
        await fleet.join("a")
        snapshot = here.etcd.snapshot()
        async with watching(view) as events:
            for _ in range(20):
                await fleet.store("a", "task", "x")
            await fleet.join("b")
            await fleet.die("a")
            await fleet.reap("a")
            await asyncio.sleep(0.1)
            count = len(events)
            here.etcd.restore(snapshot)
            await asyncio.sleep(SETTLED_S)
            assert short(events)[count:] == [("reset", "", 3), ("present", "a", 3), ("synced", "", 3)]
            told = ToldAgents()
            news = [new for event in events for new in told.news(event)]
            assert [(each.kind.value, name_of(each)) for each in news[-2:]] == [("joined", "a"), ("reaped", "b")]


# --- everything at random -----------------------------------------------------------------------------------------


class Undisturbed(FakeTransport):
    """Reaches etcd whatever happens to its members: the writer's troubles are not looked at here."""

    async def unary(
        self, member: int, method: Method[Req, Resp], request: Req, *, timeout_s: float | None, metadata: Metadata
    ) -> Resp:
        return cast("Resp", self.etcd.execute(self.etcd.leader, method, deepcopy(request)))


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_was_away_is_told_the_same_reaps_as_who_was_not(seed: int) -> None:
    """Two views under faults, and watchers that break off at any moment and go on at either: each reap once."""

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with AsyncExitStack() as stack:
            elsewhere = await stack.enter_async_context(here.machine(transport=Undisturbed(here.etcd)))
            machines = [await stack.enter_async_context(here.machine()) for _ in range(3)]
            views = [
                await stack.enter_async_context(View(machine.client, KEYS, rng=here.rng(f"view {number}")))
                for number, machine in enumerate(machines)
            ]
            steady = await stack.enter_async_context(watching(views[2]))
            fleet = Fleet(elsewhere.client, KEYS)
            watchers = [Watcher() for _ in range(3)]
            writing = asyncio.create_task(write(fleet, rng, 60))
            breaking = [asyncio.create_task(watch_with_breaks(each, views, rng, writing)) for each in watchers]
            while not writing.done():
                await asyncio.sleep(rng.uniform(0, 1.0))
                hurt(here, rng, rng.choice(machines), FAULTS)
            await writing
            for machine in machines:
                machine.transport.mend()
            for member in range(3):
                here.etcd.resume(member)
            await asyncio.gather(*breaking)
            last = [asyncio.create_task(each.watch(rng.choice(views[:2]))) for each in watchers]
            await asyncio.sleep(SETTLED_S)
            for task in last:
                assert not task.done()
                task.cancel()
            present = {agent.id: without_keys(agent) for agent in (await views[2].agents()).value}

        truth = dict(fleet.reaped)
        assert dict(reaped_in(steady)) == truth
        assert len(reaped_in(steady)) == len(truth)
        for watcher in watchers:
            since = watcher.events[0].source.revision
            known = {name: without_keys(agent) for name, agent in watcher.told.known.items()}
            assert known == present, f"seed {seed}"
            told_of = watcher.reaped()
            assert len(told_of) == len({reap for reap, _ in told_of}), f"seed {seed}: told twice"
            missed = truth.keys() - dict(told_of).keys()
            assert all(put_at(steady, reap) <= since for reap in missed), f"seed {seed}: {missed} since {since}"
            assert dict(told_of) == {reap: truth[reap] for reap in dict(told_of)}

    run()


def without_keys(agent: Agent) -> Agent:
    """Watches do not tell what becomes of the keys that an agent stores."""
    return replace(agent, state_keys=())


def put_at(events: list[AgentEvent], reap: tuple[str, int, int]) -> int:
    """The revision that a reap completed, or the one before."""
    return next(event.source.revision for event in events if event.tombstone and reaped_in([event])[0][0] == reap)


async def watch_with_breaks(watcher: Watcher, views: list[View], rng: random.Random, until: asyncio.Task[None]) -> None:
    while not until.done():
        view, most = rng.choice(views[:2]), rng.choice([None, rng.randint(1, 12)])
        watching = asyncio.create_task(watcher.watch(view, most))
        await asyncio.wait({watching}, timeout=rng.uniform(0.0, 4.0))
        watching.cancel()
        await asyncio.wait({watching})
        await asyncio.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 5)]))


async def write(fleet: Fleet, rng: random.Random, steps: int) -> None:
    """A fleet lives and dies."""
    alive: set[str] = set()
    suspect: set[str] = set()
    for _ in range(steps):
        await asyncio.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 1)]))
        name = rng.choice("abcdef")
        match rng.choice(["join", "join", "die", "die all", "reap", "reap", "reap all", "part", "drain", "store"]):
            case "join" if name not in alive:
                await fleet.join(name)
                alive.add(name)
                suspect.discard(name)
            case "die" if name in alive:
                await fleet.die(name)
                alive.discard(name)
                suspect.add(name)
            case "die all" if alive:
                await fleet.die(*sorted(alive))
                suspect |= alive
                alive.clear()
            case "reap" if name in suspect:
                await fleet.reap(name)
                suspect.discard(name)
            case "reap all" if suspect:
                await fleet.reap(*sorted(suspect))
                suspect.clear()
            case "part" if name in suspect:
                await fleet.store(name, "more", rng.choice("xyz"))
                await fleet.reap_part(name, "more")
            case "drain":
                await fleet.drain(name)
            case "store" if name in alive:
                await fleet.store(name, "task", str(rng.random()))
