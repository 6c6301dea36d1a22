"""Sessions on the fake etcd, in virtual time: servers that die, hang and lie in wait, and what an agent may believe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from google.protobuf.message import Message

from election.client.servers import ServerUnavailable
from election.client.session import Session
from election.client.session_stream import SessionStream
from election.config import AgentConfig
from election.errors import AgentExists, AgentLost, BadField, ConfigError, ElectionError, LossReason, NoSpace
from election.etcd.methods import LEASE_KEEP_ALIVE, TXN, Method
from election.keys import REGISTRATION
from election.pb.election.v1 import election_pb2 as pb
from election.registration import Registration
from tests.fake.clock import virtual
from tests.fake.etcd import FakeEtcd
from tests.simulation.halls import Hosts, hall_in, halls_in
from tests.simulation.world import KEYS, World, hurt, world

TTL_S = 6
CONFIG = AgentConfig(ttl_s=TTL_S)
SEEDS = range(100)
FAULTS = ("cut", "cut off", "mend", "mend", "move", "stop", "pause", "resume", "resume")


def alive(etcd: FakeEtcd, id: str = "w") -> int:
    """The incarnation that etcd has of an agent; 0 when there is none."""
    etcd.tick()
    found = etcd.store.get(KEYS.alive(id))
    return found.create_revision if found else 0


def stored(etcd: FakeEtcd, key: str, id: str = "w") -> bytes | None:
    found = etcd.store.get(KEYS.state(id, key))
    return None if found is None else found.value


@asynccontextmanager
async def observed(here: World, session: Session) -> AsyncGenerator[None]:
    """Looks all the time: while the agent may believe that it is alive, it is."""

    async def look() -> None:
        while True:
            with suppress(AgentLost):
                believed = session.check().incarnation
                assert alive(here.etcd, session.id) == believed, f"seed {here.seed}: it believes to be {believed}"
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    try:
        yield
        assert not looking.done(), looking.exception()
    finally:
        looking.cancel()
        await asyncio.wait({looking})


async def back(session: Session, old: Registration) -> Registration:
    """Waits until it has registered again."""
    async with asyncio.timeout(60):
        while (now := session.registration) is None or now.incarnation <= old.incarnation:
            await asyncio.sleep(0.05)
    return now


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


# --- a life --------------------------------------------------------------------------------------------------------


@virtual
async def test_a_session_lives_for_many_ttls_and_leaves() -> None:
    """And stores state meanwhile; nothing is left but what the collector is to have."""
    here = world()
    async with halls_in(here) as hosts:
        async with hosts.session(config=CONFIG) as session, observed(here, session):
            first = session.check()
            await asyncio.sleep(10 * TTL_S)
            assert session.check() == first
            await session.put("task", "x")
            await session.put("other", b"y")
            await session.delete("other")
            assert (stored(here.etcd, "task"), stored(here.etcd, "other")) == (b"x", None)
        assert alive(here.etcd) == 0
        assert stored(here.etcd, REGISTRATION) is not None
        async with hosts.session(config=AgentConfig(ttl_s=TTL_S, keep_state=False)):
            pass
        assert stored(here.etcd, REGISTRATION) is None
        await asyncio.sleep(TTL_S + 1)
        assert not here.etcd.lessor.saved()


@virtual
async def test_an_agent_that_stops_renewing_dies_at_its_ttl() -> None:
    """Although its stream is open, and the server could renew: it does nothing by itself."""
    here = world()
    async with halls_in(here) as hosts:
        line = hosts.call()
        await line.write(pb.SessionRequest(sequence=1, open=pb.SessionRequest.Open(agent="w", secret=b"s" * 16)))
        assert await line.read() is not None
        for _ in range(3):
            await asyncio.sleep(5)
            assert alive(here.etcd)
            await line.write(pb.SessionRequest(sequence=2 + _, renew=pb.SessionRequest.Renew()))
            assert await line.read() is not None
        await asyncio.sleep(14)
        assert alive(here.etcd)
        await asyncio.sleep(2)
        assert not alive(here.etcd)
        assert line.serving is not None
        assert not line.serving.done()
        line.cancel()


@virtual
async def test_a_stream_that_does_not_begin_is_not_kept_open() -> None:
    """Nor one that is half-closed before it has begun: neither has said what it is about."""

    requests: list[pb.SessionRequest] = []

    async def silent() -> AsyncGenerator[pb.SessionRequest]:
        if not half_closed:
            await asyncio.sleep(3600)
        for request in requests:
            yield request

    async with hall_in(world()) as hall:
        for half_closed in (False, True):
            began_s = hall.machine.clock.now_s()
            with pytest.raises(BadField, match="the first message of a session has to be `open`"):
                await anext(hall.sessions.serve(silent()))
            assert hall.machine.clock.now_s() - began_s == (0 if half_closed else pytest.approx(10))


@virtual
async def test_renewals_that_come_at_once_are_done_one_after_the_other() -> None:
    """Each is answered, and they cost etcd no stream but the one that all sessions share."""
    here = world()
    async with halls_in(here, 1) as hosts:
        transport, opened, under_way, most = hosts.halls[0].machine.transport, 0, 0, 0
        opening = transport.stream

        def stream(member: int, method: Method[Any, Any], **more: Any) -> Any:
            nonlocal opened
            opened += method is LEASE_KEEP_ALIVE
            return opening(member, method, **more)

        async def before(_: int, method: Method[Any, Any], request: Message) -> None:
            nonlocal under_way, most
            under_way += method is LEASE_KEEP_ALIVE
            most = max(most, under_way)
            await asyncio.sleep(0.01)

        async def after(_: int, method: Method[Any, Any], answer: Message) -> None:
            nonlocal under_way
            under_way -= method is LEASE_KEEP_ALIVE

        transport.stream = stream  # type: ignore[method-assign]
        transport.before_call, transport.after_call = before, after
        line = hosts.call()
        await line.write(pb.SessionRequest(sequence=1, open=pb.SessionRequest.Open(agent="w", secret=b"s" * 16)))
        for sequence in range(2, 42):
            await line.write(pb.SessionRequest(sequence=sequence, renew=pb.SessionRequest.Renew()))
        answers = [await line.read() for _ in range(41)]
        assert all(answer is not None and answer.HasField("renewed") for answer in answers[1:])
        assert (most, opened) == (1, 1)
        line.cancel()


@virtual
async def test_an_answer_that_is_late_grants_nothing_that_is_over() -> None:
    """The deadline counts from when the renewal was sent, whenever its answer comes."""
    here = world()
    async with halls_in(here, 1) as hosts:
        hosts.attempt_timeout_s = 60.0
        async with hosts.session(config=CONFIG) as session, observed(here, session):
            late_s = 2.5

            async def delay(_: object) -> None:
                await asyncio.sleep(late_s)

            hosts.halls[0].before_answer = delay
            await asyncio.sleep(TTL_S / 3 + late_s + 0.1)  # one renewal was sent and answered
            assert session.remaining_s() < TTL_S - 1 - late_s + 0.5
            hosts.halls[0].paused = True  # no other answer comes, and what was renewed ends
            old = session.check()
            await session.lost
            assert here.etcd.clock.now_s() > 0
            hosts.halls[0].before_answer = None
            hosts.halls[0].resume()
            assert (await back(session, old)).incarnation > old.incarnation


# --- servers -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_server_that_dies_or_hangs_costs_no_incarnation() -> None:
    """Nor what is written meanwhile: it is written once more, at the next server."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        for i in range(12):
            hall = hosts.halls[hosts.current]
            if i % 2:
                hall.pause()
            else:
                hall.kill()
            await session.put("n", str(i))
            assert stored(here.etcd, "n") == str(i).encode()
            await asyncio.sleep(i / 3)
            hall.resume()
        assert session.check() == first


@virtual
async def test_a_write_that_a_hung_server_still_has_is_refused() -> None:
    """It wakes up after the agent has gone on elsewhere and written something newer: that stays."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session:
        hung = hosts.halls[hosts.current]
        await session.put("n", "0")
        hung.pause()
        await session.put("n", "1")  # first sent to the one that hangs, which has it still
        await session.put("n", "2")
        hung.resume()
        await asyncio.sleep(5)
        assert stored(here.etcd, "n") == b"2"


@virtual
async def test_a_lost_answer_to_the_first_open_is_asked_for_again() -> None:
    """By whoever enters, at the next server; there is one registration, and it is used."""
    here = world()
    async with halls_in(here) as hosts:

        async def lose(_: object) -> None:
            raise ServerUnavailable("the connection is broken")

        hosts.halls[0].before_answer = lose
        async with hosts.session(config=CONFIG) as session:
            assert session.incarnation == alive(here.etcd)
            assert hosts.current == 1
            assert len(here.etcd.lessor.saved()) == 1


@virtual
async def test_an_open_that_is_given_up_midway_takes_nothing_with_it() -> None:
    """It has registered, hangs before it hears so, and goes on when the next server has the session: that stays."""
    here = world()
    async with halls_in(here) as hosts:
        hung = hosts.halls[0]

        async def hang(_: int, method: Method[Any, Any], answer: Message) -> None:
            if alive(here.etcd) and method.path == TXN.path:
                if hosts.current == 0:
                    hung.pause()
                await hung.awake()
                await asyncio.sleep(0.2)  # first it is told that the caller has gone

        hung.machine.transport.after_call = hang
        async with hosts.session(config=CONFIG) as session, observed(here, session):
            assert hosts.current == 1
            first = session.check()
            hung.resume()
            await asyncio.sleep(2 * TTL_S)
            assert session.check() == first


@virtual
async def test_without_servers_an_agent_is_lost_at_its_deadline() -> None:
    """And not sooner; it comes back as a new incarnation, whose predecessor is ended."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        for hall in hosts.halls:
            hall.kill()
        remaining_s = session.remaining_s()
        assert await session.lost is LossReason.EXPIRED
        assert session.remaining_s() == 0
        assert remaining_s > 0
        with pytest.raises(AgentLost, match="wait until"):
            await session.put("n", "1")
        for hall in hosts.halls:
            hall.resume()
        assert alive(here.etcd) == first.incarnation  # the margin
        second = await back(session, first)
        assert alive(here.etcd) == second.incarnation


@virtual
async def test_an_agent_that_is_not_to_come_back_stays_lost() -> None:
    """The error says so, and so does the end of its registrations."""
    here = world()
    config = AgentConfig(ttl_s=TTL_S, register_again=False)
    async with halls_in(here) as hosts, hosts.session(config=config) as session:
        await hosts.halls[0].machine.client.lease_revoke(session.check().lease)
        seen = [registration async for registration in session.registrations()]
        assert seen[-1] is None
        assert await session.lost is LossReason.KEY_DELETED
        with pytest.raises(AgentLost, match="stays lost"):
            session.check()
        with pytest.raises(AgentLost, match="stays lost"):
            await session.put("n", "1")


@virtual
async def test_servers_that_cannot_reach_etcd_are_left_for_others() -> None:
    """Their answer says so, or they are too slow to say anything."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        for _ in range(6):
            hall = hosts.halls[hosts.current]
            hall.machine.transport.cut()
            await session.put("n", "1")
            await asyncio.sleep(TTL_S)
            assert hosts.halls[hosts.current] is not hall
            hall.machine.transport.mend()
        assert session.check() == first


# --- rivals --------------------------------------------------------------------------------------------------------


@virtual
async def test_an_id_has_one_holder_and_can_be_taken_over() -> None:
    """The one that was taken over learns it at its next renewal, and waits until the id is free."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session:
        with pytest.raises(AgentExists):
            await hosts.session(config=CONFIG).__aenter__()
        first = session.check()
        async with hosts.session(config=CONFIG, takeover=True) as other:
            assert await session.lost is LossReason.KEY_DELETED
            await asyncio.sleep(3 * TTL_S)
            assert other.incarnation == alive(here.etcd)
        assert (await back(session, first)).incarnation == alive(here.etcd)


@virtual
async def test_two_streams_with_one_secret_do_not_starve_each_other() -> None:
    """Somebody who has the secret opens the session now and then: its owner takes it back, and stays alive."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        for i in range(20):
            twin = Hosts(hosts.halls, hosts.clock, random.Random(i), current=i % 2).session(config=CONFIG)
            twin._keeper._secret = session._keeper._secret
            await twin._keeper.register()
            await session.put("n", str(i))
            await twin._keeper.close()
            await asyncio.sleep(1)
        assert session.check() == first
        assert stored(here.etcd, "n") == b"19"


# --- what fails for itself -----------------------------------------------------------------------------------------


@virtual
async def test_a_full_etcd_refuses_writes_and_ends_no_session() -> None:
    """Renewals go on; what is too large or has no name is refused before it is sent."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        here.etcd.set_no_space(True)
        with pytest.raises(NoSpace):
            await session.put("n", "1")
        await asyncio.sleep(3 * TTL_S)
        here.etcd.set_no_space(False)
        for key, value in (("n", b"x" * 65537), (REGISTRATION, b"x"), ("a/b", b"x")):
            with pytest.raises(ConfigError):
                await session.put(key, value)
        await session.put("n", "1")
        assert session.check() == first


@virtual
async def test_a_full_etcd_costs_nobody_a_life_whose_server_dies() -> None:
    """Sessions go on elsewhere although nothing can be written; later writes are still those of one stream alone."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=CONFIG) as session, observed(here, session):
        first = session.check()
        here.etcd.set_no_space(True)
        for _ in range(2):
            hung = hosts.halls[hosts.current]
            hung.pause()
            with pytest.raises((NoSpace, ServerUnavailable)):
                await session.put("n", "0")
            await asyncio.sleep(TTL_S)
            assert session.check() == first
            assert hosts.halls[hosts.current] is not hung
            here.etcd.set_no_space(False)
            await session.put("n", "1")
            hung.resume()
            await asyncio.sleep(1)
            assert stored(here.etcd, "n") == b"1"
            here.etcd.set_no_space(True)
        here.etcd.set_no_space(False)


@virtual
async def test_a_write_that_nobody_confirms_says_so() -> None:
    """Within the time that a call may take, while the session goes on."""
    here = world()
    async with halls_in(here) as hosts, hosts.session(config=AgentConfig(ttl_s=60)) as session:
        for hall in hosts.halls:
            hall.pause()
        with pytest.raises(ServerUnavailable, match="may have happened") as raised:
            await session.put("n", "1")
        assert raised.value.indefinite
        session.check()
        for hall in hosts.halls:
            hall.resume()
        await session.put("n", "2")
        assert stored(here.etcd, "n") == b"2"


@virtual
async def test_an_answer_counts_that_comes_before_its_request_is_seen_to_be_written() -> None:
    """Also where it is the last one of its stream, as that to `leave` is."""
    here = world()
    async with halls_in(here) as hosts:
        line = hosts.call()
        write = line.write

        async def slow(request: pb.SessionRequest) -> None:
            await write(request)
            await asyncio.sleep(1)

        line.write = slow  # type: ignore[method-assign]
        stream = SessionStream(line)
        await stream.ask(5, open=pb.SessionRequest.Open(agent="w", secret=b"s" * 16))
        assert (await stream.ask(5, leave=pb.SessionRequest.Leave())).HasField("left")
        assert stream.is_over
        await stream.close()


def test_settings_that_a_session_cannot_have_are_refused() -> None:
    """Before anything is sent."""
    hosts = Hosts([], None, random.Random(0))  # type: ignore[arg-type]
    for ttl_s in (4, 3601):
        with pytest.raises(ConfigError, match="whole seconds"):
            hosts.session(config=AgentConfig(ttl_s=ttl_s))


# --- everything at once --------------------------------------------------------------------------------------------


def disturb(here: World, hosts: Hosts, rng: random.Random) -> None:
    """Something happens to a server, or to etcd, or to the way between them."""
    hall = rng.choice(hosts.halls)
    match rng.randrange(5):
        case 0:
            hall.pause()
        case 1:
            hall.kill()
        case 2:
            hall.resume()
        case 3:
            hurt(here, rng, hall.machine, FAULTS)
        case 4:
            mend(here, hosts)


def mend(here: World, hosts: Hosts) -> None:
    """All is well again."""
    for hall in hosts.halls:
        hall.resume()
        hall.machine.transport.mend()
    for member in range(3):
        here.etcd.resume(member)


@pytest.mark.parametrize("seed", SEEDS)
@virtual
async def test_an_agent_never_believes_to_be_alive_when_it_is_not(seed: int) -> None:
    """Whatever happens to servers, networks and etcd's members; and what it wrote last is there when it is over."""
    here, rng = world(seed), random.Random(seed)
    async with halls_in(here, 3, rate=rng.choice((0.99, 1.0, 1.01))) as hosts:
        for hall in hosts.halls:
            hall.machine.transport.latency_s = rng.choice((0.001, 0.05))
        async with hosts.session(config=CONFIG) as session, observed(here, session):
            confirmed = -1
            for i in range(40):
                disturb(here, hosts, rng)
                with suppress(ElectionError):
                    await session.put("n", str(i))
                    confirmed = i
                await asyncio.sleep(rng.uniform(0, 2 * TTL_S / 3))
                if confirmed == i:
                    now = stored(here.etcd, "n")
                    assert now == str(i).encode(), f"seed {seed}: {now!r} after {i} was confirmed"
            mend(here, hosts)
            await until(lambda: session.registration is not None)
            await session.put("n", "end")
            assert stored(here.etcd, "n") == b"end"
    assert alive(here.etcd) == 0, f"seed {seed}"
