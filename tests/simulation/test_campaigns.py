"""Candidates that stand through servers, in virtual time: whatever happens to the link, one leads at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from election.client.candidate import RemoteCandidate
from election.errors import LossReason
from election.term import Term
from election.token import Token
from tests.fake.clock import VirtualClock, virtual
from tests.simulation.callers import FakeServers, Replica
from tests.simulation.world import ELECTION, KEYS, World, hurt, world

SEEDS = range(100)
ETCD_FAULTS = ("cut", "mend", "mend", "move", "pause", "resume", "resume")


@dataclass
class Acts:
    """Who acted when, on the loop's clock. The work ignores its cancellation for a while, and asks before each act."""

    told: list[tuple[float, Token, str]] = field(default_factory=list)
    linger_s: float = 0.0

    async def work(self, term: Term) -> None:
        """Acts for as long as it may, and lingers after it was told to stop, up to its deadline."""
        try:
            while True:
                self.act(term)
                await asyncio.sleep(0.03)
        finally:
            linger_until_s = asyncio.get_running_loop().time() + self.linger_s
            while asyncio.get_running_loop().time() < linger_until_s:
                await asyncio.sleep(0.03)
                self.act(term)

    def act(self, term: Term) -> None:
        if term.is_leader:
            self.told.append((asyncio.get_running_loop().time(), term.token, term.id))

    def check(self) -> None:
        """No act under a token comes after one under a later token."""
        highest = Token(0, 0)
        for at_s, token, name in self.told:
            assert token >= highest, f"{name} acted at {at_s:.3f} s under {token}, after {highest}"
            highest = max(highest, token)

    def by(self, id: str) -> list[tuple[float, Token, str]]:
        return [act for act in self.told if act[2] == id]


@dataclass
class Caller:
    """A candidate on a machine without etcd."""

    candidate: RemoteCandidate
    servers: FakeServers


@asynccontextmanager
async def callers(
    here: World, names: tuple[str, ...], acts: Acts, *, replicas: int = 2, latency_s: float = 0.02, ttl_s: int = 5
) -> AsyncGenerator[tuple[list[Caller], list[Replica]]]:
    """Candidates that stand through the same replicas; all leave at the end."""
    async with AsyncExitStack() as stack:
        machines = [await stack.enter_async_context(here.machine()) for _ in range(replicas)]
        served = [Replica.on(machine, KEYS, here.rng(f"replica {n}")) for n, machine in enumerate(machines)]
        found, tasks = [], []
        for number, name in enumerate(names):
            rng = here.rng(name)
            clock = VirtualClock(rate=rng.uniform(0.99, 1.01), offset_s=rng.uniform(0, 1000))
            servers = FakeServers(served, rng, clock, latency_s, current=number % replicas)
            candidate = RemoteCandidate(
                servers.cast(), servers.converse, ELECTION, id=name, ttl_s=ttl_s, clock=clock, rng=rng
            )
            tasks.append(asyncio.create_task(candidate.lead(acts.work)))
            found.append(Caller(candidate, servers))
            await asyncio.sleep(0.5)
        try:
            yield found, served
        finally:
            for caller in found:
                caller.candidate.leave()
            await asyncio.wait(tasks, timeout=60)
            for caller in found:
                await caller.servers.end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def leader(found: list[Caller]) -> Caller:
    """Waits until one of them leads."""
    async with asyncio.timeout(300):
        while True:
            for caller in found:
                if caller.candidate.is_leader:
                    return caller
            await asyncio.sleep(0.01)


@virtual
async def test_the_next_in_line_leads_as_soon_as_the_leader_has_stopped() -> None:
    """A clean end hands over; nobody waits for a deadline."""
    acts = Acts()
    async with callers(world(), ("a", "b"), acts) as ([a, b], _):
        assert await leader([a, b]) is a
        await asyncio.sleep(5)
        a.candidate.leave()
        left_s = asyncio.get_running_loop().time()
        await leader([b])
        assert asyncio.get_running_loop().time() - left_s < 0.5
    acts.check()
    assert a.candidate.loss is not None
    assert a.candidate.loss.reason is LossReason.RESIGNED


@virtual
async def test_when_the_stream_breaks_nobody_leads_before_the_caller_must_have_stopped() -> None:
    """The work goes on up to its deadline, as it may, and the server holds the key until then, and not much longer."""
    acts = Acts(linger_s=60)
    async with callers(world(), ("a", "b"), acts) as ([a, b], _):
        assert await leader([a, b]) is a
        await asyncio.sleep(5)
        broke_s = asyncio.get_running_loop().time()
        a.servers.calls[-1].snap()
        await leader([b])
        waited_s = asyncio.get_running_loop().time() - broke_s
        assert 1.5 < waited_s < 4.2
    acts.check()


@virtual
async def test_an_answer_that_is_late_grants_nothing_that_is_over() -> None:
    """What the caller is told counts from when it sent, so messages that were held up do not lengthen its term."""
    acts = Acts(linger_s=60)
    async with callers(world(), ("a", "b"), acts) as ([a, b], _):
        assert await leader([a, b]) is a
        await asyncio.sleep(5)
        now_s = asyncio.get_running_loop().time()
        a.servers.calls[-1].down.held_until_s = now_s + 7
        a.servers.calls[-1].up.held_until_s = now_s + 7
        await leader([b])
        assert not a.candidate.is_leader
        await asyncio.sleep(10)
    acts.check()


@virtual
async def test_a_caller_that_is_silent_loses_its_place() -> None:
    """One that hangs while it waits is not elected later; one that hangs while it leads is followed."""
    acts = Acts()
    async with callers(world(), ("a", "b", "c"), acts) as ([a, b, c], _):
        assert await leader([a, b, c]) is a
        for caller in (a, b):
            caller.servers.calls[-1].up.held_until_s = float("inf")
        assert await leader([b, c]) is c
        assert not acts.by("b")
    acts.check()


@virtual
async def test_a_server_that_ends_asks_its_callers_to_stop_and_waits_for_them() -> None:
    """They go on at another one, and the term goes to the next in line at once."""
    acts = Acts()
    async with callers(world(), ("a", "b"), acts) as ([a, b], [first, _]):
        assert await leader([a, b]) is a
        began_s = asyncio.get_running_loop().time()
        await first.campaigns.close()
        assert asyncio.get_running_loop().time() - began_s < 1
        await leader([b])
        await asyncio.sleep(3)
        b.candidate.hand_over("a")
        assert await leader([a]) is a
        assert a.servers.current == 1
    acts.check()


@virtual
async def test_a_handover_names_who_comes_next_and_a_refused_one_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason is told; the term goes on where nobody of that name waits."""
    acts = Acts()
    async with callers(world(), ("a", "b", "c"), acts) as ([a, b, c], _):
        await leader([a])
        a.candidate.hand_over("nobody")
        await asyncio.sleep(1)
        assert a.candidate.is_leader
        assert "cannot hand over" in caplog.text
        a.candidate.hand_over("c")
        assert await leader([b, c]) is c
        assert a.candidate.loss is not None
        assert a.candidate.loss.reason is LossReason.TRANSFERRED
    acts.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_one_acts_at_a_time(seed: int) -> None:
    """Links that are held up and break, replicas that do not notice, an etcd that is hurt; by the seed."""
    storm(seed)


@virtual
async def storm(seed: int) -> None:
    here = world(seed)
    rng = here.rng("storm")
    acts = Acts(linger_s=rng.choice((0, 0, 3, 60)))
    async with callers(here, ("a", "b", "c"), acts, latency_s=rng.choice((0.005, 0.1, 1.0))) as (found, served):
        for _ in range(25):
            await asyncio.sleep(rng.uniform(0, 4))
            if rng.random() < 0.25:
                hurt(here, rng, rng.choice(served).machine, ETCD_FAULTS)
            else:
                annoy(rng.choice(found), rng)
        for replica in served:
            replica.machine.transport.mend()
        for member in range(3):
            here.etcd.resume(member)
        for call in (call for caller in found for call in caller.servers.calls):
            call.up.held_until_s = call.down.held_until_s = 0.0
        await leader(found)  # all is well in the end
    acts.check()
    assert acts.told, "nobody ever led"


def annoy(caller: Caller, rng: random.Random) -> None:
    """Something happens to the link of a caller, or it gives its leadership away."""
    call = caller.servers.calls[-1]
    until_s = asyncio.get_running_loop().time() + rng.uniform(0, 12)
    match rng.choice(("hold up", "hold down", "hold", "snap", "snap unnoticed", "hand over")):
        case "hold up":
            call.up.held_until_s = until_s
        case "hold down":
            call.down.held_until_s = until_s
        case "hold":
            call.up.held_until_s = call.down.held_until_s = until_s
        case "snap":
            call.snap()
        case "snap unnoticed":
            call.snap(server_notices=False)
        case "hand over" if caller.candidate.is_leader:
            caller.candidate.hand_over()
