"""Candidates on a real cluster: one leads at a time, whatever happens to members, keys, leases and processes."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from election import (
    Candidate,
    CandidateConfig,
    Deposed,
    LossReason,
    NoSpace,
    NotLeader,
    Store,
    Term,
    Token,
    connect,
    fenced_delete,
    fenced_put,
    fenced_txn,
    guard,
)
from election.backoff import Backoff
from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster, Member, find_binary
from election.dev.parent import bound_to_this_process
from election.etcd import methods, txn
from election.etcd.client import EtcdClient
from election.etcd.lease import grant, renewals
from election.etcd.methods import Method
from election.etcd.transport import GrpcTransport
from election.leadership import Closed, Leading
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc
from tests.integration.ran import (
    CLOCK,
    ELECTION,
    QUICK,
    STEADY,
    Ran,
    leading,
    leads,
    lease,
    led_to_its_deadline,
    queued_anew,
    reason,
    standing,
    token,
    until,
    until_true,
)
from tests.integration.rivals import followers, rivals

pytestmark = pytest.mark.etcd


@pytest.fixture
async def store(etcd_cluster: EtcdCluster, namespace: str) -> AsyncIterator[Store]:
    """A store of the shared cluster."""
    async with connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


async def nothing_is_left(store: Store, leases: set[int]) -> None:
    """All keys and leases are gone but those that were there before."""
    assert (await store.client.list(store.keyspace.campaigns)).count == 0
    assert {each.ID for each in (await store.client.leases()).leases} <= leases


async def leases_of(store: Store) -> set[int]:
    return {each.ID for each in (await store.client.leases()).leases}


async def etcdctl(endpoints: Sequence[str], *arguments: str) -> str:
    command = [str(find_binary("etcdctl")), f"--endpoints={','.join(endpoints)}", *arguments]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"ETCDCTL_API": "3"})

    ran = await asyncio.to_thread(run)
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}"
    return ran.stdout


@dataclass(frozen=True)
class Queued:
    """A key of the queue as etcdctl shows it."""

    key: bytes
    token: int
    lease: int


async def queue(store: Store, election: str = ELECTION) -> list[Queued]:
    """The queue as etcd's own tool reads it, oldest first."""
    prefix = store.keyspace.campaign(election).decode()
    rows = json.loads(await etcdctl(store.config.endpoints, "get", "--prefix", prefix, "-w", "json")).get("kvs", [])
    found = [Queued(base64.b64decode(row["key"]), row["create_revision"], row["lease"]) for row in rows]
    return sorted(found, key=lambda each: each.token)


# --- one leads, the next one follows ----------------------------------------------------------------------------


async def test_the_oldest_leads_and_the_next_one_follows_with_a_larger_token(store: Store) -> None:
    """The token is the create revision of the leader's key, as etcdctl reads it, and the key is on its lease."""
    leases = await leases_of(store)
    ran, candidates = Ran(), [store.candidate(ELECTION, id=name, config=QUICK) for name in "abc"]
    async with standing(ran, *candidates):
        for number, expected in enumerate(candidates):
            assert await leads(ran, *candidates) is expected
            state, seen = leading(expected), await queue(store)
            assert seen[0] == Queued(store.keyspace.candidate(ELECTION, state.lease), state.token.revision, state.lease)
            assert state.lease > 0
            assert len(seen) == 3 - number
            expected.leave()
            assert not expected.is_leader
    assert ran.ids == ["a", "b", "c"]
    ran.check()
    await nothing_is_left(store, leases)


async def test_a_hundred_candidates_hand_over_twenty_times(store: Store) -> None:
    """A hundred stand on one connection, one leads at a time, and the longest waiting one is always the next."""
    ran, candidates = Ran(), [store.candidate(ELECTION, id=f"c{number:02}") for number in range(100)]
    tasks = [asyncio.create_task(candidate.lead(ran.work)) for candidate in candidates]
    try:
        await until(lambda: all(token(candidate) for candidate in candidates), 60)
        for _ in range(20):
            leader = await leads(ran, *candidates)
            assert token(leader) == min(filter(None, map(token, candidates)))
            leader.leave()
            assert not any(candidate.is_leader for candidate in candidates)
        await leads(ran, *candidates)
    finally:
        for candidate in candidates:
            candidate.leave()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert len(ran.spans) >= 21  # everybody leaves at once at the end, which may still let some lead
    ran.check()


async def test_a_process_stands_for_five_elections_at_once(
    store: Store, etcd_cluster: EtcdCluster, namespace: str
) -> None:
    """Each election has its own lease and its own leader, and losing one leaves the others alone; so do two stores."""
    names = [f"e{number}" for number in range(5)]
    async with connect(etcd_cluster.endpoints, namespace=namespace) as other, AsyncExitStack() as stack:
        rans = {name: Ran() for name in names}
        ours = {name: store.candidate(name, id="ours", config=QUICK) for name in names}
        theirs = {name: other.candidate(name, id="theirs", config=QUICK) for name in names}
        for name in names:
            await stack.enter_async_context(standing(rans[name], ours[name], theirs[name]))
        await until(lambda: all(candidate.is_leader for candidate in ours.values()))
        held = {name: leading(ours[name]) for name in names}
        assert len({state.lease for state in held.values()}) == 5

        ours["e2"].leave()
        assert await leads(rans["e2"], ours["e2"], theirs["e2"]) is theirs["e2"]
        assert leading(theirs["e2"]).token > held["e2"].token
        for name in set(names) - {"e2"}:
            assert ours[name].is_leader
            assert leading(ours[name]).token == held[name].token
            assert not theirs[name].is_leader
    for ran in rans.values():
        ran.check()


async def test_two_users_of_etcd_share_an_election(namespace: str) -> None:
    """Two stores of one process, each with a user of its own, whose candidates stand behind each other."""
    async with guarded_cluster(namespace) as cluster, AsyncExitStack() as stack:
        ran, candidates = Ran(), []
        for user in ("alice", "bob"):
            store = await stack.enter_async_context(connect_as(user, cluster, f"{namespace}-shared"))
            candidates += [store.candidate(ELECTION, id=f"{user}-{number}", config=QUICK) for number in (1, 2)]
        async with standing(ran, *candidates):
            for expected in candidates:
                assert await leads(ran, *candidates) is expected
                expected.leave()
    assert ran.ids == ["alice-1", "alice-2", "bob-1", "bob-2"]
    ran.check()


async def test_a_user_whom_etcd_does_not_let_wait_is_queued_all_the_same(namespace: str) -> None:
    """etcd lets all Campaigns of a member wait by one watch, with the rights of the user who was there first.

    The Campaign of a second user, who has other rights, fails as soon as its key is written: the key stays queued,
    and the candidate goes by its own watch.
    """
    async with guarded_cluster(namespace) as cluster, AsyncExitStack() as stack:
        rans, queues = {}, {}
        for user in ("alice", "bob"):
            store = await stack.enter_async_context(connect_as(user, cluster, f"{namespace}-{user}"))
            rans[user] = Ran()
            queues[user] = [store.candidate(ELECTION, id=f"{user}-{number}", config=QUICK) for number in (1, 2)]
            await stack.enter_async_context(standing(rans[user], *queues[user]))
        for user in ("bob", "alice"):
            for expected in queues[user]:
                assert await leads(rans[user], *queues[user]) is expected
                expected.leave()
    for ran in rans.values():
        ran.check()


def connect_as(user: str, cluster: EtcdCluster, namespace: str) -> Store:
    return connect(cluster.endpoints, namespace=namespace, user=f"{user}:secret")


@asynccontextmanager
async def guarded_cluster(namespace: str) -> AsyncIterator[EtcdCluster]:
    """One member with two users, who share one namespace and have one each of their own."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        started = await EtcdCluster.start(data_dir=Path(folder), members=1, extra_args=["--bcrypt-cost=4"])
        async with started as cluster:
            commands = ["user add root:secret", "role add root", "user grant-role root root"]
            for user in ("alice", "bob"):
                commands += [f"role add {user}", f"user add {user}:secret", f"user grant-role {user} {user}"]
                for name in (user, "shared"):
                    prefix = f"/election/{namespace}-{name}/"
                    commands.append(f"role grant-permission --prefix=true {user} readwrite {prefix}")
            for command in (*commands, "auth enable"):
                await etcdctl(cluster.endpoints, *command.split())
            cluster.credentials = ("root", "secret")
            yield cluster


@asynccontextmanager
async def stranger(store: Store, value: bytes) -> AsyncIterator[asyncio.Task[el.CampaignResponse]]:
    """A candidate of another program: etcd's Campaign, a lease that is kept alive, and a value that is not ours."""
    client, backoff = store.client, Backoff(0.25, 1.0, random.Random(1))
    held = await grant(client, ttl_s=3, margin_s=1.0, renew_s=1.0)

    async def keep_alive() -> None:
        async for _ in renewals(client, held, backoff):
            pass

    renewing = asyncio.create_task(keep_alive())
    campaign = asyncio.create_task(client.campaign(store.keyspace.campaign_name(ELECTION), held.id, value))
    try:
        await until_true(lambda: exists(client, store.keyspace.candidate(ELECTION, held.id)))
        yield campaign
    finally:
        renewing.cancel()
        campaign.cancel()
        await asyncio.wait({renewing, campaign})
        await client.lease_revoke(held.id)


async def exists(client: EtcdClient, key: bytes) -> bool:
    return (await client.get(key))[0] is not None


async def test_a_strangers_candidate_is_queued_with_ours(store: Store) -> None:
    """It leads while its key is the oldest and ours waits; ours leads when it resigns, and it when ours leaves."""
    ran, ours = Ran(), store.candidate(ELECTION, id="ours", config=QUICK)
    async with store.view() as view, stranger(store, b"alice") as campaign:
        first = (await campaign).leader

        async def alice_leads() -> bool:
            return (await view.leader(ELECTION)).value is not None

        await until_true(alice_leads)
        async with standing(ran, ours), stranger(store, b"bob") as behind:
            held_since_s = CLOCK.now_s()
            # Longer than the TTL: all three would be gone by now if they were not renewed.
            while CLOCK.now_s() < held_since_s + 4:
                assert not ours.is_leader
                leader = (await view.leader(ELECTION)).value
                assert leader is not None
                assert (leader.id, leader.token, leader.proven) == ("alice", Token(0, first.rev), False)
                await asyncio.sleep(0.05)
            await store.client.resign(first)
            await leads(ran, ours)
            assert first.rev < token(ours)
            assert not behind.done()
            state = leading(ours)
            ours.leave()

            async def bob_leads() -> bool:  # his Campaign may not hear of it: etcd can lose the event that it waits for
                leader = (await view.leader(ELECTION)).value
                return leader is not None and leader.id == "bob" and leader.token > state.token

            await until_true(bob_leads)
    assert ran.ids == ["ours"]


# --- what others do to a candidate's key and lease --------------------------------------------------------------


async def test_a_lost_key_or_lease_costs_the_term_and_the_candidate_stands_again(store: Store) -> None:
    """Whoever deletes a key or revokes a lease, leader's or not: its owner queues anew, at the end, on a new lease."""
    ran, client = Ran(), store.client
    a, b, c = candidates = [store.candidate(ELECTION, id=name, config=QUICK) for name in "abc"]

    async def queued_again(candidate: Candidate, lost: int) -> None:
        await queued_anew(candidate, lost)
        assert token(candidate) == max(map(token, candidates))

    async with standing(ran, *candidates):
        await leads(ran, a)
        waited, old_lease = token(c), lease(c)
        await client.delete(store.keyspace.candidate(ELECTION, old_lease))
        await queued_again(c, waited)
        assert lease(c) != old_lease

        led = leading(a)
        await client.delete(store.keyspace.candidate(ELECTION, led.lease))
        assert await leads(ran, b, c) is b
        assert token(b) > led.token.revision
        await queued_again(a, led.token.revision)
        assert reason(a) is LossReason.KEY_DELETED
        assert lease(a) != led.lease

        led = leading(b)
        await client.lease_revoke(led.lease)
        assert await leads(ran, a, c) is c
        await queued_again(b, led.token.revision)
        assert reason(b) in (LossReason.KEY_DELETED, LossReason.EXPIRED)

        waited = token(a)
        await client.lease_revoke(lease(a))
        await queued_again(a, waited)
        c.leave()
        assert await leads(ran, a, b) is b
    assert ran.ids[:4] == ["a", "b", "c", "b"]
    ran.check_tokens()


async def test_a_fenced_transaction_is_for_the_leader_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes under the right token, tells when only its own comparison fails, and is refused afterwards."""
    ran, client, key = Ran(), store.client, store.keyspace.root + b"resource"

    async def written() -> bytes | None:
        found, _ = await client.get(key)
        return found.value if found else None

    a, b = (store.candidate(ELECTION, id=name, config=QUICK) for name in "ab")
    async with standing(ran, a, b):
        await leads(ran, a)
        term = ran.spans[0].term
        first = await fenced_txn(client, term, [txn.absent(key)], [txn.put(key, b"1")])
        assert first.succeeded
        second = await fenced_txn(client, term, [txn.absent(key)], [txn.put(key, b"2")], [txn.get(key)])
        assert not second.succeeded
        [found] = second.responses[0].response_range.kvs
        assert (found.value, found.mod_revision) == (b"1", first.header.revision)
        assert await fenced_put(client, term, key, b"2") == first.header.revision + 1
        assert await fenced_delete(client, term, key)
        assert not await fenced_delete(client, term, key)
        assert (await client.txn([guard(term)], [txn.put(key, b"3")])).succeeded
        assert await written() == b"3"

        await client.delete(term.key)
        assert await leads(ran, b) is b
        await queued_anew(a, term.token.revision)
        with pytest.raises(NotLeader) as lost:
            await fenced_txn(client, term, [], [txn.put(key, b"4")])
        assert lost.value.reason is LossReason.KEY_DELETED
        assert not (await client.txn([guard(term)], [txn.put(key, b"5")])).succeeded
        monkeypatch.setattr(Term, "check", lambda self: None)  # a clock that is wrong, or a process that was paused
        with pytest.raises(Deposed):
            await fenced_put(client, term, key, b"6")
        await fenced_put(client, ran.spans[1].term, key, b"7")
        for refused in (
            fenced_txn(client, term, [txn.absent(key)], [], [txn.put(key, b"8")]),
            fenced_delete(client, term, key),
        ):
            with pytest.raises(Deposed):
                await refused
        assert await written() == b"7"


# --- what happens to etcd ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", [Member.kill, Member.pause], ids=["killed", "paused"])
async def test_a_term_outlives_any_member(
    fresh_cluster: EtcdCluster, namespace: str, hurt: Callable[[Member], None]
) -> None:
    """A leader keeps its token when the member that it talks to is hurt, and when etcd's own leader is."""
    async with rivals(fresh_cluster, namespace) as here:
        follower, _ = await followers(fresh_cluster)
        async with here.through():
            hurt(follower)
        await here.heal()
        raft_leader = await fresh_cluster.leader()
        async with here.through():
            hurt(raft_leader)
        await here.heal()


async def test_a_term_outlives_changes_of_etcds_leader_and_compactions(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """Also when the history from where a watch would go on is gone, and it has to begin with a list."""
    config = EtcdConfig(fresh_cluster.endpoints)
    transport = GrpcTransport(config)
    async with rivals(fresh_cluster, namespace) as here, EtcdClient(config, transport=transport) as client:
        ids = [(await client.status(member.index)).header.member_id for member in fresh_cluster.members]
        for _ in range(2):
            leader = await fresh_cluster.leader()
            target = fresh_cluster.members[(leader.index + 1) % 3]
            async with here.through():
                request = rpc.MoveLeaderRequest(targetID=ids[target.index])
                await transport.unary(leader.index, methods.MOVE_LEADER, request, timeout_s=10, metadata=())
                assert await fresh_cluster.leader() is target

        async with here.through():
            for number in range(5):
                put = await client.put(b"/unrelated", b"%d" % number)
            await client.compact(put.header.revision)
            follower, _ = await followers(fresh_cluster)
            follower.kill()  # its watches go on elsewhere, and are told that their revision is compacted
        await here.heal()


async def test_a_leader_without_a_quorum_stops_before_its_lease_can_end(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """It leads until its deadline and not a moment longer, its work ends within the margin, and others lead later."""
    async with connect(fresh_cluster.endpoints, namespace=namespace) as store:
        ran, candidates = Ran(), [store.candidate(ELECTION, id=name, config=QUICK) for name in "ab"]
        a, _ = candidates
        async with standing(ran, *candidates):
            await leads(ran, a)
            for member in fresh_cluster.members[:2]:
                member.kill()
            state = await led_to_its_deadline(a)
            assert reason(a) is LossReason.EXPIRED
            [span] = ran.spans
            await until(lambda: span.ended_s is not None)
            assert span.ended_s is not None
            assert span.ended_s < state.deadline_s + QUICK.margin_s

            for member in fresh_cluster.members[:2]:
                await member.start()
            await leads(ran, *candidates, timeout_s=15)
            ran.check()
            assert ran.spans[-1].term.token > span.term.token


async def test_candidates_go_on_when_all_members_were_restarted_at_once(
    fresh_cluster: EtcdCluster, namespace: str
) -> None:
    """The term goes on or a later one begins; work never overlaps, and handing over works as before."""
    async with connect(fresh_cluster.endpoints, namespace=namespace) as store:
        ran, candidates = Ran(), [store.candidate(ELECTION, id=name, config=STEADY) for name in "abc"]
        async with standing(ran, *candidates):
            await leads(ran, *candidates)
            await asyncio.gather(*(member.restart() for member in fresh_cluster.members))
            healed_s = CLOCK.now_s()

            deadline_s = healed_s + STEADY.ttl_s - STEADY.margin_s

            def led_anew() -> bool:
                states = [candidate.state for candidate in candidates]
                return any(isinstance(state, Leading) and state.deadline_s > deadline_s for state in states)

            await until(led_anew, 15)
            for _ in range(2):
                leader = await leads(ran, *candidates)
                leader.leave()
            await leads(ran, *candidates)
        ran.check()


DEFRAGMENT = Method("/etcdserverpb.Maintenance/Defragment", rpc.DefragmentRequest, rpc.DefragmentResponse)


async def test_a_full_etcd_keeps_its_leader_and_elects_nobody(
    namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who leads goes on; who cannot stand or prove is told so; all go on by themselves once there is space again."""
    extra_args = [f"--quota-backend-bytes={4 * 1024 * 1024}"]
    async with await EtcdCluster.start(data_dir=tmp_path, members=1, extra_args=extra_args) as cluster:
        async with connect(cluster.endpoints, namespace=namespace) as store:
            ran, client = Ran(), store.client
            a, b, c = candidates = [store.candidate(ELECTION, id=name, config=QUICK) for name in "abc"]
            async with standing(ran, *candidates):
                await leads(ran, a)
                led, waited, full_s = leading(a), token(c), await fill(client)

                with pytest.raises(NoSpace, match="NOSPACE alarm"):
                    await store.candidate(ELECTION, id="new", config=QUICK).lead(ran.work)
                await client.lease_revoke(lease(c))
                await until(lambda: told(caplog, "c"))
                await until(lambda: leading(a).deadline_s > full_s + 2 * QUICK.ttl_s)
                assert leading(a).token == led.token

                a.leave()
                await until(lambda: a.state == Closed())
                assert not await exists(client, store.keyspace.candidate(ELECTION, led.lease))
                await until(lambda: told(caplog, "b"))
                assert not any(candidate.is_leader for candidate in candidates)
                assert ran.ids == ["a"]

                await make_space(client)
                assert await leads(ran, b, c) is b
                await until(lambda: token(c) > waited)
        assert ran.ids == ["a", "b", "c"] or ran.ids == ["a", "b"]
        ran.check()


def told(caplog: pytest.LogCaptureFixture, id: str) -> bool:
    """Whether the log says that this candidate is held up by the alarm."""
    texts = [record.getMessage() for record in caplog.records]
    return any(text.startswith(f"{id} ") and "NOSPACE alarm" in text for text in texts)


async def fill(client: EtcdClient) -> float:
    """Writes until etcd takes nothing any more; returns when that was."""
    for number in range(100):
        try:
            await client.put(b"/filling/%d" % number, b"v" * 500_000)
        except NoSpace:
            return CLOCK.now_s()
    raise AssertionError("etcd took 50 MB")


async def make_space(client: EtcdClient) -> None:
    deleted = await client.delete(b"/filling/", b"/filling0")
    await client.compact(deleted.header.revision)
    await client.call(DEFRAGMENT, rpc.DefragmentRequest(), timeout_s=20)
    raised = await client.call(methods.ALARM, rpc.AlarmRequest(action=rpc.AlarmRequest.GET))
    for alarm in raised.alarms:
        disarm = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
        await client.call(methods.ALARM, disarm)


# --- what happens to processes ----------------------------------------------------------------------------------


LEADING_PROCESS = """
import asyncio, json, sys

from election import CandidateConfig, Deposed, NotLeader, connect, fenced_txn, guard
from election.clock import BootClock
from election.etcd import txn

endpoints, namespace, ttl_s, resource = sys.argv[1:]


def say(**what):
    print(json.dumps(what), flush=True)


async def main():
    clock, write, terms, answers = BootClock(), txn.put(resource.encode(), b"written"), [], {}
    async with connect(endpoints, namespace=namespace) as store:

        async def work(term):
            terms.append(term)
            say(token=term.token.revision)
            try:
                while True:
                    now_s = clock.now_s()
                    term.check()
                    answers["checked_at_s"] = now_s
                    await asyncio.sleep(0.002)
            except (NotLeader, asyncio.CancelledError):
                pass
            try:
                term.check()
            except NotLeader as error:
                answers["check"] = error.reason
            try:
                answers["fenced_txn"] = (await fenced_txn(store.client, term, [], [write])).succeeded
            except (NotLeader, Deposed) as error:
                answers["fenced_txn"] = type(error).__name__

        candidate = store.candidate("demo", id="process", config=CandidateConfig(ttl_s=int(ttl_s)))
        await candidate.lead(work, once=True)
        forced = await store.client.txn([guard(terms[0])], [write])
        say(**answers, forced=forced.succeeded)


asyncio.run(main())
"""


class Process:
    """A process of its own that stands, and leads until it finds out that it does not."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, timeout_s: float = 20.0) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> float:
        """Sends a signal; returns when that was."""
        sent_at_s = CLOCK.now_s()
        self._process.send_signal(number)
        return sent_at_s

    async def end(self) -> int:
        return await asyncio.wait_for(self._process.wait(), 20)


@asynccontextmanager
async def leading_process(store: Store, config: CandidateConfig) -> AsyncIterator[tuple[Process, int]]:
    """A process that leads, and its token."""
    arguments = [",".join(store.config.endpoints), store.keyspace.namespace, str(config.ttl_s)]
    command = bound_to_this_process([sys.executable, "-c", LEADING_PROCESS, *arguments, resource(store).decode()])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        made = Process(process)
        yield made, (await made.says())["token"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def resource(store: Store) -> bytes:
    return store.keyspace.root + b"resource"


async def test_a_process_that_was_stopped_is_refused_when_it_wakes_up(store: Store) -> None:
    """Somebody else leads since its lease ended; its first check raises, and etcd refuses what it writes."""
    ran, successor = Ran(), store.candidate(ELECTION, id="successor", config=QUICK)
    async with leading_process(store, QUICK) as (process, old_token), standing(ran, successor):
        assert 0 < old_token < token(successor)
        process.signal(signal.SIGSTOP)
        await leads(ran, successor)
        process.signal(signal.SIGCONT)
        woken = await process.says()
        assert woken["check"] == "expired"
        assert woken["fenced_txn"] == "NotLeader"
        assert woken["forced"] is False
        assert woken["checked_at_s"] < ran.spans[0].began_s
        assert not await exists(store.client, resource(store))
        assert await process.end() == 0
        assert successor.is_leader
    assert ran.ids == ["successor"]


async def test_a_killed_process_is_followed_when_its_lease_ends(store: Store) -> None:
    """Nobody revokes its lease, so it takes the TTL and as long as etcd needs to notice."""
    ran, successor = Ran(), store.candidate(ELECTION, id="successor", config=QUICK)
    async with leading_process(store, QUICK) as (process, old_token), standing(ran, successor):
        killed_at_s = process.signal(signal.SIGKILL)
        assert await process.end() == -signal.SIGKILL
        await leads(ran, successor)
        assert leading(successor).token.revision > old_token
        assert ran.spans[0].began_s - killed_at_s < QUICK.ttl_s + 1
