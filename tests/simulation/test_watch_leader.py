"""Watches of leaders that are interrupted: every term is told in order, or that some may have been missed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message import Message

from election.client.told import ToldLeader
from election.errors import ConfigError, EtcdError, EtcdUnavailable, RolledBack, ViewStale
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.methods import Method
from election.etcd.watch import Heard
from election.keys import Keyspace
from election.published import TooSlow
from election.reader import LeaderEvent, LeaderEventKind
from election.records import CandidateRecord
from election.token import Token
from election.views import View
from tests.fake.clock import virtual
from tests.simulation.test_watch_agents import FAULTS, SEEDS, SETTLED_S, Undisturbed
from tests.simulation.world import KEYS, Machine, World, hurt, world

ELECTION = "demo"


@dataclass
class Reign:
    """Who leads, written as candidates write it, without any."""

    client: EtcdClient
    keyspace: Keyspace = KEYS
    election: str = ELECTION
    key: bytes = b""
    tokens: list[int] = field(default_factory=list)

    async def begin(self, id: str = "a", **more: Any) -> int:
        """A term begins; returns its token's revision."""
        record = CandidateRecord(id, elected_at=self.client.clock.wall(), **more)
        self.key = self.keyspace.candidate(self.election, len(self.tokens) + 1)
        self.tokens.append((await self.client.put(self.key, record.encode())).header.revision)
        return self.tokens[-1]

    async def change(self, **more: Any) -> int:
        record = CandidateRecord("a", elected_at=self.client.clock.wall(), **more)
        return (await self.client.put(self.key, record.encode())).header.revision

    async def end(self) -> int:
        return (await self.client.delete(self.key)).header.revision

    async def terms(self, count: int) -> None:
        """So many, one after the other; the last one goes on."""
        for number in range(count):
            if number:
                await self.end()
            await self.begin()


@asynccontextmanager
async def viewing(here: World) -> AsyncGenerator[tuple[Machine, View, Reign]]:
    """A view on a machine of its own, and leaders that come and go elsewhere."""
    async with (
        here.machine() as elsewhere,
        here.machine() as machine,
        View(machine.client, KEYS, rng=here.rng("view")) as view,
    ):
        yield machine, view, Reign(elsewhere.client)


@asynccontextmanager
async def watching(view: View, **how: Any) -> AsyncGenerator[list[LeaderEvent]]:
    """What a watch tells, as it comes."""
    events: list[LeaderEvent] = []

    async def read() -> None:
        async with aclosing(view.watch_leader(ELECTION, **how)) as told:
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


def short(events: list[LeaderEvent]) -> list[tuple[str, int, int]]:
    """Kind, token and revision of each."""
    return [
        (event.kind.value, event.leader.token.revision if event.leader else 0, event.source.revision)
        for event in events
    ]


async def missed(machine: Machine, here: World) -> None:
    """What happened while the machine was cut off is compacted before it is back."""
    here.etcd.compact()
    machine.transport.mend()
    await asyncio.sleep(SETTLED_S)


async def cut_off(machine: Machine) -> None:
    machine.transport.cut()
    await asyncio.sleep(SETTLED_S)  # what was under way on the watch would arrive late


# --- going on ----------------------------------------------------------------------------------------------------


@virtual
async def test_a_watch_goes_on_with_exactly_what_it_missed() -> None:
    """Each change after the revision, in order; then what happens. At the last one there is nothing to tell at once."""
    async with viewing(world()) as (_, view, reign):
        first = await reign.begin()
        changed = await reign.change(address="new")
        ended = await reign.end()
        second = await reign.begin("b")
        await asyncio.sleep(0.1)
        everything = [
            ("elected", first, first),
            ("updated", first, changed),
            ("vacated", 0, ended),
            ("elected", second, second),
        ]
        for number, (_, _, revision) in enumerate(everything):
            async with watching(view, after=revision) as events:
                assert short(events) == everything[number + 1 :]
                if revision == second:
                    gone = await reign.end()
                    await asyncio.sleep(0.1)
                    assert short(events) == [("vacated", 0, gone)]
        async with watching(view, after=first - 1) as events:
            assert short(events)[:4] == everything


@virtual
async def test_a_watch_from_before_the_view_is_told_that_terms_may_be_missing() -> None:
    """RESET with who leads, or that nobody does; then what happens."""
    here = world()
    async with here.machine() as elsewhere:
        before = await Reign(elsewhere.client).begin()
    async with viewing(here) as (_, view, reign):
        async with watching(view, after=before - 1) as events:
            assert short(events) == [("reset", before, before)]
        reign.key = KEYS.candidate(ELECTION, 1)
        await reign.end()
        await asyncio.sleep(0.1)
        async with watching(view, after=0) as events:
            begun = await reign.begin()
            await asyncio.sleep(0.1)
            assert short(events) == [("reset", 0, begun - 1), ("elected", begun, begun)]


@virtual
async def test_a_view_that_has_not_come_so_far_is_waited_for_and_etcd_is_believed() -> None:
    """Who has seen more than the view waits; who has seen more than etcd is told that its history was set back."""
    async with viewing(world()) as (_, view, reign):
        seen = await reign.begin()
        async with watching(view, after=seen, heartbeat_s=60.0) as events:
            await asyncio.sleep(0.2)
            assert short(events) == [("heartbeat", 0, seen)]
        with pytest.raises(RolledBack, match="begin again from the present"):
            await anext(view.watch_leader(ELECTION, after=seen + 1))
        for garbage in (-1, 1 << 63, True):
            with pytest.raises(ConfigError, match="not a revision"):
                await anext(view.watch_leader(ELECTION, after=garbage))


@virtual
async def test_what_was_seen_is_not_told_again_where_a_sign_of_life_ran_ahead() -> None:
    """As in etcd before 3.4.25 and 3.5.8: the watch says that it is further than its events are."""
    async with viewing(world()) as (machine, view, reign):
        await asyncio.sleep(0.2)

        async def slow(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == methods.WATCH.path:
                await asyncio.sleep(0.3)

        machine.transport.after_call = slow
        seen = await reign.begin()
        view._mirror._take(Heard(seen, 0.0))
        async with watching(view, after=seen) as events:
            await asyncio.sleep(1)
            ended = await reign.end()
            await asyncio.sleep(1)
            assert short(events) == [("vacated", 0, ended)]


@virtual
async def test_a_silent_watch_gives_signs_of_life_as_long_as_the_view_is_fresh() -> None:
    """Each as long after the last message; and then it ends, rather than say that nothing happens."""
    async with viewing(world()) as (machine, view, reign):
        async with aclosing(view.watch_leader(ELECTION, heartbeat_s=3.0)) as events:
            assert (await anext(events)).kind is LeaderEventKind.VACATED
            began_s = asyncio.get_running_loop().time()
            assert (await anext(events)).kind is LeaderEventKind.HEARTBEAT
            assert 3.0 <= asyncio.get_running_loop().time() - began_s <= 3.25
            await reign.begin()
            assert (await anext(events)).kind is LeaderEventKind.ELECTED
            beat = await anext(events)
            assert (beat.kind, beat.leader, beat.source.age_s < 2) == (LeaderEventKind.HEARTBEAT, None, True)
            machine.transport.cut()
            ages = []
            with suppress(ViewStale):
                while (event := await anext(events)).kind is LeaderEventKind.HEARTBEAT:
                    ages.append(event.source.age_s)
            assert 5 < max(ages) <= 10
        with pytest.raises(ViewStale):
            await anext(view.watch_leader(ELECTION))


@virtual
async def test_a_watch_that_hangs_is_cut_off_and_others_do_not_notice() -> None:
    """It can go on where it was: what it missed is remembered for as long."""
    async with viewing(world()) as (_, view, reign), watching(view) as events:
        hangs = view.watch_leader(ELECTION)
        await anext(hangs)
        await reign.terms(200)
        await asyncio.sleep(1)
        with pytest.raises(TooSlow):
            await anext(hangs)
        elected = [token for kind, token, _ in short(events) if kind == "elected"]
        assert elected == reign.tokens


@virtual
async def test_a_reader_that_lags_is_told_how_old_each_event_is() -> None:
    """What waited, and has newer ones behind it, is as old as that; the newest is as old as the view."""
    async with viewing(world()) as (_, view, reign):
        async with aclosing(view.watch_leader(ELECTION)) as events:
            await anext(events)
            before = await reign.begin()
            await reign.end()
            await asyncio.sleep(0.1)
            applied_s = asyncio.get_running_loop().time()
            await asyncio.sleep(4)
            await reign.begin()
            await asyncio.sleep(0.1)
            over, vacated, elected = [await anext(events) for _ in range(3)]
            waited_s = asyncio.get_running_loop().time() - applied_s
            assert over.leader is not None
            assert over.leader.token.revision == before
            assert waited_s < over.source.age_s < waited_s + 2
            assert waited_s < vacated.source.age_s < waited_s + 2
            assert elected.source.age_s == view.source().age_s < 2
            await asyncio.sleep(4)
            await reign.end()
            await asyncio.sleep(0.1)
            assert (await anext(events)).source.age_s == view.source().age_s < 2
        async with aclosing(view.watch_leader(ELECTION, after=before - 1)) as events:
            missed = [await anext(events) for _ in range(3)]
            waited_s = asyncio.get_running_loop().time() - applied_s
            assert all(event.source.age_s > waited_s for event in missed[:2])
            assert missed[2].source.age_s > 4
            await asyncio.sleep(3)
            assert (await anext(events)).source.age_s == view.source().age_s < 2


@virtual
@pytest.mark.parametrize("held", [methods.WATCH.path, None], ids=["the watch", "everything"])
async def test_what_was_held_up_is_not_called_fresh(held: str | None) -> None:
    """By a network, or by a pause of the process: a sign of life may wait before the news that a term is over."""
    released = asyncio.Event()

    async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
        if held in (method.path, None):
            await released.wait()

    async with viewing(world()) as (machine, view, reign):
        await reign.begin("old")
        await asyncio.sleep(1.1)
        machine.transport.after_call = hold
        await asyncio.sleep(1.2)  # longer than a beat
        over_s = machine.clock.now_s()
        await reign.end()
        await reign.begin("new")
        await asyncio.sleep(0.3)
        released.set()
        while (answer := await view.leader(ELECTION)).value is None or answer.value.id != "new":
            assert machine.clock.now_s() - answer.source.age_s < over_s
            await asyncio.sleep(0.0001)


@virtual
async def test_a_member_that_the_others_cannot_hear_makes_no_answer_fresh() -> None:
    """It gives signs of life, and does not learn what the others know."""
    here = world()
    async with viewing(here) as (machine, view, reign):
        await reign.begin("old")
        await asyncio.sleep(1.1)
        here.etcd.isolate(machine.client.member)
        reign.client.avoid(machine.client.member)
        over_s = machine.clock.now_s()
        await reign.end()
        await reign.begin("new")
        await asyncio.sleep(0.5)
        assert (old := await view.leader(ELECTION)).value is not None
        assert old.value.id == "old"
        while (answer := await view.leader(ELECTION)).value is None or answer.value.id != "new":
            assert machine.clock.now_s() - answer.source.age_s < over_s
            await asyncio.sleep(0.05)


@virtual
@pytest.mark.parametrize("arrives", [True, False])
async def test_a_view_is_fresh_again_after_a_restore_that_nothing_else_shows(arrives: bool) -> None:
    """Etcd had been further, as the watch has said or as a read has; no event that was delivered is undone."""
    here = world()
    async with viewing(here) as (machine, view, reign):
        begun = await reign.begin("a")
        await asyncio.sleep(1.1)
        snapshot = here.etcd.snapshot()
        released = asyncio.Event()

        async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == methods.WATCH.path:
                await released.wait()

        machine.transport.after_call = hold
        for _ in range(5):
            await reign.client.put(b"/elsewhere", b"")
        await asyncio.sleep(1.2)  # longer than a beat
        machine.transport.after_call = None
        here.etcd.restore(snapshot)
        if arrives:
            released.set()
        await asyncio.sleep(SETTLED_S)
        assert view.source().age_s < 2
        assert (await view.leader(ELECTION)).source.revision == begun


@virtual
@pytest.mark.parametrize("terms", [0, 5])
async def test_a_read_from_before_a_restore_keeps_no_watch_from_going_on(terms: int) -> None:
    """It had been ahead of the watch, whose member nothing came from: etcd does not come as far again."""
    here = world()
    async with viewing(here) as (machine, view, reign):
        await reign.begin("old")
        snapshot = here.etcd.snapshot()
        for _ in range(terms):
            here.etcd.change_leader()
            await asyncio.sleep(1)
        for _ in range(50):
            await reign.client.put(b"/elsewhere", b"")
        await asyncio.sleep(3)
        member = machine.client.member

        async def hold(which: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == methods.WATCH.path and which == member:
                await asyncio.Event().wait()

        machine.transport.after_call = hold
        for _ in range(5):
            await reign.client.put(b"/elsewhere", b"")
        await asyncio.sleep(2)
        here.etcd.restore(snapshot)
        machine.transport.after_call = None
        await reign.end()
        await reign.begin("new")
        await asyncio.sleep(SETTLED_S)
        for _ in range(60):
            answer = await view.leader(ELECTION)
            assert answer.value is not None
            assert (answer.value.id, answer.source.age_s < 2) == ("new", True)
            await asyncio.sleep(1)


@virtual
async def test_revisions_from_before_a_restore_date_nothing() -> None:
    """Etcd comes as far again with another history, which the watch has not told yet."""
    released, here = asyncio.Event(), world()

    async def hold(_: int, method: Method[Any, Any], answer: Message) -> None:
        if method.path == methods.WATCH.path:
            await released.wait()

    async with viewing(here) as (machine, view, reign):
        await reign.begin("old")
        snapshot = here.etcd.snapshot()
        for _ in range(20):
            await reign.client.put(b"/elsewhere", b"")
        await asyncio.sleep(3)
        here.etcd.restore(snapshot)
        await asyncio.sleep(2)
        machine.transport.after_call = hold
        over_s = machine.clock.now_s()
        await reign.end()
        await reign.begin("new")
        for _ in range(18):
            await reign.client.put(b"/elsewhere", b"")
        for _ in range(40):
            await asyncio.sleep(0.1)
            answer = await view.leader(ELECTION)
            assert answer.value is not None
            assert answer.value.id == "new" or machine.clock.now_s() - answer.source.age_s < over_s
        released.set()


@virtual
async def test_what_is_delivered_together_with_its_end_is_dated_before_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that begins anew elsewhere catches up with a whole term at once, and takes longer than a beat for it."""
    monkeypatch.setattr("tests.fake.watches.CATCH_UP_S", 1.5)
    here = world()
    async with viewing(here) as (machine, view, reign):
        await reign.begin("a")
        over_s: dict[str, float] = {}
        async with watching(view) as events:
            told_at_s = [machine.clock.now_s()]
            await asyncio.sleep(2.5)
            here.etcd.stop(machine.client.member)
            for who, after in (("a", "b"), ("b", "c")):
                await reign.end()
                over_s[who] = machine.clock.now_s()
                await reign.begin(after)
            while len(events) < 5:
                await asyncio.sleep(0.01)
                told_at_s += [machine.clock.now_s()] * (len(events) - len(told_at_s))
        for at_s, event in zip(told_at_s, events, strict=True):
            if event.leader is not None and event.leader.id in over_s:
                assert at_s - event.source.age_s - 0.02 < over_s[event.leader.id]


@virtual
async def test_what_was_missed_last_is_not_the_newest_when_more_has_happened() -> None:
    """A reader that rests between what it missed and what happens then is not told that a term is still there."""
    async with viewing(world()) as (_, view, reign):
        begun = await reign.begin()
        await asyncio.sleep(0.1)
        async with aclosing(view.watch_leader(ELECTION, after=begun - 1)) as events:
            assert (await anext(events)).source.age_s < 2
        changed = await reign.change(address="new")
        await asyncio.sleep(0.1)
        async with aclosing(view.watch_leader(ELECTION, after=begun - 1)) as events:
            await anext(events)
            await reign.end()
            await asyncio.sleep(4)
            late = await anext(events)
            assert (late.kind, late.source.revision) == (LeaderEventKind.UPDATED, changed)
            assert late.source.age_s > 4
            assert (await anext(events)).source.age_s == view.source().age_s < 2


@virtual
async def test_readers_that_are_told_at_once_get_one_event() -> None:
    """So its message is made once; those that lag alike, too."""
    async with viewing(world()) as (_, view, reign):
        streams = [view.watch_leader(ELECTION) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        await reign.begin()
        await reign.end()
        await asyncio.sleep(4)
        for _ in range(2):
            first, *others = [await anext(stream) for stream in streams]
            assert all(other is first for other in others)
        for stream in streams:
            await stream.aclose()


# --- gaps --------------------------------------------------------------------------------------------------------


@virtual
async def test_a_view_that_missed_terms_says_so() -> None:
    """Whoever led before and leads now, and whether anybody does; what it remembered is not complete any more."""
    here = world()
    async with viewing(here) as (machine, view, reign), watching(view) as events:
        first = await reign.begin()
        await asyncio.sleep(0.1)
        await cut_off(machine)
        await reign.end()
        second = await reign.begin()
        await missed(machine, here)
        assert short(events)[1:] == [("elected", first, first), ("reset", second, second)]
        for after in (first, second - 1):
            async with watching(view, after=after) as again:
                assert short(again) == [("reset", second, second)]
        await reign.end()
        await asyncio.sleep(0.1)
        await cut_off(machine)
        await reign.begin()
        ended = await reign.end()
        await missed(machine, here)
        assert short(events)[3:] == [("vacated", 0, second + 1), ("reset", 0, ended)]


@virtual
async def test_a_term_that_goes_on_is_no_reason_to_begin_anew() -> None:
    """No key that came later leads before it: nothing was missed, and what is remembered is complete."""
    here = world()
    async with viewing(here) as (machine, view, reign), watching(view) as events:
        first = await reign.begin()
        await asyncio.sleep(0.1)
        await cut_off(machine)
        await reign.client.put(b"elsewhere", b"")
        await missed(machine, here)
        assert short(events)[1:] == [("elected", first, first)]
        await cut_off(machine)
        await reign.change(address="one")
        changed = await reign.change(address="two")
        await missed(machine, here)
        assert short(events)[2:] == [("updated", first, changed)]
        async with watching(view, after=first - 1) as again:
            assert short(again) == [("elected", first, first), ("updated", first, changed)]


@virtual
async def test_a_history_that_was_set_back_is_a_gap_even_if_the_same_leader_is_there_again() -> None:
    """In the past that is gone there may have been others, some of whom it told."""
    here = world()
    async with viewing(here) as (_, view, reign), watching(view) as events:
        first = await reign.begin()
        await asyncio.sleep(0.1)
        snapshot = here.etcd.snapshot()
        for _ in range(3):
            await reign.change(address="new")
        await asyncio.sleep(0.1)
        here.etcd.restore(snapshot)
        await asyncio.sleep(SETTLED_S)
        assert short(events)[-1] == ("reset", first, first)
        with pytest.raises(RolledBack):
            await anext(view.watch_leader(ELECTION, after=first + 3))


# --- answers that are as new as the question -----------------------------------------------------------------------


@virtual
async def test_a_linearizable_answer_holds_what_was_written_before_the_question() -> None:
    """Also where the watch is slow, and where what was written is elsewhere; it does not wait for the next beat."""
    async with viewing(world()) as (machine, view, reign):

        async def slow(_: int, method: Method[Any, Any], answer: Message) -> None:
            if method.path == methods.WATCH.path:
                await asyncio.sleep(0.3)

        machine.transport.after_call = slow
        token = await reign.begin()
        assert (await view.leader(ELECTION)).value is None
        answer = await view.leader(ELECTION, linearizable=True)
        assert answer.value is not None
        assert answer.value.token == Token(0, token)
        assert (answer.source.revision, answer.source.age_s) == (token, 0.0)
        assert [each.token for each in (await view.candidates(ELECTION, linearizable=True)).value] == [Token(0, token)]
        assert len((await view.elections(linearizable=True)).value) == 1
        machine.transport.after_call = None
        await asyncio.sleep(1)
        for _ in range(20):
            written = (await reign.client.put(b"elsewhere", b"")).header.revision
            began_s = asyncio.get_running_loop().time()
            assert (await view.agents(linearizable=True)).source.revision == written
            assert asyncio.get_running_loop().time() - began_s < 0.2


@virtual
async def test_a_linearizable_answer_is_never_from_memory() -> None:
    """An etcd that cannot be asked is an error, though the view is fresh enough for other questions."""
    async with viewing(world()) as (machine, view, _):
        machine.transport.cut()
        assert (await view.leader(ELECTION)).value is None
        with pytest.raises(EtcdUnavailable):
            await view.leader(ELECTION, linearizable=True)


# --- everything at random ------------------------------------------------------------------------------------------


@dataclass
class Watcher:
    """Who watches an election with breaks, and goes on as `Client` does, at any view."""

    told: ToldLeader = field(default_factory=ToldLeader)
    events: list[LeaderEvent] = field(default_factory=list)

    async def watch(self, view: View, most: int | None = None) -> None:
        """Watches until it is cancelled, has seen so many events, or is refused."""
        try:
            async with aclosing(view.watch_leader(ELECTION, after=self.told.after, heartbeat_s=1.0)) as events:
                async for event in events:
                    if (news := self.told.news(event)) and news.kind is not LeaderEventKind.HEARTBEAT:
                        self.events.append(news)
                    most = None if most is None else most - 1
                    if most == 0:
                        return
        except (EtcdError, ViewStale, TooSlow):
            return


@pytest.mark.parametrize("seed", SEEDS)
def test_no_term_is_missed_unless_it_is_said(seed: int) -> None:
    """Two views under faults, and watchers that break off at any moment and go on at either."""

    @virtual
    async def run() -> None:
        here, rng = world(seed), random.Random(seed)
        async with AsyncExitStack() as stack:
            elsewhere = await stack.enter_async_context(here.machine(transport=Undisturbed(here.etcd)))
            machines = [await stack.enter_async_context(here.machine()) for _ in range(2)]
            views = [
                await stack.enter_async_context(View(machine.client, KEYS, rng=here.rng(f"view {number}")))
                for number, machine in enumerate(machines)
            ]
            reign, watchers = Reign(elsewhere.client), [Watcher() for _ in range(3)]
            truth: list[tuple[str, int, int]] = []
            writing = asyncio.create_task(write(reign, rng, truth))
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
            last = [asyncio.create_task(each.watch(rng.choice(views))) for each in watchers]
            await asyncio.sleep(SETTLED_S)
            for task in last:
                assert not task.done(), f"seed {seed}"
                task.cancel()
        for watcher in watchers:
            check(watcher.events, truth, f"seed {seed}")

    run()


def check(events: list[LeaderEvent], truth: list[tuple[str, int, int]], of: str) -> None:
    """From the first event, and from each RESET, every change is told that has happened, up to the next RESET."""
    parts: list[list[LeaderEvent]] = []
    for event in events:
        if not parts or event.kind is LeaderEventKind.RESET:
            parts.append([])
        parts[-1].append(event)
    for number, part in enumerate(parts):
        begun = part[0].source.revision
        there = [row for row in truth if row[2] <= begun]
        holds = there[-1][1] if there else 0
        assert (part[0].leader.token.revision if part[0].leader else 0) == holds, f"{of}: {part[0]}"
        after = [row for row in truth if row[2] > begun]
        told = short(part[1:])
        terms = [row for row in told if row[0] != "updated"]
        expected = [row for row in after if row[0] != "updated"]
        if number < len(parts) - 1:
            expected = expected[: len(terms)]
        assert terms == expected, f"{of}: told {told}, and there was {after}"


async def write(reign: Reign, rng: random.Random, truth: list[tuple[str, int, int]]) -> None:
    """Leaders come, change and go."""
    leads = False
    for number in range(60):
        await asyncio.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 2)]))
        if not leads:
            revision = await reign.begin()
            truth.append(("elected", revision, revision))
            leads = True
        elif rng.random() < 0.3:
            truth.append(("updated", reign.tokens[-1], await reign.change(address=f"{number}")))
        else:
            truth.append(("vacated", 0, await reign.end()))
            leads = False


async def watch_with_breaks(watcher: Watcher, views: list[View], rng: random.Random, until: asyncio.Task[None]) -> None:
    while not until.done():
        view, most = rng.choice(views), rng.choice([None, rng.randint(1, 6)])
        watching = asyncio.create_task(watcher.watch(view, most))
        await asyncio.wait({watching}, timeout=rng.uniform(0.0, 4.0))
        watching.cancel()
        await asyncio.wait({watching})
        await asyncio.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 5)]))
