"""A real etcd is restored from a real snapshot: tokens never shrink, and the operator is told how to go on."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from election import Candidate, CandidateConfig, ConfigError, ElectionError, RolledBack, Store, Term, Token, connect
from election.dev.etcd import EtcdCluster, find_binary
from election.fencing.txn import fenced_put
from election.leadership import Leading
from election.reader import LeaderEvent, LeaderEventKind

pytestmark = pytest.mark.etcd

ELECTION = "demo"
QUICK = CandidateConfig(ttl_s=3, retry_max_s=1.0)


async def run(*command: object) -> str:
    """Runs a program to its end; returns what it says."""

    def finish() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False, env={"ETCDCTL_API": "3"}
        )

    ended = await asyncio.to_thread(finish)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def restorer() -> Path:
    """What restores snapshots: a program of its own since etcd 3.5."""
    try:
        return find_binary("etcdutl")
    except ConfigError:
        return find_binary("etcdctl")


async def save(cluster: EtcdCluster, file: Path) -> None:
    await run(find_binary("etcdctl"), f"--endpoints={cluster.endpoints[0]}", "snapshot", "save", file)


async def restore(cluster: EtcdCluster, folder: Path, file: Path, *flags: str) -> None:
    """Stops all members and starts them again from the snapshot, as an operator does it."""
    cluster.kill()
    for member in cluster.members:
        shutil.rmtree(folder / member.name)
        await run(
            restorer(),
            "snapshot",
            "restore",
            file,
            f"--name={member.name}",
            f"--data-dir={folder / member.name}",
            "--initial-cluster=" + ",".join(f"{each.name}={each.peer_url}" for each in cluster.members),
            f"--initial-cluster-token=election-{cluster.members[0].peer_url.rpartition(':')[2]}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            *flags,
        )
    for member in cluster.members:
        member.spawn()
    await cluster.wait_healthy()


async def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


def token(candidate: Candidate) -> Token:
    assert isinstance(candidate.state, Leading)
    return candidate.state.token


async def epoch(store: Store, word: str) -> dict[str, object]:
    """`election epoch show` or `raise`."""
    where = (f"--endpoints={','.join(store.config.endpoints)}", f"--namespace={store.keyspace.namespace}")
    return dict(json.loads(await run(sys.executable, "-m", "election.cli", "epoch", word, *where, "-o", "json")))


class Standing:
    """Two candidates that stand, a third who observes, and a snapshot of before the present term."""

    def __init__(self, store: Store) -> None:
        self.candidates = [store.candidate(ELECTION, id=name, config=QUICK) for name in "ab"]
        self.tokens: list[Token] = []
        self.seen: list[LeaderEvent] = []
        self._store = store

    async def lead(self, candidate: Candidate) -> None:
        await candidate.lead(self._work)

    async def observe(self) -> None:
        async for event in self._store.candidate(ELECTION, id="observer").observe():
            self.seen.append(event)

    async def _work(self, term: Term) -> None:
        self.tokens.append(term.token)
        await fenced_put(self._store.client, term, self._store.keyspace.root + b"resource", b"")
        await asyncio.Event().wait()

    def has_led(self, terms: int) -> bool:
        return len(self.tokens) == terms

    def leader(self) -> Candidate | None:
        return next((candidate for candidate in self.candidates if candidate.is_leader), None)

    def hands_over(self) -> bool:
        """Whether somebody led and somebody else waited, to whom it hands over."""
        try:
            if (leader := self.leader()) is None:
                return False
            leader.hand_over()
            return True
        except ElectionError:
            return False

    async def leads(self) -> Candidate:
        await until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        return leader


async def restored(
    folder: Path, namespace: str, *flags: str, then: Callable[[Standing, Store, Token], Awaitable[None]]
) -> None:
    """Lets terms follow each other, sets etcd back to before the last ones, and goes on with `then`."""
    data = folder / "data"
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await EtcdCluster.start(data_dir=data, members=3))
        connected = connect(cluster.endpoints, namespace=namespace, state_dir=folder / "state")
        store = await stack.enter_async_context(connected)
        here = Standing(store)
        async with asyncio.TaskGroup() as group:
            standing = [group.create_task(here.lead(candidate)) for candidate in here.candidates]
            observing = group.create_task(here.observe())
            await here.leads()
            await save(cluster, folder / "snapshot")
            for _ in range(20):
                await store.client.put(b"elsewhere", b"")
            for terms in (2, 3):  # whoever leads at the end has queued after the snapshot
                await until(here.hands_over)
                await until(partial(here.has_led, terms))
            before = token(await here.leads())
            await restore(cluster, data, folder / "snapshot", *flags)
            await then(here, store, before)
            for candidate in here.candidates:
                candidate.leave()
            await asyncio.gather(*standing)
            observing.cancel()
        assert here.tokens == sorted(set(here.tokens))


async def test_a_restored_etcd_is_led_in_once_the_epoch_is_raised(tmp_path: Path, namespace: str) -> None:
    """Nobody leads before: not who stood, not who comes anew, not a process that has only its state folder."""

    async def then(here: Standing, store: Store, before: Token) -> None:
        terms = len(here.tokens)
        async with asyncio.timeout(10):
            while not (shown := await epoch(store, "show"))["revision"]:
                await asyncio.sleep(0.1)
        assert shown["epoch"] == 0
        assert isinstance(shown["revision"], int)
        assert shown["revision"] >= before.revision
        assert here.leader() is None
        for state_dir in (None, tmp_path / "state"):
            async with connect(store.config.endpoints, namespace=namespace, state_dir=state_dir) as other:
                newcomer = other.candidate(ELECTION, id="newcomer", config=QUICK)

                async def stands(newcomer: Candidate = newcomer) -> None:
                    with pytest.raises(RolledBack, match=r"set back.*has been seen.*`election epoch raise`"):
                        await newcomer.lead(here._work)

                await asyncio.wait_for(stands(), 10)
        assert len(here.tokens) == terms
        assert (await epoch(store, "raise"))["epoch"] == 1
        after = token(await here.leads())
        assert after.epoch == 1
        assert after.revision < before.revision
        assert after > before
        await until(lambda: here.seen[-1].leader is not None and here.seen[-1].leader.token == after)
        assert LeaderEventKind.VACATED in [event.kind for event in here.seen[1:]]

    await restored(tmp_path, namespace, then=then)


async def test_a_restore_with_a_bumped_revision_is_led_in_at_once(tmp_path: Path, namespace: str) -> None:
    """Without an operator: watches begin anew, and the raft terms that count anew are no deposed leader's."""
    if "--bump-revision" not in await run(restorer(), "snapshot", "restore", "--help"):
        pytest.skip(f"{restorer()} cannot bump the revision")

    async def then(here: Standing, store: Store, before: Token) -> None:
        terms = len(here.tokens)
        await until(lambda: len(here.tokens) > terms)
        after = token(await here.leads())
        assert after.epoch == 0
        assert after > before
        await asyncio.sleep(2 * QUICK.ttl_s)
        assert token(await here.leads()) == after

    await restored(tmp_path, namespace, "--bump-revision=1000000", "--mark-compacted", then=then)
