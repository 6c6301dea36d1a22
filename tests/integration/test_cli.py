"""The command line as people and scripts use it: real processes against a real etcd."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from election.agent_records import AgentRecord
from election.config import TlsConfig
from election.dev.etcd import EtcdCluster, find_binary
from election.dev.parent import bound_to_this_process
from election.dev.ports import free_ports
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from election.records import CandidateRecord
from election.token import Token
from tests.integration.test_etcd_client import Authority

pytestmark = pytest.mark.etcd

Event = dict[str, Any]

NOWHERE = "127.0.0.1:1"
"""An endpoint on which nobody listens."""

POLL_S = 0.02

START_S = 5.0
"""What it may take to start a few interpreters at once on a busy machine."""

SETTINGS = re.compile("(ELECTION|ETCDCTL|OTEL)_")
READS = ("leader", "observe", "candidates", "list", "agents list")
RUNS = ("campaign", "agents join", "collect", "serve")
NAMED = {"leader", "observe", "candidates", "campaign", "agents join"}
COMMANDS = ("", "agents", *READS, *RUNS, "dev", "drill", "version")


def revision(token: str) -> int:
    """The revision of a token as it is printed."""
    return Token.parse(token).revision


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its stdout, as the one JSON document that it must be."""
        return json.loads(self.out)

    def assert_fails(self, *words: str, code: int = 1) -> None:
        """It failed with one line on stderr that has these words, and said nothing else."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        assert [word for word in words if word not in self.err] == [], self


class Running:
    """A process of the command line, whose output goes to files that are read while it runs."""

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str], out: Path, err: Path) -> None:
        self._arguments, self._out, self._err = arguments, out, err
        self._read, self._rest = 0, ""
        self._events: list[Event] = []
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self.process = subprocess.Popen(
                bound_to_this_process((sys.executable, "-m", "election.cli", *arguments)),
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment,
            )  # fmt: skip

    def __str__(self) -> str:
        state = self.process.poll()
        texts = (self._out.read_text(errors="replace"), self._err.read_text(errors="replace"))
        return f"election {' '.join(self._arguments)} (exit code {state}): " + " | ".join(texts)

    @property
    def events(self) -> list[Event]:
        """The JSON lines on its stdout so far; each line has to be one."""
        with self._out.open() as out:
            out.seek(self._read)
            text = out.read()
            self._read = out.tell()
        *lines, self._rest = (self._rest + text).split("\n")
        self._events += map(json.loads, lines)
        return self._events

    @property
    def names(self) -> list[str]:
        """What happened so far, by the events' names."""
        return [event["event"] for event in self.events]

    async def until(self, name: str, *, since: int = 0, timeout_s: float = 15.0, **fields: object) -> Event:
        """Waits for an event with this name and these fields; the first `since` events do not count."""
        give_up_at_s = time.monotonic() + timeout_s
        wanted = {"event": name, **fields}
        while True:
            over = time.monotonic() >= give_up_at_s or self.process.poll() is not None
            for event in self.events[since:]:
                if wanted.items() <= event.items():
                    return event
            assert not over, f"no {wanted} within {timeout_s:g} s: {self}"
            await asyncio.sleep(POLL_S)

    async def until_said(self, text: str, timeout_s: float = 15.0) -> None:
        """Waits until stdout has this text."""
        give_up_at_s = time.monotonic() + timeout_s
        while text not in self._out.read_text():
            assert time.monotonic() < give_up_at_s, f"not said within {timeout_s:g} s: {self}"
            await asyncio.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    async def ended(self, timeout_s: float = 15.0) -> Ended:
        """Waits for the end of the process."""
        give_up_at_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < give_up_at_s, f"still runs after {timeout_s:g} s: {self}"
            await asyncio.sleep(POLL_S)
        return Ended(self.process.returncode, self._out.read_text(), self._err.read_text())

    async def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15.0) -> Ended:
        """Sends a signal and waits for the end."""
        self.send(number)
        return await self.ended(timeout_s)

    def kill(self) -> None:
        """Ends the process as a crash would; safe when it has ended."""
        self.process.kill()
        self.process.wait(10)


class Cli:
    """Starts the command line with an environment of its own; leaving the block kills what still runs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        inherited = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
        etcd = {name: os.environ[name] for name in ("ELECTION_ETCD_BIN",) if name in os.environ}
        self.environment = {**inherited, **etcd, "COLUMNS": "80", **environment}
        self._started: list[Running] = []

    def __enter__(self) -> Cli:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._started:
            running.kill()

    def start(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Running:
        """Starts a command; a variable that is None is not set for it."""
        merged = {**self.environment, **(env or {})}
        environment = {name: value for name, value in merged.items() if value is not None}
        name = f"{len(self._started)}"
        running = Running(arguments, environment, self._folder / f"{name}.out", self._folder / f"{name}.err")
        self._started.append(running)
        return running

    async def run(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Ended:
        """Runs a command to its end."""
        return await self.start(*arguments, env=env).ended()

    async def run_unread(self, *arguments: str) -> tuple[int, str]:
        """Runs a command whose stdout is a pipe that nobody reads; returns the exit code and stderr."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "election.cli", *arguments),
                stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, env=self.environment,
            )  # fmt: skip
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(20):
                _, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.communicate()
            pytest.fail(f"election {' '.join(arguments)} runs on although nobody reads what it says")
        assert process.returncode is not None
        return process.returncode, err.decode()


@asynccontextmanager
async def own_etcd(*arguments: str, tls: TlsConfig | None = None) -> AsyncIterator[EtcdCluster]:
    """One member for one test, which may do what it wants with it."""
    with tempfile.TemporaryDirectory(prefix="election-test-") as folder:
        cluster = await EtcdCluster.start(data_dir=Path(folder), members=1, extra_args=arguments, tls=tls)
        try:
            yield cluster
        finally:
            cluster.kill()


def is_recent(text: str) -> bool:
    """Whether it is an RFC 3339 time in UTC, of the last minute."""
    return text.endswith("Z") and abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(minutes=1)


# --- what needs no etcd ----------------------------------------------------------------------------------------------


async def test_help_says_how_each_command_is_used(lone: Cli) -> None:
    """Every command has a help that fits 80 columns and shows no Python object."""
    for words, running in [(command.split(), lone.start(*command.split(), "--help")) for command in COMMANDS]:
        ended = await running.ended()
        assert (ended.code, ended.err) == (0, ""), ended
        assert ended.out.startswith(" ".join(("Usage: election", *words)))
        assert max(map(len, ended.out.splitlines())) <= 80, ended.out
        assert re.search(r"<\w+ | object at ", ended.out) is None, ended.out
    assert (await lone.run("-h")).code == 0


async def test_version_names_this_program_and_what_it_runs_on(lone: Cli) -> None:
    """`version` is a line for people and one JSON document for scripts; it needs no etcd."""
    said, document = await lone.run("version"), (await lone.run("version", "-o", "json")).document
    assert document.keys() == {"election", "python", "grpcio", "protobuf"}
    assert f"election {document['election']}" in said.out
    assert said.code == 0


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("leader x --nope", "--nope"),
        ("nope", "nope"),
        ("agents nope", "nope"),
        ("leader", "NAME"),
        ("leader x y", "y"),
        ("leader x -o yaml", "yaml"),
        ("campaign x --ttl 0", "--ttl"),
        ("campaign x --ttl long", "long"),
        ("campaign x --label zone", "zone"),
        ("collect --grace -1", "--grace"),
        ("serve --grpc-port 70000", "70000"),
        ("dev --members 0", "--members"),
    ],
)
async def test_wrong_usage_exits_with_2(lone: Cli, line: str, word: str) -> None:
    """A command line that cannot be understood exits with 2, says what is wrong on stderr, and nothing on stdout."""
    ended = await lone.run(*line.split())
    assert (ended.code, ended.out) == (2, ""), ended
    assert word in ended.err.splitlines()[-1], ended
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("line", ["campaign x --ttl", "campaign x --priority", "agents join x --ttl"])
async def test_numbers_that_are_too_large_are_refused(lone: Cli, line: str) -> None:
    """A number that no field of etcd's or of our API can hold is an error of the user, and not a bug."""
    ended = await lone.run(*line.split(), "99999999999999999999999")
    assert ended.code in (1, 2), ended
    assert ended.out == ""
    assert "9999" in ended.err.splitlines()[-1], ended
    assert "Traceback" not in ended.err, ended


NAME = "not a valid name: use 1 to 128 "


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *((("leader", name), (NAME,)) for name in ("a/b", "", "x" * 200)),
        (("observe", "a/b"), (NAME,)),
        (("candidates", "a/b"), (NAME,)),
        (("campaign", "a/b"), (NAME,)),
        (("campaign", "x", "--id", "a/b"), (NAME,)),
        (("agents", "join", "a/b"), (NAME,)),
        (("list", "--namespace", "a/b"), (NAME,)),
        (("list", "--namespace", ""), (NAME,)),
        (("leader", "x", "--endpoints", "nonsense"), ("'nonsense'", "HOST:PORT")),
        (("leader", "x", "--endpoints", ""), ("HOST:PORT",)),
        (("leader", "x", "--endpoints", "127.0.0.1:0"), ("'127.0.0.1:0'", "HOST:PORT")),
        (("leader", "x", "--endpoints", "127.0.0.1:2379,,"), ("HOST:PORT",)),
        (("leader", "x", "--endpoints", "ftp://127.0.0.1:21"), ("'ftp'",)),
        (("leader", "x", "--server", "nonsense"), ("'nonsense'", "HOST:PORT")),
        (("leader", "x", "--user", "root"), ("NAME:PASSWORD",)),
        (("leader", "x", "--cert", "/dev/null"), ("key",)),
        (("campaign", "x", "--ttl", "1"), ("TTL (1 s)", "more than 2 s")),
        (("agents", "join", "x", "--ttl", "1"), ("TTL (1 s)", "more than 2 s")),
        (("campaign", "x", "--label", "a b=c"), ("'a b'",)),
        (("campaign", "x", "--address", "x" * 5000), ("4096",)),
    ],
)
async def test_what_cannot_be_used_is_one_line(lone: Cli, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Names, endpoints and settings that cannot be used are refused with one line, before anything is sent."""
    (await lone.run(*arguments)).assert_fails(*words)


@pytest.mark.parametrize("commands", [READS, RUNS], ids=["reads", "runs"])
async def test_no_etcd_is_one_line_within_seconds(lone: Cli, commands: tuple[str, ...]) -> None:
    """Where nobody listens, every command tries for 5 s, says so in one line that names the endpoint, and fails."""
    began_at_s = time.monotonic()
    started = [lone.start(*command.split(), *(["x"] if command in NAMED else [])) for command in commands]
    for running in started:
        left_s = began_at_s + 10 + START_S - time.monotonic()
        (await running.ended(left_s)).assert_fails(NOWHERE, "cannot be reached")


async def test_an_endpoint_that_never_answers_is_one_line(lone: Cli) -> None:
    """A port that takes connections and stays silent keeps a command waiting for seconds, not for ever."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        lines = (f"leader x --endpoints {endpoint}", f"campaign x --endpoints {endpoint}", f"list --server {endpoint}")
        for running in [lone.start(*line.split()) for line in lines]:
            (await running.ended(15 + START_S)).assert_fails(endpoint)


# --- leader ----------------------------------------------------------------------------------------------------------


async def test_leader_exits_with_3_when_nobody_leads(cli: Cli) -> None:
    """Nobody is `null` for scripts, and for people a line on stderr."""
    asked = cli.start("leader", "x"), cli.start("leader", "x", "-o", "json")
    people, script = [await running.ended() for running in asked]
    assert (people.code, people.out) == (3, "")
    assert "nobody leads 'x'" in people.err
    assert (script.code, script.document) == (3, None)


async def test_leader_tells_what_etcd_holds(cli: Cli, etcd: EtcdClient) -> None:
    """The token is the create revision of the leader's key, which is on the lease that is told."""
    campaign = cli.start(
        *("campaign", "x", "-o", "json", "--id", "c1", "--address", "h:1", "--ttl", "20", "--priority", "7"),
        *("--label", "zone=a", "--label", "expression=b=c"),
    )
    elected = await campaign.until("elected")
    ended = await cli.run("leader", "x", "-o", "json")
    leader = ended.document
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("\n") == 1
    found, header = await etcd.get(leader["key"].encode())
    assert found is not None
    assert (leader["token"], leader["lease"]) == (f"0-{found.create_revision}", found.lease)
    assert leader["token"] == elected["token"]
    assert found.mod_revision <= leader["revision"] <= header.revision
    assert is_recent(leader["elected_at"])
    assert (await etcd.lease_time_to_live(leader["lease"])).grantedTTL == 20
    assert leader == {
        "election": "x",
        "id": "c1",
        "address": "h:1",
        "token": f"0-{found.create_revision}",
        "key": found.key.decode(),
        "lease": found.lease,
        "elected_at": leader["elected_at"],
        "priority": 7,
        "labels": {"zone": "a", "expression": "b=c"},
        "proven": True,
        "revision": leader["revision"],
        "cluster_id": header.cluster_id,
    }
    table = await cli.run("leader", "x")
    assert table.code == 0
    for shown in ("c1", "h:1", str(leader["token"]), f"{leader['lease']:x}", "zone=a"):
        assert shown in table.out, table.out


async def test_a_foreign_leader_is_told_as_not_proven(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Whoever campaigns with another program leads under the name that it wrote, and nobody vouches for it."""
    lease = (await etcd.lease_grant(60)).ID
    won = await etcd.campaign(keys.campaign_name("x"), lease, b"alice")
    asked = cli.start("leader", "x", "-o", "json"), cli.start("candidates", "x", "-o", "json"), cli.start("leader", "x")
    leader, (candidate,) = [(await running.ended()).document for running in asked[:2]]
    assert leader["proven"] is False
    assert (leader["id"], leader["token"], leader["lease"]) == ("alice", f"0-{won.leader.rev}", lease)
    assert leader["elected_at"] is None
    assert (candidate["id"], candidate["foreign"], candidate["leads"]) == ("alice", True, True)
    assert "alice" in (await asked[2].ended()).out


# --- campaign and observe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_resigns(cli: Cli, etcd: EtcdClient, keys: Keyspace, number: signal.Signals) -> None:
    """SIGINT and SIGTERM give the leadership back, so that the key and its lease are gone when the process is."""
    campaign = cli.start("campaign", "x", "-o", "json", "--id", "c1", "--ttl", "60")
    token = (await campaign.until("elected"))["token"]
    (held,) = (await etcd.list(keys.campaign("x"))).kvs
    assert f"0-{held.create_revision}" == token
    ended = await campaign.stop(number)
    assert (ended.code, ended.err) == (0, "")
    common = {"election": "x", "id": "c1"}
    assert campaign.events == [
        {"event": "campaigning", **common, "token": None, "reason": None},
        {"event": "elected", **common, "token": token, "reason": None},
        {"event": "lost", **common, "token": token, "reason": "resigned"},
        {"event": "closed", **common, "token": None, "reason": None},
    ]
    assert not (await etcd.list(keys.campaign("x"))).kvs
    assert (await etcd.lease_time_to_live(held.lease)).TTL == -1


async def test_a_candidate_that_waits_can_be_ended(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """A signal to a candidate that does not lead takes it out of the queue, and the leader stays."""
    first = cli.start("campaign", "x", "-o", "json", "--id", "c1")
    token = (await first.until("elected"))["token"]
    second = cli.start("campaign", "x", "-o", "json", "--id", "c2")
    await second.until("campaigning")
    await until_queued(cli, 2)
    assert (await second.stop()).code == 0
    assert second.names == ["campaigning", "closed"]
    (left,) = (await etcd.list(keys.campaign("x"))).kvs
    assert f"0-{left.create_revision}" == token


async def test_once_exits_with_4_after_a_loss(cli: Cli, etcd: EtcdClient) -> None:
    """A key that somebody deletes ends the term at once; with --once, the process too."""
    campaign = cli.start("campaign", "x", "-o", "json", "--once")
    token = (await campaign.until("elected"))["token"]
    key = (await cli.run("leader", "x", "-o", "json")).document["key"]
    await etcd.delete(key.encode())
    ended = await campaign.ended()
    assert ended.code == 4, ended
    assert campaign.names == ["campaigning", "elected", "lost", "closed"]
    assert (campaign.events[2]["token"], campaign.events[2]["reason"]) == (token, "key_deleted")


async def test_without_once_a_loss_is_followed_by_another_term(cli: Cli, etcd: EtcdClient) -> None:
    """A candidate whose key was deleted stands again by itself, and has a larger token."""
    campaign = cli.start("campaign", "x", "-o", "json")
    first = (await campaign.until("elected"))["token"]
    await etcd.delete((await cli.run("leader", "x", "-o", "json")).document["key"].encode())
    again = await campaign.until("elected", since=2)
    assert campaign.names == ["campaigning", "elected", "lost", "campaigning", "elected"]
    assert revision(again["token"]) > revision(first)
    assert (await campaign.stop(signal.SIGINT)).code == 0


async def test_a_second_candidate_takes_over_from_a_dead_one(cli: Cli) -> None:
    """After kill -9 the next candidate leads within the TTL and a second; `observe` tells every step."""
    ttl_s = 3
    observe = cli.start("observe", "x", "-o", "json")
    assert (await observe.until("vacated"))["token"] is None
    first = cli.start("campaign", "x", "-o", "json", "--id", "c1", "--ttl", str(ttl_s))
    before = await first.until("elected")
    second = cli.start("campaign", "x", "-o", "json", "--id", "c2", "--ttl", str(ttl_s))
    await second.until("campaigning")
    await asyncio.sleep(ttl_s)  # both have renewed
    assert second.names == ["campaigning"]
    first.kill()
    killed_at_s = time.monotonic()
    after = await second.until("elected")
    assert time.monotonic() - killed_at_s <= ttl_s + 1
    assert revision(after["token"]) > revision(before["token"])
    await observe.until("elected", id="c2")
    await second.stop()
    await observe.until("vacated", since=4)
    told = await observe.stop(signal.SIGINT)
    assert (told.code, told.err) == (0, "")
    assert [(event["event"], event["id"], event["token"]) for event in observe.events] == [
        ("vacated", None, None),
        ("elected", "c1", before["token"]),
        ("vacated", None, None),
        ("elected", "c2", after["token"]),
        ("vacated", None, None),
    ]
    revisions = [event["revision"] for event in observe.events]
    assert revisions == sorted(revisions)
    assert len({event["cluster_id"] for event in observe.events}) == 1
    leader = {"election", "address", "key", "lease", "elected_at", "priority", "labels", "proven"}
    assert leader <= observe.events[1].keys()


async def test_a_resignation_hands_over(cli: Cli) -> None:
    """A leader that is asked to leave makes way for the next one at once: nobody sees the election vacant."""
    observe = cli.start("observe", "x", "-o", "json")
    await observe.until("vacated")
    first = cli.start("campaign", "x", "-o", "json", "--id", "c1", "--ttl", "60")
    before = await first.until("elected")
    second = cli.start("campaign", "x", "-o", "json", "--id", "c2", "--ttl", "60")
    await second.until("campaigning")
    await until_queued(cli, 2)
    assert (await first.stop()).code == 0
    assert first.events[2]["reason"] == "resigned"
    after = await second.until("elected")
    assert revision(after["token"]) > revision(before["token"])
    await observe.until("elected", id="c2", token=after["token"])
    assert [(event["event"], event["id"]) for event in observe.events] == [
        ("vacated", None),
        ("elected", "c1"),
        ("elected", "c2"),
    ]


async def until_queued(cli: Cli, count: int) -> list[Event]:
    """Waits until so many candidates stand for the election x; returns what `candidates` says of them."""
    give_up_at_s = time.monotonic() + 15
    while len(rows := (await cli.run("candidates", "x", "-o", "json")).document) < count:
        assert time.monotonic() < give_up_at_s, rows
    found: list[Event] = rows
    return found


async def test_people_are_told_in_words(cli: Cli) -> None:
    """Without -o json the running commands print a line of words per event, with the time of day."""
    observe, campaign = cli.start("observe", "x"), cli.start("campaign", "x", "--id", "c1")
    await campaign.until_said("elected, token ")
    await observe.until_said("c1 leads with token ")
    said = (await campaign.stop()).out + (await observe.stop()).out
    for words in ("campaigning", "resigned", "closed"):
        assert words in said
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in said.splitlines()), said


async def test_a_candidate_has_a_name_without_being_given_one(cli: Cli) -> None:
    """The usual id is valid, and ends with the process id."""
    campaign = cli.start("campaign", "x", "-o", "json")
    assert (await campaign.until("elected"))["id"].endswith(f"-{campaign.process.pid}")


async def test_running_commands_outlive_an_outage_of_etcd(tmp_path: Path) -> None:
    """While etcd is silent the leader stops before its lease ends; when it is back everybody goes on by themselves."""
    ttl_s = 3
    async with own_etcd() as cluster:
        with Cli(tmp_path, ELECTION_ENDPOINTS=cluster.endpoints[0], ELECTION_OUTPUT="json") as cli:
            campaign = cli.start("campaign", "x", "--ttl", str(ttl_s))
            agent = cli.start("agents", "join", "a1", "--ttl", str(ttl_s))
            observe = cli.start("observe", "x")
            first, joined = await campaign.until("elected"), await agent.until("joined")
            await observe.until("elected")
            cluster.members[0].pause()
            paused_at_s = time.monotonic()
            lost = await campaign.until("lost")
            assert time.monotonic() - paused_at_s < ttl_s
            assert (lost["token"], lost["reason"]) == (first["token"], "expired")
            await agent.until("lost", incarnation=joined["incarnation"])
            (await cli.run("leader", "x")).assert_fails(cluster.endpoints[0])
            cluster.members[0].resume()
            second = await campaign.until("elected", since=3)
            rejoined = await agent.until("joined", since=2)
            assert revision(second["token"]) > revision(first["token"])
            assert rejoined["incarnation"] > joined["incarnation"]
            await observe.until("elected", token=second["token"])
            for running in (campaign, agent, observe):
                assert (await running.stop()).code == 0


async def test_a_signal_ends_a_campaign_while_etcd_is_silent(tmp_path: Path) -> None:
    """A resignation that cannot be written does not keep the process, and is no error."""
    async with own_etcd() as cluster:
        with Cli(tmp_path, ELECTION_ENDPOINTS=cluster.endpoints[0], ELECTION_OUTPUT="json") as cli:
            campaign, agent = cli.start("campaign", "x"), cli.start("agents", "join", "a1")
            await campaign.until("elected")
            await agent.until("joined")
            cluster.members[0].pause()
            for running in (campaign, agent):
                running.send(signal.SIGTERM)
            for running in (campaign, agent):
                ended = await running.ended(timeout_s=10)
                assert ended.code == 0, ended
                assert "Traceback" not in ended.err
            assert campaign.names == ["campaigning", "elected", "lost", "closed"]
            assert agent.names == ["joined", "left"]


# --- lists -----------------------------------------------------------------------------------------------------------


async def test_candidates_and_list_show_the_queue(cli: Cli) -> None:
    """Candidates come oldest first and the first one leads; `list` counts them; nobody is an empty array."""
    assert [(await cli.run(*words, "-o", "json")).document for words in (("candidates", "x"), ("list",))] == [[], []]
    first = cli.start("campaign", "x", "-o", "json", "--id", "c1", "--label", "zone=a")
    token = (await first.until("elected"))["token"]
    second = cli.start("campaign", "x", "-o", "json", "--id", "c2")
    await second.until("campaigning")
    rows = await until_queued(cli, 2)
    assert [(row["id"], row["leads"], row["foreign"]) for row in rows] == [("c1", True, False), ("c2", False, False)]
    assert (rows[0]["token"], rows[1]["token"]) == (token, None)
    assert revision(token) == rows[0]["created"] < rows[1]["created"]
    assert rows[0]["labels"] == {"zone": "a"}
    assert rows[1]["elected_at"] is None
    listed = (await cli.run("list", "-o", "json")).document
    assert listed == [{"election": "x", "candidates": 2, "leader": "c1", "token": token}]
    for words in (("candidates", "x"), ("list",)):
        assert "c1" in (await cli.run(*words)).out


async def test_agents_join_and_are_listed(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """An agent is alive while its process runs; its incarnation is the create revision of its liveness key."""
    assert (await cli.run("agents", "list", "-o", "json")).document == []
    agent = cli.start("agents", "join", "a1", "-o", "json", "--label", "zone=a", "--address", "h:1", "--ttl", "20")
    joined = await agent.until("joined")
    await etcd.put(keys.state("a1", "task-1"), b"{}")
    found, _ = await etcd.get(keys.alive("a1"))
    assert found is not None
    assert joined == {"event": "joined", "id": "a1", "incarnation": found.create_revision, "lease": found.lease}
    (row,) = (await cli.run("agents", "list", "-o", "json")).document
    assert is_recent(row["registered_at"])
    assert row == {
        "id": "a1",
        "state": "alive",
        "incarnation": found.create_revision,
        "lease": found.lease,
        "address": "h:1",
        "labels": {"zone": "a"},
        "registered_at": row["registered_at"],
        "state_keys": ["task-1"],
    }
    assert "alive" in (await cli.run("agents", "list")).out
    (await cli.run("agents", "join", "a1")).assert_fails("'a1'", "alive elsewhere")
    ended = await agent.stop()
    assert (ended.code, ended.err) == (0, "")
    assert agent.names == ["joined", "left"]
    assert (await etcd.get(keys.alive("a1")))[0] is None
    (row,) = (await cli.run("agents", "list", "-o", "json")).document
    assert (row["state"], row["lease"]) == ("suspect", 0)


async def test_collect_reaps_what_a_dead_agent_left(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """A dead agent is suspected when its lease ends and reaped after the grace, once and with all that it stored."""
    collect = cli.start("collect", "-o", "json", "--grace", "1", "--id", "k1")
    await collect.until("collecting", id="k1")
    agent = cli.start("agents", "join", "a1", "-o", "json", "--ttl", "3")
    incarnation = (await agent.until("joined"))["incarnation"]
    await etcd.put(keys.state("a1", "task-1"), b"{}")
    agent.kill()
    killed_at_s = time.monotonic()
    await collect.until("suspected", agent="a1", grace_s=1.0)
    suspected_at_s = time.monotonic()
    assert suspected_at_s - killed_at_s <= 3 + 1
    reaped = await collect.until("reaped", agent="a1")
    assert 0.5 <= time.monotonic() - suspected_at_s <= 1 + 2  # seen late, the suspicion makes the grace look short
    (leading,) = (await etcd.list(keys.campaign("_collector"))).kvs
    assert reaped == {
        "event": "reaped",
        "agent": "a1",
        "incarnation": incarnation,
        "part": 0,
        "token": f"0-{leading.create_revision}",
        "collected": ["task-1"],
    }
    assert not (await etcd.list(keys.states("a1"))).kvs
    assert (await etcd.get(keys.tombstone("a1", incarnation)))[0] is not None
    assert (await cli.run("agents", "list", "-o", "json")).document == []
    ended = await collect.stop(signal.SIGINT)
    assert (ended.code, ended.err) == (0, "")
    assert collect.names == ["waiting", "collecting", "suspected", "reaped", "stopped"]


async def test_collect_leaves_an_agent_alone_that_comes_back(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """An agent that joins again within the grace keeps its state."""
    collect = cli.start("collect", "-o", "json", "--grace", "8")
    await collect.until("collecting")
    agent = cli.start("agents", "join", "a1", "-o", "json")
    first = (await agent.until("joined"))["incarnation"]
    await etcd.put(keys.state("a1", "task-1"), b"{}")
    await agent.stop()
    await collect.until("suspected", agent="a1", grace_s=8.0)
    agent = cli.start("agents", "join", "a1", "-o", "json")
    assert (await agent.until("joined"))["incarnation"] > first
    await collect.until("recovered", agent="a1")
    assert (await etcd.get(keys.state("a1", "task-1")))[0] is not None
    assert collect.names == ["waiting", "collecting", "suspected", "recovered"]


async def test_of_two_collectors_one_collects(cli: Cli) -> None:
    """The second collector waits until the first one leaves."""
    first = cli.start("collect", "-o", "json")
    await first.until("collecting")
    second = cli.start("collect", "-o", "json")
    await second.until("waiting")
    assert second.names == ["waiting"]
    await first.stop()
    await second.until("collecting")
    assert (await second.stop()).code == 0


# --- serve -----------------------------------------------------------------------------------------------------------


async def test_serve_answers_what_etcd_would(tmp_path: Path) -> None:
    """Each question that is asked with --server has the answer that etcd itself gives.

    On an etcd of its own, where nobody else raises the revision: a view knows that of the last event it was sent.
    """
    async with own_etcd() as cluster:
        with Cli(tmp_path, ELECTION_ENDPOINTS=cluster.endpoints[0]) as cli:
            serve = cli.start("serve", "--grpc-port", "0", "--no-collect", "-o", "json")
            address = (await serve.until("serving", collect=False))["grpc"]
            (nobody,) = [await cli.run("leader", "x", "-o", "json", "--server", address)]
            elsewhere = ("agents", "drain", "a1", "--namespace", "other", "--server", address)
            (await cli.run(*elsewhere)).assert_fails("serves the namespace 'default', not 'other'")
            assert (nobody.code, nobody.document) == (3, None)
            observe = cli.start("observe", "x", "-o", "json", "--server", address)
            await observe.until("vacated")
            campaign = cli.start("campaign", "x", "-o", "json", "--id", "c1")
            agent = cli.start("agents", "join", "a1", "-o", "json")
            await agent.until("joined")
            elected = await observe.until("elected", id="c1")
            assert elected["token"] == (await campaign.until("elected"))["token"]
            without_etcd = {"ELECTION_ENDPOINTS": NOWHERE}
            for words in (("leader", "x"), ("candidates", "x"), ("list",), ("agents", "list")):
                asked = (
                    cli.start(*words, "-o", "json"),
                    cli.start(*words, "-o", "json", "--server", address, env=without_etcd),
                    cli.start(*words, "-o", "json", env={**without_etcd, "ELECTION_SERVER": address}),
                )
                direct, *served = [(await running.ended()).document for running in asked]
                assert served == [direct, direct]
            for running in (campaign, agent, observe, serve):
                assert (await running.stop()).code == 0
            assert serve.names == ["serving"]


async def test_serve_collects_unless_told_not_to(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """`serve` is a collector as well, and one whose grace can be set; it ends in good order."""
    await etcd.put(keys.state("a1", "task-1"), b"{}")
    serve = cli.start("serve", "--grpc-port", "0", "--grace", "0.5", "-o", "json")
    await serve.until("collecting")
    assert (await serve.until("reaped", agent="a1"))["collected"] == ["task-1"]
    ended = await serve.stop(signal.SIGINT)
    assert (ended.code, ended.err) == (0, "There is no policy: everybody who can connect may do everything.\n")
    assert serve.names[0] == "serving"
    assert serve.names[-1] == "stopped"
    assert not (await etcd.list(keys.campaign("_collector"))).kvs


async def test_serve_says_why_it_cannot_listen(cli: Cli) -> None:
    """A port in use, and plain text on an open address that nobody allowed, are one line each."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        (await cli.run("serve", "--grpc-port", taken)).assert_fails(taken, "in use")
    (await cli.run("serve", "--grpc-port", "0", "--grpc-host", "0.0.0.0")).assert_fails("0.0.0.0", "--insecure")
    (port,) = free_ports(1, "127.0.0.1")
    serve = cli.start("serve", "--grpc-port", str(port), "--grpc-host", "0.0.0.0", "--insecure", "-o", "json")
    assert (await serve.until("serving"))["grpc"] == f"0.0.0.0:{port}"
    assert (await serve.stop()).code == 0


# --- settings --------------------------------------------------------------------------------------------------------


async def test_the_nearest_setting_wins(cli: Cli, single_etcd: EtcdCluster) -> None:
    """An option after the command's name beats one before it, that beats ours in the environment, that etcdctl's."""
    here = single_etcd.endpoints[0]
    unset: dict[str, str | None] = {"ELECTION_ENDPOINTS": None}
    nowhere: dict[str, str | None] = {"ELECTION_ENDPOINTS": NOWHERE}
    works = (
        cli.start("list", env={**unset, "ETCDCTL_ENDPOINTS": here}),
        cli.start("list", env={**unset, "ETCDCTL_ENDPOINTS": f"http://{here}"}),
        cli.start("list", env={"ETCDCTL_ENDPOINTS": NOWHERE}),
        cli.start("list", "--endpoints", here, env=nowhere),
        cli.start("--endpoints", here, "list", env=nowhere),
        cli.start("--endpoints", NOWHERE, "list", "--endpoints", f"{NOWHERE},{here}"),
    )
    fails = cli.start("list", env={**unset, "ETCDCTL_ENDPOINTS": NOWHERE})
    for running in works:
        ended = await running.ended()
        assert (ended.code, ended.out) == (0, ""), running
    (await fails.ended()).assert_fails(NOWHERE)


async def test_every_option_has_a_variable(cli: Cli) -> None:
    """ELECTION_<OPTION> stands for an option, of one command or of all; flags as well."""
    settings = {
        "ELECTION_ID": "c1",
        "ELECTION_TTL": "33",
        "ELECTION_ADDRESS": "h:1",
        "ELECTION_PRIORITY": "5",
        "ELECTION_OUTPUT": "json",
        "ELECTION_GRPC_PORT": "0",
        "ELECTION_COLLECT": "false",
    }
    campaign = cli.start("campaign", "x", env=settings)
    assert (await campaign.until("elected"))["id"] == "c1"
    leader = (await cli.run("leader", "x", env=settings)).document
    assert (leader["address"], leader["priority"]) == ("h:1", 5)
    assert (await cli.run("leader", "x", env={**settings, "ELECTION_NAMESPACE": "another"})).code == 3
    serve = cli.start("serve", env=settings)
    assert (await serve.until("serving"))["collect"] is False
    assert (await cli.run("campaign", "x", env={"ELECTION_TTL": "long"})).code == 2


async def test_shared_options_stand_before_or_after_the_name(
    cli: Cli, single_etcd: EtcdCluster, namespace: str
) -> None:
    """-o, --endpoints and --namespace mean the same on both sides of the command's name."""
    env = {"ELECTION_ENDPOINTS": None, "ELECTION_NAMESPACE": None}
    options = ("--endpoints", single_etcd.endpoints[0], "--namespace", namespace, "-o", "json")
    lines = (
        (*options, "candidates", "x"),
        ("candidates", "x", *options),
        ("candidates", *options, "x"),
        (*options[:2], "candidates", *options[2:4], "x", *options[4:]),
        (*options, "agents", "list"),
        ("agents", "list", *options),
    )
    for running in [cli.start(*line, env=env) for line in lines]:
        ended = await running.ended()
        assert (ended.code, ended.document) == (0, []), running


async def test_tls_needs_the_right_authority_and_a_certificate(tmp_path: Path) -> None:
    """With the right files TLS works, by options or by etcdctl's variables; a wrong authority is one line."""
    authority, stranger = Authority.make(tmp_path, "authority"), Authority.make(tmp_path, "stranger")
    good = authority.sign("client")
    files = ("--cert", str(good.cert), "--key", str(good.key))
    async with own_etcd(tls=authority.sign("server")) as cluster:
        endpoint = cluster.endpoints[0]
        with Cli(tmp_path, ELECTION_ENDPOINTS=endpoint, ELECTION_OUTPUT="json") as cli:
            variables = {"CACERT": str(good.cacert), "CERT": str(good.cert), "KEY": str(good.key)}
            works = (
                cli.start("list", "--cacert", str(good.cacert), *files),
                cli.start("--cacert", str(good.cacert), *files, "list", "--endpoints", f"https://{endpoint}"),
                cli.start("list", env={f"ETCDCTL_{name}": value for name, value in variables.items()}),
                cli.start("list", env={f"ELECTION_{name}": value for name, value in variables.items()}),
            )
            fails = (
                cli.start("list", "--cacert", str(stranger.certificate), *files),
                cli.start("campaign", "x", "--cacert", str(stranger.certificate), *files),
                cli.start("list", "--cacert", str(good.cacert)),
                cli.start("list"),
            )
            for running in works:
                ended = await running.ended()
                assert (ended.code, ended.out) == (0, "[]\n"), running
            for running in fails:
                (await running.ended()).assert_fails(endpoint)
            no_certificate = cli.start("list", "--cacert", str(good.key), *files)
            (await no_certificate.ended()).assert_fails(str(good.key))


async def test_a_user_of_etcd_needs_the_right_password(tmp_path: Path) -> None:
    """NAME:PASSWORD comes from --user, from our variable or from etcdctl's; a wrong one is one line without it."""
    async with own_etcd("--bcrypt-cost=4") as cluster:
        control = [str(find_binary("etcdctl")), f"--endpoints={cluster.endpoints[0]}"]
        for line in ("role add root", "user add root:secret", "user grant-role root root", "auth enable"):
            made = await asyncio.create_subprocess_exec(*control, *line.split(), stdout=asyncio.subprocess.DEVNULL)
            assert await made.wait() == 0, line
        with Cli(tmp_path, ELECTION_ENDPOINTS=cluster.endpoints[0], ELECTION_OUTPUT="json") as cli:
            works = (
                cli.start("list", "--user", "root:secret"),
                cli.start("list", env={"ETCDCTL_USER": "root:secret"}),
                cli.start("list", env={"ELECTION_USER": "root:secret", "ETCDCTL_USER": "root:mistaken"}),
            )
            fails = (
                cli.start("list"),
                cli.start("list", "--user", "root:mistaken"),
                cli.start("campaign", "x", "--user", "root:mistaken"),
                cli.start("agents", "join", "x", "--user", "root:mistaken"),
            )
            for running in works:
                ended = await running.ended()
                assert (ended.code, ended.out) == (0, "[]\n"), running
            for running in fails:
                ended = await running.ended()
                ended.assert_fails("refused access")
                assert "mistaken" not in ended.err


# --- output ----------------------------------------------------------------------------------------------------------


async def test_a_reader_that_has_gone_is_no_bug(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """`| head -0` ends every command without a traceback, those that run at the first line that nobody reads."""
    await make_leader(etcd, keys, "x", CandidateRecord("c1", elected_at=datetime.now(UTC)))
    await etcd.put(keys.state("a1", "task-1"), b"{}")
    lines = ("leader x", "leader x -o json", "list --help", "observe x", "campaign y", "collect", "serve --grpc-port 0")
    ends = await asyncio.gather(*(cli.run_unread(*line.split()) for line in lines))
    for line, (code, err) in zip(lines, ends, strict=True):
        assert ("Traceback" in err, "Exception" in err) == (False, False), f"{line}: {err}"
        assert code in (0, 1), f"{line}: {err}"


async def test_tables_fit_80_columns(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """However long the names, no line of a table is wider than the terminal, and none carries escape codes."""
    name, labels = "n" * 128, {"label-" + "l" * 60: "v" * 60, "zone": "a"}
    record = CandidateRecord("c" * 128, "host.example.com:" + "1" * 90, labels, elected_at=datetime.now(UTC))
    await make_leader(etcd, keys, name, record)
    await make_leader(etcd, keys, "foreign", "日本語 ".encode() * 40 + b"\x1b[31mred\n")
    lease = (await etcd.lease_grant(60)).ID
    agent = AgentRecord("a" * 128, "host.example.com:" + "1" * 90, labels, datetime.now(UTC))
    await etcd.put(keys.alive(agent.id), agent.encode(), lease=lease)
    for number in range(12):
        await etcd.put(keys.state(agent.id, f"task-{number}"), b"{}")
    lines = ("list", "agents list", f"leader {name}", f"candidates {name}", "leader foreign", "candidates foreign")
    for running in [cli.start(*line.split()) for line in lines]:
        ended = await running.ended()
        assert (ended.code, ended.err) == (0, "")
        widths = [cell_len(line) for line in ended.out.splitlines()]
        assert max(widths) <= 80, ended.out
        assert ended.out.replace("\n", "").isprintable(), ended.out


async def make_leader(etcd: EtcdClient, keys: Keyspace, election: str, record: CandidateRecord | bytes) -> None:
    """Puts a candidate at the head of the queue, as another process would."""
    lease = (await etcd.lease_grant(60)).ID
    value = record if isinstance(record, bytes) else record.encode()
    await etcd.campaign(keys.campaign_name(election), lease, value)
