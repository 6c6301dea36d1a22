"""`election dev`: the whole system as processes, and what happens when they are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from election.config import EtcdConfig
from election.dev.ports import can_be_bound, free_ports
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.store import connect
from election.token import Token
from tests.integration.test_cli import Cli, Event, Running

pytestmark = pytest.mark.etcd

TTL_S = 5
GRACE_S = 5
LATE_S = 2.0
"""etcd looks for expired leases twice a second, and on a busy machine it takes time until we are told."""

KEYS = Keyspace("default")
STARTED = {"serve", *(f"orchestrator-{n}" for n in (1, 2, 3)), *(f"agent-{n}" for n in (1, 2, 3, 4, 5))}
ETCD = {"etcd-m1", "etcd-m2", "etcd-m3"}


class Dev:
    """A running `election dev`, and the commands and the client that look at it."""

    def __init__(self, cli: Cli, mark: str, folder: Path, respawn_s: int) -> None:
        self._cli, self._mark, self.folder = cli, mark, folder
        self.client_port, self.grpc_port = adjacent_ports(6), free_ports(1, "127.0.0.1")[0]
        self.members = tuple(f"127.0.0.1:{self.client_port + 2 * index}" for index in range(3))
        self.endpoints = ",".join(self.members)
        self.arguments = (
            *("dev", "-o", "json", "--data-dir", str(folder), "--respawn", str(respawn_s)),
            *("--client-port", str(self.client_port), "--grpc-port", str(self.grpc_port)),
        )
        self.running: Running

    async def start(self, *more: str) -> Running:
        """Starts it and waits until somebody leads."""
        self.running = self._cli.start(*self.arguments, *more, env={"DEV_RUN": self._mark})
        await self.running.until("elected", timeout_s=30)
        return self.running

    async def ask(self, *arguments: str) -> Any:
        """The JSON of a command that asks this etcd."""
        ended = await self._cli.run(*arguments, "-o", "json", "--endpoints", self.endpoints)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.document

    def client(self) -> EtcdClient:
        """A client of this etcd, for `async with`."""
        return EtcdClient(EtcdConfig(self.members))

    def pid(self, process: str) -> int:
        """The process id that a process had when it was last started."""
        started = [event for event in self.running.events if event["event"] == "started"]
        pids: dict[str, int] = {event["process"]: event["pid"] for event in started}
        return pids[process]

    def kill(self, *processes: str) -> float:
        """Ends processes as a crash would; returns the moment."""
        for process in processes:
            os.kill(self.pid(process), signal.SIGKILL)
        return time.monotonic()

    def leads(self) -> Event:
        """The last event that named a leader."""
        return [event for event in self.running.events if event["event"] == "elected"][-1]

    def logs(self) -> dict[str, str]:
        """What the processes said on stderr."""
        return {log.stem: log.read_text() for log in self.folder.glob("*.log")}

    def processes(self) -> set[int]:
        """Everything that was started by any run with this mark and has not ended, found by its environment."""
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
        return {pid for pid in pids if self._is_ours(pid)}

    async def until_nothing_runs(self, timeout_s: float = 5.0) -> None:
        """Waits until the last of them has ended."""
        give_up_at_s = time.monotonic() + timeout_s
        while left := self.processes():
            assert time.monotonic() < give_up_at_s, f"{left} still run after {timeout_s:g} s: {self.running}"
            await asyncio.sleep(0.05)

    def _is_ours(self, pid: int) -> bool:
        try:
            return f"DEV_RUN={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            return False


def adjacent_ports(count: int) -> int:
    """The first of some ports in a row, all free."""
    while True:
        (first,) = free_ports(1, "127.0.0.1")
        if all(can_be_bound("127.0.0.1", first + offset) for offset in range(count)):
            return first


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="election-test-") as made:
        yield Path(made)


@pytest.fixture
def cli(folder: Path) -> Iterator[Cli]:
    with Cli(folder) as made:
        yield made


@asynccontextmanager
async def dev_of(cli: Cli, namespace: str, folder: Path, respawn_s: int) -> AsyncIterator[Dev]:
    """A demo that is not started yet, and of which nothing is left at the end."""
    dev = Dev(cli, namespace, folder / "data", respawn_s)
    try:
        yield dev
    finally:
        for pid in dev.processes():
            with suppress(ProcessLookupError):  # it has ended by itself just now
                os.kill(pid, signal.SIGKILL)


async def test_a_killed_leader_is_followed_by_another_and_ctrl_c_ends_all(
    cli: Cli, namespace: str, folder: Path
) -> None:
    """From the start over a killed leader to SIGINT, and once more on the same data."""
    async with dev_of(cli, namespace, folder, respawn_s=6) as dev:
        running = await dev.start()
        ready = running.events[0]
        assert (ready["event"], ready["endpoints"]) == ("ready", dev.endpoints)
        assert ready["grpc"] == f"127.0.0.1:{dev.grpc_port}"
        first = dev.leads()

        leader = await dev.ask("leader", "demo")
        async with dev.client() as client:
            found, _ = await client.get(leader["key"].encode())
        assert found is not None
        assert leader["token"] == first["token"] == f"0-{found.create_revision}"
        assert leader["id"] == first["id"]

        await running.until("serving")
        served = await cli.run("leader", "demo", "-o", "json", "--server", ready["grpc"])
        assert served.document["token"] == first["token"]

        other = ("dev", "-o", "json", "--data-dir")
        refused = (
            (cli.start(*other, str(dev.folder)), str(dev.folder)),
            (cli.start(*other, str(folder / "other"), "--client-port", str(dev.client_port)), str(dev.client_port)),
            (cli.start(*other, str(folder / "another"), "--grpc-port", str(dev.grpc_port)), str(dev.grpc_port)),
        )
        for second, word in refused:
            (await second.ended()).assert_fails(word)

        since = len(running.events)
        killed_at_s = dev.kill(first["id"])
        await running.until("ended", since=since, process=first["id"], code=-signal.SIGKILL)
        elected = await running.until("elected", since=since)
        assert time.monotonic() - killed_at_s <= TTL_S + LATE_S
        assert elected["id"] != first["id"]
        assert Token.parse(elected["token"]) > Token.parse(first["token"])
        await running.until("started", since=since, process=first["id"])
        started = {event["process"] for event in running.events if event["event"] == "started"}
        assert started == STARTED | ETCD

        pids = {event["pid"] for event in running.events if event["event"] == "started"}
        dead = {event["pid"] for event in running.events if event["event"] == "ended"}
        assert dev.processes() == pids - dead | {running.process.pid}
        ended = await running.stop(signal.SIGINT)
        assert ended.code == 0, ended
        assert_terms(running)
        assert dev.processes() == set()

        began_at_s = time.monotonic()
        again = await dev.start("--duration", "4")
        assert Token.parse(dev.leads()["token"]) > Token.parse(elected["token"])
        ended = await again.ended()
        assert ended.code == 0, ended
        assert time.monotonic() - began_at_s >= 4
        assert dev.processes() == set()


async def test_the_tasks_of_a_killed_agent_go_to_another(cli: Cli, namespace: str, folder: Path) -> None:
    """What a killed agent held is reaped after TTL and grace, and goes to others; kill -9 of all leaves nothing."""
    async with dev_of(cli, namespace, folder, respawn_s=60) as dev:
        running = await dev.start()
        await running.until("collecting")
        await running.until("assigned")
        for number in (1, 2, 3, 4, 5):
            await running.until("joined", agent=f"agent-{number}")
        agents = await dev.ask("agents", "list")
        assert {agent["id"] for agent in agents} == {name for name in STARTED if name.startswith("agent-")}
        victim = max(agents, key=lambda agent: len(agent["state_keys"]))["id"]

        killed_at_s = dev.kill(victim)
        await running.until("stale", agent=victim)
        assert time.monotonic() - killed_at_s <= TTL_S + LATE_S
        reaped = await running.until("reaped", agent=victim, process="serve")
        async with dev.client() as client:
            assert not (await client.list(KEYS.states(victim))).kvs
        assert time.monotonic() - killed_at_s <= TTL_S + GRACE_S + 2
        tasks = {key for key in reaped["collected"] if key.startswith("task-")}
        assert tasks

        since = running.events.index(reaped)
        moved = {task: await running.until("reassigned", task=task, formerly=victim) for task in tasks}
        assert all(event["agent"] != victim for event in moved.values())
        holders = {agent["id"]: set(agent["state_keys"]) for agent in await dev.ask("agents", "list")}
        done = {event["task"] for event in running.events[since:] if event["event"] == "done"}
        assert victim not in holders
        assert {task for task, event in moved.items() if task not in holders[event["agent"]]} <= done

        assert len(dev.processes()) == 1 + len(STARTED | ETCD) - 1
        running.kill()
        await dev.until_nothing_runs()


async def test_a_new_leader_hands_over_what_was_reaped_while_nobody_led(cli: Cli, namespace: str, folder: Path) -> None:
    """It goes on after the last reap that its predecessor has handled; and an agent that drains gets nothing new."""
    async with dev_of(cli, namespace, folder, respawn_s=16) as dev:
        running = await dev.start()
        await running.until("collecting")
        for number in (1, 2, 3, 4, 5):
            await running.until("joined", agent=f"agent-{number}")
        agents: list[dict[str, Any]] = []
        while sum(len(agent["state_keys"]) for agent in agents) < 5:
            await asyncio.sleep(0.5)
            agents = await dev.ask("agents", "list")
        victim, draining = (agent["id"] for agent in sorted(agents, key=lambda each: -len(each["state_keys"]))[:2])
        await dev.ask("agents", "drain", draining)
        await running.until("updated", agent=draining)

        since = len(running.events)
        dev.kill("orchestrator-1", "orchestrator-2", "orchestrator-3", victim)
        reaped = await running.until("reaped", since=since, agent=victim, process="serve", timeout_s=20)
        tasks = {key for key in reaped["collected"] if key.startswith("task-")}
        assert tasks
        assert "elected" not in [event["event"] for event in running.events[since:]]
        async with connect(dev.members) as store, store.agent(victim):  # it is back, and has nothing in its state
            await running.until("elected", since=since, timeout_s=30)
            moved = [await running.until("reassigned", since=since, task=task, formerly=victim) for task in tasks]
        assert draining not in {event["agent"] for event in moved}
        given = [event for event in running.events[since:] if event["event"] in ("assigned", "reassigned")]
        assert draining not in {event["agent"] for event in given}
        states = {agent["id"]: agent["state"] for agent in await dev.ask("agents", "list")}
        assert states[draining] == "draining"


async def test_a_leader_outlives_members_of_etcd_but_not_its_quorum(cli: Cli, namespace: str, folder: Path) -> None:
    """One member at a time may die, etcd's leader too; without a quorum the leader stops before its lease can end."""
    async with dev_of(cli, namespace, folder, respawn_s=6) as dev:
        running = await dev.start()
        token = dev.leads()["token"]
        quiet_since = len(running.events)
        leading = await etcd_leader(dev)
        follower = min(ETCD - {leading})
        for member in (follower, leading):
            since = len(running.events)
            dev.kill(member)
            await running.until("started", since=since, process=member)
            await etcd_leader(dev)
        await asyncio.sleep(TTL_S)
        changes = [event for event in running.events[quiet_since:] if event["event"] in ("elected", "vacated", "lost")]
        assert changes == [], f"{changes}; the logs: {dev.logs()}"
        assert (await dev.ask("leader", "demo"))["token"] == token

        since = len(running.events)
        killed_at_s = dev.kill("etcd-m1", "etcd-m2")
        lost = await running.until("lost", since=since)
        assert time.monotonic() - killed_at_s <= TTL_S + 1
        assert (lost["token"], lost["reason"]) == (token, "expired")
        assert lost["margin_s"] >= -0.5
        for member in ("etcd-m1", "etcd-m2"):
            await running.until("started", since=since, process=member)
        elected = await running.until("elected", since=since, timeout_s=15)
        assert Token.parse(elected["token"]) > Token.parse(token)
        assert Token.parse((await dev.ask("leader", "demo"))["token"]) >= Token.parse(elected["token"])

        running.send(signal.SIGTERM)
        assert (await running.ended()).code == 0
        assert dev.processes() == set()
        assert_terms(running)
        told = [(event["event"], event["token"]) for event in running.events if event["event"] in ("lost", "leads")]
        assert told.index(("lost", token)) < told.index(("leads", elected["token"]))


def test_a_terminal_shows_a_live_view(cli: Cli, folder: Path) -> None:
    """On a terminal the demo shows who leads until Ctrl-C, and leaves the terminal in order."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        (sys.executable, "-m", "election.cli", "dev", *small(folder)),
        stdin=theirs, stdout=theirs, stderr=theirs, env={**cli.environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = read_terminal(ours, lambda text: "orchestrator-1" in text and "leads 'demo'" in text)
        process.send_signal(signal.SIGINT)
        shown += read_terminal(ours, lambda _: process.poll() is not None)
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
    assert process.returncode == 0, shown
    assert "Traceback" not in shown
    assert shown.rstrip().endswith("\x1b[?1049l"), "the screen from before is not shown again"


async def test_a_demo_that_nobody_reads_ends(cli: Cli, folder: Path) -> None:
    """`election dev | head -1` ends without a traceback."""
    code, err = await cli.run_unread("dev", *small(folder))
    assert ("Traceback" in err, code) == (False, 1), err


def small(folder: Path) -> tuple[str, ...]:
    """The options of a demo that starts fast."""
    ports = ("--client-port", str(adjacent_ports(2)), "--grpc-port", str(free_ports(1, "127.0.0.1")[0]))
    return ("--members", "1", "--orchestrators", "1", "--agents", "1", "--data-dir", str(folder / "data"), *ports)


def read_terminal(terminal: int, holds: Callable[[str], bool], timeout_s: float = 30.0) -> str:
    """What is written to a terminal until the text holds what is waited for."""
    give_up_at_s = time.monotonic() + timeout_s
    text = ""
    while not holds(text):
        assert time.monotonic() < give_up_at_s, text
        time.sleep(0.05)
        with suppress(OSError):  # nothing to read yet, or nobody there to write
            text += os.read(terminal, 1 << 20).decode(errors="replace")
    return text


async def test_an_etcd_that_cannot_be_run_is_one_line(cli: Cli, folder: Path) -> None:
    """A variable that names no program is said at once, and so is a data folder that cannot be used."""
    nothing = str(folder / "nothing")
    named = cli.start("dev", "--data-dir", str(folder / "data"), env={"ELECTION_ETCD_BIN": nothing})
    (await named.ended()).assert_fails("ELECTION_ETCD_BIN", nothing)
    (folder / "file").touch()
    below = cli.start("dev", "--data-dir", str(folder / "file" / "data"))
    (await below.ended()).assert_fails(str(folder / "file"))
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "ports.json").write_text("{")
    spoilt = cli.start("dev", "--data-dir", str(folder / "spoilt"))
    (await spoilt.ended()).assert_fails(str(folder / "spoilt"))


async def test_dev_is_not_led_astray_by_the_environment(cli: Cli, namespace: str, folder: Path) -> None:
    """Who has set up etcdctl or this program for another cluster can run the demo all the same."""
    (folder / "ca.pem").touch()
    elsewhere = {
        "ETCDCTL_CACERT": str(folder / "ca.pem"),
        "ETCDCTL_USER": "root:secret",
        "ETCDCTL_ENDPOINTS": "127.0.0.1:1",
        "ELECTION_ENDPOINTS": "127.0.0.1:1",
        "ELECTION_NAMESPACE": "another",
    }
    with Cli(folder, **elsewhere) as astray:
        async with dev_of(astray, namespace, folder, respawn_s=60) as dev:
            running = await dev.start()
            await running.until("serving", process="serve")
            assert "ended" not in running.names
            assert (await running.stop()).code == 0


def assert_terms(running: Running) -> None:
    """Each term has a larger token than all before, as it was told and as the orchestrators themselves saw it."""
    for name in ("elected", "leads"):
        tokens = [Token.parse(event["token"]) for event in running.events if event["event"] == name]
        assert tokens == sorted(set(tokens)), tokens


async def etcd_leader(dev: Dev) -> str:
    """The member that leads in etcd, once all three answer and agree on it."""
    give_up_at_s = time.monotonic() + 15
    async with dev.client() as client:
        while True:
            answers = await asyncio.gather(*(client.status(index) for index in range(3)), return_exceptions=True)
            healthy = [answer for answer in answers if not isinstance(answer, BaseException)]
            leaders = {answer.leader for answer in healthy}
            if len(healthy) == 3 and len(leaders) == 1 and leaders != {0}:
                (leader,) = leaders
                return f"etcd-m{1 + [answer.header.member_id for answer in healthy].index(leader)}"
            assert time.monotonic() < give_up_at_s, f"etcd does not agree on a leader: {answers}"
            await asyncio.sleep(0.1)
