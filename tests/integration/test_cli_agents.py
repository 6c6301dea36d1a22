"""The commands that look at agents and take care of them: real processes against a real etcd."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from election.agent_records import AgentRecord, StateEntry, Tombstone
from election.agent_restore import restore
from election.etcd.client import EtcdClient
from election.keys import REGISTRATION, Keyspace
from election.token import Token
from tests.integration.test_cli import NOWHERE, START_S, Cli, Running

pytestmark = pytest.mark.etcd

BINARY = b"\xff\x00\xfe"
TTL_S = 4
LATE_S = 3.0
"""etcd looks for expired leases twice a second, and on a busy machine it takes time until we are told."""


async def leave_behind(etcd: EtcdClient, keys: Keyspace, id: str, values: Mapping[str, bytes]) -> int:
    """What a dead agent leaves; returns its incarnation."""
    for name, value in values.items():
        await etcd.put(keys.state(id, name), value)
    record = AgentRecord(id, "h:1", {"zone": "a"})
    return (await etcd.put(keys.state(id, REGISTRATION), record.encode())).header.revision


async def stored(etcd: EtcdClient, keys: Keyspace, id: str) -> dict[str, bytes]:
    """The state of an agent, without its registration."""
    prefix = keys.states(id)
    found = {kv.key[len(prefix) :].decode(): kv.value for kv in (await etcd.list(prefix)).kvs}
    found.pop(REGISTRATION, None)
    return found


@asynccontextmanager
async def collecting(cli: Cli, *options: str) -> AsyncIterator[Running]:
    """A collector that works, and would wait for an hour."""
    collect = cli.start("collect", "-o", "json", "--grace", "3600", "--id", "k1", *options)
    await collect.until("collecting")
    yield collect
    assert (await collect.stop()).code == 0


async def documents(cli: Cli, *commands: str) -> list[Any]:
    """The JSON of several commands, which run side by side."""
    started = [cli.start(*command.split(), "-o", "json") for command in commands]
    return [(await running.ended(30)).document for running in started]


# --- what needs no etcd ----------------------------------------------------------------------------------------------


async def test_no_etcd_is_one_line_within_seconds(lone: Cli) -> None:
    """For all of them."""
    began_at_s = time.monotonic()
    lines = (
        "agents list|agents show w|agents watch|agents tombstones|agents drain w|agents drain w --undo|agents reap w"
    )
    more = "agents reap w --dry-run|agents restore w|agents run w -- true|breaker show|breaker close|breaker hold"
    even = "collect --once|collect --dry-run"
    for running in [lone.start(*line.split()) for line in f"{lines}|{more}|{even}".split("|")]:
        left_s = began_at_s + 60 + START_S - time.monotonic()
        (await running.ended(left_s)).assert_fails(NOWHERE, "cannot be reached")


async def test_commands_are_completed(lone: Cli) -> None:
    """By the shell, from what the program says."""
    asked = {"_ELECTION_COMPLETE": "bash_complete", "COMP_WORDS": "election agents r", "COMP_CWORD": "2"}
    ended = await lone.run(env=asked)
    assert ended.out.split() == ["plain,reap", "plain,restore", "plain,run"], ended


# --- list, show, watch, tombstones -----------------------------------------------------------------------------------


async def test_nothing_is_an_empty_answer(cli: Cli) -> None:
    """An empty list, and a line on stderr that says so; only who asks for one agent gets an error."""
    for command, words in (("agents list", "no agents in"), ("agents tombstones", "no tombstones in")):
        people, script = await cli.run(*command.split()), await cli.run(*command.split(), "-o", "json")
        assert (people.code, people.out, script.code, script.document) == (0, "", 0, [])
        assert words in people.err
        assert people.err.count("\n") == 1
    (await cli.run("agents", "show", "w")).assert_fails("'w' is not known")
    assert "no tombstones of agent 'w'" in (await cli.run("agents", "tombstones", "w")).err
    assert (await cli.run("agents", "list", "--state", "reaped")).err.startswith("no such agents in")


async def test_agents_are_listed_by_state_and_label(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Several states are alternatives, several labels are all wanted; a name without value stands for any."""
    join = cli.start("agents", "join", "w1", "-o", "json", "--label", "zone=a", "--label", "gpu=yes")
    drained = cli.start("agents", "join", "w2", "-o", "json", "--label", "zone=b")
    await asyncio.gather(join.until("joined"), drained.until("joined"))
    await leave_behind(etcd, keys, "w3", {"task": b"x"})
    await bury(etcd, keys, "w4", {"task": b"x"})
    assert (await cli.run("agents", "drain", "w2")).code == 0
    wanted = {
        "": ["w1", "w2", "w3"],
        "--state alive": ["w1"],
        "--state draining": ["w2"],
        "--state suspect --state reaped": ["w3", "w4"],
        "--label zone=a": ["w1", "w3"],
        "--label zone": ["w1", "w2", "w3"],
        "--label zone=a --label gpu": ["w1"],
        "--state reaped --label zone=a": ["w4"],
        "--label nothing": [],
    }
    found = await documents(cli, *(f"agents list {options}" for options in wanted))
    assert {options: [row["id"] for row in rows] for options, rows in zip(wanted, found, strict=True)} == wanted


async def bury(etcd: EtcdClient, keys: Keyspace, id: str, values: Mapping[str, bytes], *, part: int = 0) -> int:
    """Writes a tombstone of incarnation 7; returns the revision."""
    entries = tuple(StateEntry(name, value, 5) for name, value in values.items())
    now = etcd.clock.wall()
    record = AgentRecord(id, "h:1", {"zone": "a"})
    tombstone = Tombstone(id, 7, now, "k0", Token(0, 3), entries, part, keep_until=now, agent_record=record)
    return (await etcd.put(keys.tombstone(id, 7, part), tombstone.encode())).header.revision


async def test_one_agent_is_shown_with_what_it_stores(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """And with what was collected of it: every byte for scripts, the beginning of each value for people."""
    values = {"binary": BINARY, "long": b"x" * 5000, "task": b"{}"}
    incarnation = await leave_behind(etcd, keys, "w", values)
    await bury(etcd, keys, "w", {"old": b"1"})
    [shown] = await documents(cli, "agents show w")
    assert (shown["id"], shown["state"], shown["incarnation"], shown["address"]) == ("w", "suspect", incarnation, "h:1")
    entries = {entry["key"]: entry for entry in shown["entries"]}
    assert entries.keys() == values.keys()
    assert (entries["binary"]["base64"], entries["task"]["value"], entries["long"]["size"]) == ("/wD+", "{}", 5000)
    [tombstone] = shown["tombstones"]
    assert (tombstone["incarnation"], tombstone["collected"][0]["value"]) == (7, "1")
    people = await cli.run("agents", "show", "w")
    for words in ("suspect", "zone=a", "5000", "xxx...", "k0", "0-3"):
        assert words in people.out
    await restore(etcd, keys, "w", overwrite=True)
    [only] = await documents(cli, "agents tombstones w")
    assert [(row["agent"], row["part"], row["collected"]) for row in only] == [
        ("w", 0, [{"key": "old", "size": 1, "mod_revision": 5}])
    ]


async def test_one_agent_that_was_reaped_is_shown(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """As long as its tombstone is kept."""
    await bury(etcd, keys, "w", {"old": b"1"})
    [shown] = await documents(cli, "agents show w")
    assert (shown["state"], shown["entries"], len(shown["tombstones"])) == ("reaped", [], 1)


async def test_tables_fit_into_80_columns(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Also with long names and hundreds of keys, and what is foreign in them cannot write to the terminal."""
    long = "worker-pool-eu-west-1a-0123456"
    await leave_behind(etcd, keys, long, {f"task-{number}": b"\x1b[31m\n" * 50 for number in range(200)})
    await bury(etcd, keys, "w", {"old": b"1"})
    await bury(etcd, keys, long, {f"k{number}": b"1" for number in range(200)}, part=1)
    lines = (f"agents show {long}", "agents list", "agents tombstones", f"agents reap {long} --dry-run")
    for running in [cli.start(*line.split()) for line in lines]:
        ended = await running.ended()
        assert ended.code == 0, ended
        assert max(map(cell_len, ended.out.splitlines())) <= 80, ended.out
        assert "\x1b" not in ended.out
    short = await cli.run("agents", "tombstones", "w")
    assert len(short.out.splitlines()) == 2, short.out
    listed = await cli.run("agents", "list")
    assert "and 196 more" in " ".join(listed.out.split()), listed.out


async def test_a_watch_goes_on_where_another_one_ended(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """What was reaped in between is told first, by the revision that the last line had."""
    await leave_behind(etcd, keys, "w1", {"task": b"x"})
    watch = cli.start("agents", "watch", "-o", "json")
    assert (await watch.until("present"))["id"] == "w1"
    await watch.until("synced")
    join = cli.start("agents", "join", "w2", "-o", "json")
    joined = await watch.until("joined", id="w2", state="alive")
    await join.stop()
    stale = await watch.until("stale", id="w2")
    assert stale["revision"] > joined["revision"]
    assert (await watch.stop()).code == 0
    await etcd.delete(keys.state("w1", "task"))
    await etcd.delete(keys.state("w1", REGISTRATION))
    await bury(etcd, keys, "w1", {"task": b"x"})
    again = cli.start("agents", "watch", "-o", "json", "--after", str(stale["revision"]))
    await again.until("synced")
    assert [(event["event"], event.get("id")) for event in again.events] == [
        ("reaped", "w1"), ("present", "w2"), ("synced", None)
    ]  # fmt: skip
    assert again.events[0]["tombstone"]["collected"][0]["value"] == "x"
    await again.stop()
    people = cli.start("agents", "watch", "--after", "0")
    await people.until_said("synced")
    (await cli.run("agents", "watch", "--after", str(10**15))).assert_fails(str(10**15))
    (await cli.run("agents", "watch", "--after", str(10**30))).assert_fails(str(10**30))


# --- drain, reap, restore, the breaker -------------------------------------------------------------------------------


async def test_an_agent_drains_until_that_is_undone(cli: Cli) -> None:
    """It is seen as draining, also after a restart, and each command says whether it changed anything."""
    (await cli.run("agents", "drain", "w")).assert_fails("'w' is not known")
    join = cli.start("agents", "join", "w", "-o", "json")
    await join.until("joined")
    for words, draining, changed in ((), True, True), ((), True, False), (("--undo",), False, True), (
        ("--undo",), False, False
    ):  # fmt: skip
        [done] = await documents(cli, " ".join(("agents drain w", *words)))
        assert (done["agent"], done["draining"], done["changed"]) == ("w", draining, changed)
    assert "drains now" in (await cli.run("agents", "drain", "w")).out
    assert "drains already, asked for by " in (await cli.run("agents", "drain", "w")).out
    join.kill()
    join = cli.start("agents", "join", "w", "-o", "json", "--takeover")
    await join.until("joined")
    [[row]] = await documents(cli, "agents list")
    assert row["state"] == "draining"


async def test_a_dead_agent_is_reaped_when_an_operator_asks(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Whatever the grace and the breaker say; what would go is told before, and is what goes."""
    values = {"binary": BINARY, "task": b"x"}
    incarnation = await leave_behind(etcd, keys, "w", values)
    [planned] = await documents(cli, "agents reap w --dry-run")
    assert planned["incarnation"] == incarnation
    assert {entry["key"] for entry in planned["would_collect"]} == {REGISTRATION, *values}
    assert await stored(etcd, keys, "w") == values
    assert (await cli.run("breaker", "hold")).code == 0
    async with collecting(cli):
        [reaped] = await documents(cli, "agents reap w")
    assert (reaped["agent"], reaped["incarnation"]) == ("w", incarnation)
    assert [entry["key"] for entry in reaped["tombstones"][0]["collected"]] == ["binary", "task"]
    assert not (await etcd.list(keys.states("w"))).kvs
    (await cli.run("agents", "reap", "w")).assert_fails("'w' has no state")


async def test_a_live_agent_is_not_reaped(cli: Cli) -> None:
    """Neither really nor for a trial."""
    join = cli.start("agents", "join", "w", "-o", "json")
    await join.until("joined")
    for words in ((), ("--dry-run",)):
        (await cli.run("agents", "reap", "w", *words)).assert_fails("agent 'w' is alive: stop it first")


async def test_without_a_collector_nobody_reaps(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """The operator is told, and the request is gone, so that a collector that comes later waits for the grace."""
    await leave_behind(etcd, keys, "w", {"task": b"x"})
    (await cli.run("agents", "reap", "w", "--timeout", "0.5")).assert_fails(
        "no collector answered in 0.5 s: run `election collect`"
    )
    asked = cli.start("agents", "reap", "w")
    while (await etcd.get(keys.reap_request("w")))[0] is None:
        await asyncio.sleep(0.01)
    assert (await asked.stop(signal.SIGINT)).code == 130
    assert (await etcd.get(keys.reap_request("w")))[0] is None


async def test_what_was_reaped_is_put_back(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Every byte, and the agent is a suspect again; what is there is overwritten only when that is said."""
    values = {"binary": BINARY, "empty": b"", "task": b"x"}
    incarnation = await leave_behind(etcd, keys, "w", values)
    (await cli.run("agents", "restore", "w")).assert_fails("'w' has no tombstone")
    async with collecting(cli):
        assert (await cli.run("agents", "reap", "w")).code == 0
        [done] = await documents(cli, "agents restore w")
        assert (done["incarnation"], set(done["written"]), done["alive"]) == (
            incarnation,
            {*values, REGISTRATION},
            False,
        )
        assert await stored(etcd, keys, "w") == values
        [[row]] = await documents(cli, "agents list")
        assert (row["state"], row["incarnation"], row["labels"]) == ("suspect", incarnation, {"zone": "a"})
    await etcd.put(keys.state("w", "task"), b"mine")
    (await cli.run("agents", "restore", "w")).assert_fails("other values for task", "overwrite")
    (await cli.run("agents", "restore", "w", "--incarnation", "3")).assert_fails(f"there are those of {incarnation}")
    assert (await stored(etcd, keys, "w"))["task"] == b"mine"
    people = await cli.run("agents", "restore", "w", "--overwrite")
    assert (people.code, people.out.count("\n")) == (0, 1)
    assert "task" in people.out
    assert "collected again after the grace" in people.err
    assert await stored(etcd, keys, "w") == values


async def test_a_large_state_is_put_back(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """More than etcd takes in one transaction, by bytes and by operations."""
    values = {f"k{number:03}": os.urandom(30_000) for number in range(200)}
    names = list(values)
    for part in range(8):
        await bury(etcd, keys, "w", {name: values[name] for name in names[part * 25 : part * 25 + 25]}, part=part)
    [done] = await documents(cli, "agents restore w")
    assert set(done["written"]) == {*values, REGISTRATION}
    assert await stored(etcd, keys, "w") == values


async def test_the_breaker_is_shown_held_and_closed(cli: Cli) -> None:
    """By an operator, for a while or until it is closed."""
    [before] = await documents(cli, "breaker show")
    assert (before["open"], before["reason"], before["revision"]) == (False, None, 0)
    [held] = await documents(cli, "breaker hold --for 60")
    [shown] = await documents(cli, "breaker show")
    assert held == shown
    assert (shown["open"], shown["reason"], shown["until"] is None) == (True, "operator", False)
    assert "@" in shown["by"]
    assert "open: nothing is reaped (operator by " in (await cli.run("breaker", "show")).out
    assert "stays so until `election breaker close`" in (await cli.run("breaker", "hold")).out
    assert "closed: collectors may reap" in (await cli.run("breaker", "close")).out
    [closed] = await documents(cli, "breaker show")
    assert (closed["open"], closed["reason"], closed["until"]) == (False, "operator", None)


# --- collect ---------------------------------------------------------------------------------------------------------


async def test_collecting_once_ends(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """When those who were missing are reaped; a trial tells the same before, and does nothing."""
    await leave_behind(etcd, keys, "w", {"task": b"x"})
    trial = cli.start("collect", "--dry-run", "--once", "--grace", "0.5", "-o", "json")
    ended = await trial.ended(60)
    assert (ended.code, [name for name in trial.names if name != "foreign"]) == (0, ["suspected", "would_reap"]), ended
    assert trial.events[-1]["collected"] == ["task"]
    assert await stored(etcd, keys, "w") == {"task": b"x"}
    assert not (await etcd.list(keys.campaigns)).kvs
    once = cli.start("collect", "--once", "--grace", "0.5", "-o", "json")
    assert (await once.ended(60)).code == 0
    assert "reaped" in once.names
    assert await stored(etcd, keys, "w") == {}


async def test_the_breakers_settings_are_those_of_the_command(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """Two of two are too many where two are said to be, and as many as one likes without a breaker."""
    joins = [cli.start("agents", "join", name, "-o", "json", "--ttl", "3") for name in ("w1", "w2")]
    collect = cli.start(
        *("collect", "-o", "json", "--grace", "2", "--breaker-agents", "2", "--breaker-share", "0.9"),
        *("--breaker-hold", "77", "--rate", "50", "--reconcile", "5", "--retention", "100"),
    )
    await asyncio.gather(*(join.until("joined") for join in joins), collect.until("collecting"))
    for join in joins:
        join.kill()
    opened = await collect.until("breaker_opened")
    assert (opened["missing"], opened["known"]) == (2, 2)
    [shown] = await documents(cli, "breaker show")
    assert shown["open"]
    assert (await cli.run("breaker", "close")).code == 0
    await collect.until("breaker_closed")
    await collect.until("reaped", agent="w1")
    await collect.stop()


# --- agents run ------------------------------------------------------------------------------------------------------

SAY = 'echo "$ELECTION_AGENT_ID|$ELECTION_AGENT_INCARNATION|$ELECTION_NAMESPACE|$ELECTION_ENDPOINTS"'
FOREVER = "while :; do sleep 0.05; done"


def run(cli: Cli, script: str, *options: str, id: str = "w", ttl_s: int = TTL_S) -> Running:
    """`agents run` of a shell's script, with its events on stderr as JSON."""
    return cli.start("agents", "run", id, "-o", "json", "--ttl", str(ttl_s), *options, "--", "sh", "-c", script)


async def until_there(path: Path, timeout_s: float = 20.0) -> str:
    """Waits for a file that a program writes in one go."""
    async with asyncio.timeout(timeout_s):
        while not (path.exists() and path.read_text().endswith("\n")):  # noqa: ASYNC240 - a small file
            await asyncio.sleep(0.01)
    return path.read_text()  # noqa: ASYNC240


async def test_a_program_runs_while_it_is_an_agent(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """It finds in its environment what it is; stdout is its own, and the exit code too."""
    ended = await run(cli, f"{SAY}; exit 9", "--label", "zone=a").ended()
    [[row]] = await documents(cli, "agents list")
    assert (row["state"], row["labels"]) == ("suspect", {"zone": "a"})
    endpoints, namespace = cli.environment["ELECTION_ENDPOINTS"], cli.environment["ELECTION_NAMESPACE"]
    assert (ended.code, ended.out) == (9, f"w|{row['incarnation']}|{namespace}|{endpoints}\n")
    assert [line.split('"')[3] for line in ended.err.splitlines()] == ["joined"]
    assert (await etcd.get(keys.alive("w")))[0] is None
    dropped = await run(cli, "exit 0", "--drop-state").ended()
    assert dropped.code == 0
    assert (await documents(cli, "agents list")) == [[]]


async def test_a_program_that_cannot_be_run_registers_nobody(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """One line, and the exit codes of shells."""
    (await cli.run("agents", "run", "w", "--", "no-such-program", "x")).assert_fails("'no-such-program'", code=127)
    (await cli.run("agents", "run", "w", "--", "/tmp")).assert_fails("'/tmp'", code=126)
    assert not (await etcd.list(keys.root)).kvs
    (await cli.run("agents", "run", "w", "--endpoints", NOWHERE, "--", "true")).assert_fails(NOWHERE)


@pytest.mark.parametrize(
    ("number", "code", "out"), [(signal.SIGTERM, 5, "term\n"), (signal.SIGINT, 6, "int\n")], ids=["term", "int"]
)
async def test_signals_are_passed_on(
    cli: Cli, etcd: EtcdClient, keys: Keyspace, tmp_path: Path, number: signal.Signals, code: int, out: str
) -> None:
    """The program decides what comes of them; the agent leaves cleanly afterwards."""
    ready = tmp_path / "ready"
    running = run(cli, f"trap 'echo term; exit 5' TERM; trap 'echo int; exit 6' INT; echo > {ready}; {FOREVER}")
    await until_there(ready)
    ended = await running.stop(number)
    assert (ended.code, ended.out) == (code, out)
    assert (await etcd.get(keys.alive("w")))[0] is None
    found, _ = await etcd.get(keys.state("w", REGISTRATION))
    assert found is not None
    assert AgentRecord.decode("w", found.value).left_at is not None


async def test_a_program_that_does_not_stop_is_killed(cli: Cli, tmp_path: Path) -> None:
    """After the time that is given."""
    ready = tmp_path / "ready"
    running = run(cli, f"trap '' TERM; echo > {ready}; {FOREVER}", "--kill-after", "1")
    await until_there(ready)
    assert (await running.stop()).code == 137


async def test_a_lost_registration_restarts_the_program(
    cli: Cli, etcd: EtcdClient, keys: Keyspace, tmp_path: Path
) -> None:
    """The old one is over when the new one begins, as another incarnation."""
    log = tmp_path / "log"
    running = run(cli, f"trap 'echo end >> {log}; exit 0' TERM; {SAY} >> {log}; echo >> {log}; {FOREVER}")
    await until_there(log)
    found, _ = await etcd.get(keys.alive("w"))
    assert found is not None
    await etcd.lease_revoke(found.lease)
    async with asyncio.timeout(30):
        while len(lines := log.read_text().split()) < 3:
            await asyncio.sleep(0.02)
    first, end, second = lines
    now, _ = await etcd.get(keys.alive("w"))
    assert now is not None
    assert (end, first.split("|")[1], second.split("|")[1]) == (
        "end",
        str(found.create_revision),
        str(now.create_revision),
    )
    ended = await running.stop()
    assert [line.split('"')[3] for line in ended.err.splitlines() if line.startswith("{")] == [
        "joined",
        "lost",
        "joined",
    ]


async def test_a_lost_registration_can_end_it_all(cli: Cli, etcd: EtcdClient, keys: Keyspace, tmp_path: Path) -> None:
    """With an exit code of its own; or be of no account."""
    for on_loss, after in (("stop", 4), ("ignore", 8)):
        name, ready, go = f"w-{on_loss}", tmp_path / f"ready-{on_loss}", tmp_path / f"go-{on_loss}"
        script = f"echo > {ready}; while ! test -e {go}; do sleep 0.05; done; exit 8"
        running = run(cli, script, "--on-loss", on_loss, id=name)
        await until_there(ready)
        found, _ = await etcd.get(keys.alive(name))
        assert found is not None
        await etcd.lease_revoke(found.lease)
        if on_loss == "ignore":
            async with asyncio.timeout(20):
                while (await etcd.get(keys.alive(name)))[0] is None:
                    await asyncio.sleep(0.02)
            go.touch()
        assert (await running.ended(30)).code == after


async def test_a_taken_over_agents_program_is_stopped(cli: Cli, tmp_path: Path) -> None:
    """The new holder's program runs, and the old one's ends."""
    old, new = tmp_path / "old", tmp_path / "new"
    first = run(cli, f"echo > {old}; {FOREVER}", "--on-loss", "stop")
    await until_there(old)
    refused = await run(cli, "true").ended()
    assert (refused.code, "alive elsewhere" in refused.err) == (1, True)
    second = run(cli, f"echo > {new}; {FOREVER}", "--takeover")
    await until_there(new)
    assert (await first.ended(30)).code == 4
    assert second.process.poll() is None


async def test_a_stopped_command_does_not_keep_its_program_alive(
    cli: Cli, etcd: EtcdClient, keys: Keyspace, tmp_path: Path
) -> None:
    """The program is gone before the lease is, although nothing renews it and nobody watches."""
    pid_file = tmp_path / "pid"
    running = run(cli, f"trap '' TERM; echo $$ > {pid_file}; {FOREVER}")
    pid = int(await until_there(pid_file))
    running.send(signal.SIGSTOP)
    try:
        async with asyncio.timeout(TTL_S + LATE_S + START_S):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC240
                found, _ = await etcd.get(keys.alive("w"))
                assert found is not None, "the lease has ended, and the program runs"
                await asyncio.sleep(0.02)
            while (await etcd.get(keys.alive("w")))[0] is not None:
                await asyncio.sleep(0.02)
    finally:
        running.send(signal.SIGCONT)
    assert int(await until_another(pid_file, pid)) != pid


async def until_another(path: Path, pid: int) -> str:
    """Waits until a file names another process."""
    async with asyncio.timeout(30):
        while (text := await until_there(path)) == f"{pid}\n":
            await asyncio.sleep(0.02)
    return text


async def test_a_killed_command_takes_its_program_along(cli: Cli, tmp_path: Path) -> None:
    """At once, whatever the program does against it."""
    pid_file = tmp_path / "pid"
    running = run(cli, f"trap '' TERM; echo $$ > {pid_file}; {FOREVER}", ttl_s=60)
    pid = int(await until_there(pid_file))
    running.kill()
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC240
            await asyncio.sleep(0.01)


# --- with --server ---------------------------------------------------------------------------------------------------


async def test_a_server_answers_what_etcd_would(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """All that is asked about agents."""
    serve = cli.start("serve", "--grpc-port", "0", "-o", "json", "--grace", "3600", "--breaker-agents", "50")
    address = (await serve.until("serving"))["grpc"]
    await serve.until("collecting")
    await leave_behind(etcd, keys, "w1", {"task": BINARY})
    await bury(etcd, keys, "w2", {"task": BINARY, "other": b"x"})
    await bury(etcd, keys, "w2", {"more": b"x"}, part=1)
    assert (await cli.run("breaker", "hold", "--for", "60")).code == 0
    asked = ("agents list", "agents list --state reaped --label zone", "agents show w1", "agents show w2",
             "agents tombstones", "agents tombstones w2", "breaker show")  # fmt: skip
    while "w1" not in (await cli.run("agents", "list", "--server", address)).out:
        pass
    direct = await documents(cli, *asked)
    served = await documents(cli, *(f"{command} --server {address}" for command in asked))
    assert served == direct
    watch = cli.start("agents", "watch", "-o", "json", "--after", "0", "--server", address)
    await watch.until("synced")
    assert [event["event"] for event in watch.events] == ["reaped", "reaped", "present", "synced"]
    (await cli.run("agents", "show", "w", "--server", address)).assert_fails("'w' is not known")


async def test_a_server_does_what_is_done_over_etcd(cli: Cli, etcd: EtcdClient, keys: Keyspace) -> None:
    """To let an agent drain, to have it reaped and to put it back: with the same answers, errors and exit codes."""
    serve = cli.start("serve", "--grpc-port", "0", "-o", "json", "--no-collect")
    address = (await serve.until("serving"))["grpc"]
    assert await care_of(cli, etcd, keys, "--server", address) == await care_of(cli, etcd, keys)


async def care_of(cli: Cli, etcd: EtcdClient, keys: Keyspace, *where: str) -> list[Any]:
    """What the commands answer, one after the other, without what is different each time."""
    told: list[Any] = []

    async def run(command: str) -> None:
        done = await cli.run(*command.split(), *where, "-o", "json")
        document: dict[str, Any] = done.document if done.code == 0 else {"error": done.err}
        collected = [entry["key"] for each in document.get("tombstones", ()) for entry in each["collected"]]
        would = [entry["key"] for entry in document.get("would_collect", ())]
        changing = ("by", "at", "revision", "incarnation", "tombstones", "would_collect")
        told.append((done.code, {k: v for k, v in document.items() if k not in changing}, collected, would))

    await run("agents drain nobody")
    await leave_behind(etcd, keys, "w", {"task": b"x", "more": b"y"})
    for command in ("drain w", "drain w", "drain w --undo", "reap w --dry-run", "reap w --timeout 0.5", "restore w"):
        await run(f"agents {command}")
    async with collecting(cli):
        await run("agents reap w")
    await etcd.put(keys.state("w", "task"), b"other")
    await run("agents restore w")
    await run("agents restore w --overwrite")
    for prefix in (keys.states("w"), keys.tombstones("w")):
        await etcd.delete(prefix, prefix[:-1] + b"0")
    assert [each[0] for each in told] == [1, 0, 0, 0, 0, 1, 1, 0, 1, 0], told
    return told
