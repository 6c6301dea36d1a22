"""The highest token seen: every store keeps one contract, and the durable ones keep it through crashes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from election.config import EtcdConfig
from election.dev.parent import bound_to_this_process
from election.errors import ConfigError, EtcdUnavailable, HighWaterError
from election.etcd import methods
from election.etcd.client import EtcdClient
from election.etcd.methods import Method
from election.etcd.transport import RpcFailed
from election.fencing.highwater_etcd import EtcdHighWater
from election.fencing.highwater_sqlite import SqliteHighWater
from election.highwater import FileHighWater, HighWater, MemoryHighWater
from election.token import Token
from tests.fake.clock import VirtualClock, virtual
from tests.fake.etcd import FakeEtcd
from tests.fake.transport import FakeTransport

Advance: TypeAlias = Callable[[str, Token], Awaitable[Token]]
WAIT_S = 30.0

LOW, MIDDLE, HIGH, NEXT_EPOCH = Token(0, 5), Token(0, 7), Token(0, 1234), Token(1, 3)


@dataclass(frozen=True)
class Place:
    """Where the marks of one test are, for as many stores as are opened there."""

    kind: str
    folder: Path

    def open(self) -> HighWater:
        if self.kind == "memory":
            return MemoryHighWater()
        return FileHighWater(self.folder / "marks") if self.kind == "file" else SqliteHighWater(self.folder / "marks")


@dataclass(frozen=True)
class EtcdPlace:
    """A fake etcd, made when the loop runs; every store has a client of its own."""

    etcd: FakeEtcd

    @asynccontextmanager
    async def store(self) -> AsyncIterator[tuple[EtcdHighWater, FakeTransport]]:
        transport = FakeTransport(self.etcd, latency_s=0.001)
        config = EtcdConfig(transport.endpoints)
        async with EtcdClient(config, clock=VirtualClock(), transport=transport, rng=random.Random(1)) as client:
            yield EtcdHighWater(client, b"/marks/"), transport

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Advance]:
        async with self.store() as (store, _):
            yield store.advance


def etcd_place() -> EtcdPlace:
    return EtcdPlace(FakeEtcd(VirtualClock()))


@asynccontextmanager
async def stores(kind: str, folder: Path, count: int) -> AsyncIterator[list[Advance]]:
    """Several stores on the same marks; of the one in memory, there is just one."""
    if kind == "etcd":
        place = etcd_place()
        async with place.open() as one, place.open() as two:
            yield [one, two][:count]
        return

    def opened(store: HighWater) -> Advance:
        async def advance(name: str, token: Token) -> Token:
            return store.advance(name, token)

        return advance

    here = Place(kind, folder)
    yield [opened(here.open())] * count if kind == "memory" else [opened(here.open()) for _ in range(count)]


every_store = pytest.mark.parametrize("kind", ["memory", "file", "sqlite", "etcd"])
every_shared = pytest.mark.parametrize("kind", ["file", "sqlite", "etcd"])
every_local = pytest.mark.parametrize("kind", ["file", "sqlite"])


# --- what all stores do --------------------------------------------------------------------------------------


@every_store
@virtual
async def test_a_mark_rises_and_never_falls(kind: str, tmp_path: Path) -> None:
    """A token is admitted when it is the highest one, as often as it comes, and epochs count before revisions."""
    async with stores(kind, tmp_path, 1) as [advance]:
        assert await advance("scheduler", MIDDLE) == MIDDLE
        assert await advance("scheduler", MIDDLE) == MIDDLE
        assert await advance("scheduler", LOW) == MIDDLE
        assert await advance("scheduler", HIGH) == HIGH
        assert await advance("scheduler", NEXT_EPOCH) == NEXT_EPOCH
        assert await advance("scheduler", HIGH) == NEXT_EPOCH


@every_store
@virtual
async def test_every_name_has_a_mark_of_its_own(kind: str, tmp_path: Path) -> None:
    """Whatever letters are in the name, and however far apart the marks are."""
    names = ["scheduler", "Scheduler", "_collector", "käse 🧀", 'a"b\\c', "a/b", ""]
    async with stores(kind, tmp_path, 1) as [advance]:
        for number, name in enumerate(names):
            assert await advance(name, Token(0, number)) == Token(0, number)
        for number, name in enumerate(names):
            assert await advance(name, Token(0, 0)) == Token(0, number)


@every_store
@virtual
async def test_the_largest_token_fits(kind: str, tmp_path: Path) -> None:
    """Also as a number."""
    largest = Token.of_int(2**63 - 1)
    async with stores(kind, tmp_path, 1) as [advance]:
        assert await advance("scheduler", largest) == largest
        assert await advance("scheduler", NEXT_EPOCH) == largest


@every_store
@pytest.mark.parametrize("seed", range(5))
@virtual
async def test_a_mark_is_the_largest_of_what_came(kind: str, tmp_path: Path, seed: int) -> None:
    """Whatever came in which order, through either of two stores."""
    rng, expected = random.Random(seed), dict.fromkeys("ab", Token(0, 0))
    async with stores(kind, tmp_path, 2) as advances:
        for _ in range(40):
            name, token = rng.choice("ab"), Token(rng.randrange(3), rng.randrange(10))
            expected[name] = max(expected[name], token)
            assert await rng.choice(advances)(name, token) == expected[name]


@every_shared
@virtual
async def test_stores_in_one_place_know_of_each_other(kind: str, tmp_path: Path) -> None:
    """What one has seen, the other refuses at once."""
    async with stores(kind, tmp_path, 2) as [one, other]:
        assert await one("scheduler", MIDDLE) == MIDDLE
        assert await other("scheduler", LOW) == MIDDLE
        assert await other("scheduler", HIGH) == HIGH
        assert await one("scheduler", MIDDLE) == HIGH


@every_local
def test_marks_outlive_their_store(kind: str, tmp_path: Path) -> None:
    """A server that is started again refuses whom it has refused before."""
    Place(kind, tmp_path).open().advance("scheduler", HIGH)
    assert Place(kind, tmp_path).open().advance("scheduler", MIDDLE) == HIGH


# --- many at once --------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Asked:
    """One call of `advance`: from when until when, on the machine's clock."""

    began_ns: int
    ended_ns: int
    token: Token
    mark: Token


def ask_all(advance: Callable[[str, Token], Token], tokens: Iterable[Token]) -> list[Asked]:
    asked = []
    for token in tokens:
        began_ns = time.monotonic_ns()
        mark = advance("scheduler", token)
        asked.append(Asked(began_ns, time.monotonic_ns(), token, mark))
    return asked


def check(asked: Sequence[Asked]) -> None:
    """As if the calls had been made one after the other: no mark is below that of a call that had ended before."""
    assert {one.mark for one in asked} <= {one.token for one in asked}
    by_end = sorted(asked, key=lambda one: one.ended_ns)
    highest, ended = Token(0, 0), 0
    for one in sorted(asked):
        while by_end[ended].ended_ns < one.began_ns:
            highest = max(highest, by_end[ended].mark)
            ended += 1
        assert one.mark >= max(highest, one.token), one
    assert max(one.mark for one in asked) == max(one.token for one in asked)


def test_the_check_sees_a_mark_that_falls() -> None:
    """Otherwise the tests that follow would show nothing."""
    with pytest.raises(AssertionError):
        check([Asked(1, 2, HIGH, HIGH), Asked(3, 4, LOW, LOW)])
    check([Asked(1, 3, HIGH, HIGH), Asked(2, 4, LOW, LOW)])  # at the same time: either order will do


@pytest.mark.parametrize("kind", ["memory", "file", "sqlite"])
@pytest.mark.parametrize("seed", [1, 2])
def test_threads_see_one_mark(kind: str, tmp_path: Path, seed: int) -> None:
    """No thread admits a token after another one has admitted a larger one."""
    store, asked, begin = Place(kind, tmp_path).open(), [], threading.Barrier(6)

    def run(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        begin.wait(WAIT_S)
        asked.extend(ask_all(store.advance, [Token(0, rng.randrange(i, i + 30)) for i in range(40)]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(asked) == 6 * 40
    check(asked)


PROCESS = """
import sys
from tests.unit.test_highwater import *

kind, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
store, rng = Place(kind, folder).open(), random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
for one in ask_all(store.advance, [Token(0, rng.randrange(i, i + 30)) for i in range(40)]):
    print(one.began_ns, one.ended_ns, one.token, one.mark)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = bound_to_this_process([sys.executable, "-c", program, *map(str, arguments)])
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)


@every_local
@pytest.mark.parametrize("seed", [1])
def test_processes_see_one_mark(kind: str, tmp_path: Path, seed: int) -> None:
    """Neither does another process, nor does one write away what another one has written."""
    processes = [start(PROCESS, kind, tmp_path, 10 * seed + number) for number in range(3)]
    asked = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
        for process in processes:
            for line in process.communicate(timeout=WAIT_S)[0].splitlines():
                began, ended, token, mark = line.split()
                asked.append(Asked(int(began), int(ended), Token.parse(token), Token.parse(mark)))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert len(asked) == 3 * 40
    check(asked)


RISING = """
import sys
from tests.unit.test_highwater import *

store = Place(sys.argv[1], Path(sys.argv[2])).open()
for revision in range(1, 1_000_000):
    print(store.advance("scheduler", Token(0, revision)), flush=True)
"""


@every_local
def test_a_process_that_is_killed_leaves_what_it_has_answered(kind: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: the next one reads a whole mark, at least the last that was told."""
    for _ in range(3):
        with start(RISING, kind, tmp_path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(10)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        told = Token.parse(lines[-1].strip() if lines[-1].endswith("\n") else lines[-2].strip())
        assert told <= Place(kind, tmp_path).open().advance("scheduler", Token(0, 0)) <= Token(0, told.revision + 1)


# --- the file ------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine loses power here."""


class Disk:
    """What the file store does to the disk, in order; it may end at the next step of a kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.crash_before: str | None = None
        self._fsync, self._replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def fsync(self, descriptor: int) -> None:
        self._step(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        self._fsync(descriptor)

    def replace(self, source: Any, target: Any) -> None:
        self._step(f"replace {Path(target).name}")
        self._replace(source, target)

    def _step(self, step: str) -> None:
        if step == self.crash_before:
            raise Crash(step)
        self.steps.append(step)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (made := tmp_path / "folder").mkdir()
    return made


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


WRITING = ["sync marks.new", "replace marks", "sync folder"]


def test_the_file_is_on_disk_before_the_answer(folder: Path, disk: Disk) -> None:
    """Its content before it takes the place of the old one, and its entry in the folder after that."""
    FileHighWater(folder / "marks").advance("scheduler", MIDDLE)
    assert disk.steps == WRITING
    assert json.loads((folder / "marks").read_text()) == {"scheduler": "0-7"}


def test_the_file_is_written_only_when_a_mark_rises(folder: Path, disk: Disk) -> None:
    """A steady leader costs the disk nothing."""
    store = FileHighWater(folder / "marks")
    store.advance("scheduler", MIDDLE)
    disk.steps.clear()
    assert [store.advance("scheduler", token) for token in (MIDDLE, LOW, MIDDLE)] == [MIDDLE] * 3
    assert disk.steps == []


@pytest.mark.parametrize("step", WRITING)
def test_the_power_may_go_at_any_step(folder: Path, disk: Disk, step: str) -> None:
    """The file is then the old or the new one, never a part, and the next start goes on from it."""
    FileHighWater(folder / "marks").advance("other", LOW)
    FileHighWater(folder / "marks").advance("scheduler", LOW)
    disk.crash_before = step
    with pytest.raises(Crash):
        FileHighWater(folder / "marks").advance("scheduler", HIGH)
    assert json.loads((folder / "marks").read_text())["scheduler"] in (str(LOW), str(HIGH))
    disk.crash_before = None
    store = FileHighWater(folder / "marks")
    assert store.advance("scheduler", MIDDLE) == (HIGH if step == "sync folder" else MIDDLE)
    assert store.advance("other", LOW) == LOW


def test_what_another_process_has_written_is_synced_before_it_is_told(folder: Path, disk: Disk) -> None:
    """It may have died between the replacement and the sync: what is read could still go with the power. Once."""
    FileHighWater(folder / "marks").advance("scheduler", MIDDLE)
    disk.steps.clear()
    store = FileHighWater(folder / "marks")
    assert store.advance("scheduler", MIDDLE) == MIDDLE
    assert disk.steps == ["sync folder"]
    assert store.advance("scheduler", LOW) == MIDDLE
    assert disk.steps == ["sync folder"]


def test_a_file_that_is_deleted_comes_back(folder: Path) -> None:
    """A store that lives remembers its marks, and writes them again."""
    store = FileHighWater(folder / "marks")
    store.advance("scheduler", MIDDLE)
    (folder / "marks").unlink()
    assert store.advance("scheduler", LOW) == MIDDLE
    assert FileHighWater(folder / "marks").advance("scheduler", LOW) == MIDDLE


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"7",
    b'{"scheduler": 7}',
    b'{"scheduler": "7"}',
    b'{"scheduler": "0-7"',
    b"\xff\xfe",
    b"\0",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_an_error_and_is_left_as_it_is(folder: Path, content: bytes) -> None:
    """It has to be looked at: to begin anew would admit whoever comes first."""
    store = FileHighWater(folder / "marks")
    (folder / "marks").write_bytes(content)
    for attempt in (lambda: store.advance("scheduler", HIGH), lambda: FileHighWater(folder / "marks")):
        with pytest.raises(ConfigError, match=r"marks is damaged.*restore it, or delete it") as raised:
            attempt()
        assert "\n" not in str(raised.value)
    assert (folder / "marks").read_bytes() == content


def test_a_lock_that_nobody_lets_go_is_waited_for_and_not_longer(folder: Path) -> None:
    """A process that was stopped while it held the lock must not hang all others."""
    store = FileHighWater(folder / "marks", wait_s=0)
    with (folder / "marks.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HighWaterError, match=r"marks\.lock has been held"):
            store.advance("scheduler", LOW)
    assert store.advance("scheduler", LOW) == LOW


def test_a_disk_that_fails_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the mark has not been told; once the disk works again, it is kept."""
    store = FileHighWater(folder / "marks")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HighWaterError, match="No space left on device"):
            store.advance("scheduler", LOW)
    assert store.advance("scheduler", LOW) == LOW
    assert FileHighWater(folder / "marks").advance("scheduler", Token(0, 1)) == LOW


@pytest.mark.parametrize("make", [FileHighWater, SqliteHighWater])
def test_a_path_that_cannot_be_used_is_found_at_once(make: Callable[[Path], HighWater], tmp_path: Path) -> None:
    """The folder is not made: it could be the place of a volume that is not there."""
    with pytest.raises(ConfigError, match="missing/marks"):
        make(tmp_path / "missing" / "marks")
    with pytest.raises(ConfigError, match="cannot keep"):
        make(tmp_path)


def test_the_file_store_needs_no_grpc() -> None:
    """A candidate's local state must not wait for it."""
    program = "import sys, election.highwater as _; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- the database --------------------------------------------------------------------------------------------


def test_the_database_holds_integer_forms(folder: Path) -> None:
    """For whoever wants to compare them in SQL."""
    SqliteHighWater(folder / "marks").advance("scheduler", NEXT_EPOCH)
    with closing(sqlite3.connect(folder / "marks")) as database:
        assert database.execute("SELECT * FROM election_high_water").fetchall() == [("scheduler", int(NEXT_EPOCH))]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_that_is_there_is_used_as_it_is(folder: Path, mode: str) -> None:
    """With its tables and its journal mode."""
    with closing(sqlite3.connect(folder / "marks")) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("CREATE TABLE jobs (id)")
        assert SqliteHighWater(folder / "marks").advance("scheduler", LOW) == LOW
        assert SqliteHighWater(folder / "marks").advance("scheduler", Token(0, 1)) == LOW
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode.lower(),)
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_a_locked_database_is_waited_for_and_not_longer(folder: Path) -> None:
    """Somebody else's long transaction refuses the call, and harms nothing."""
    store = SqliteHighWater(folder / "marks", wait_s=0)
    with closing(sqlite3.connect(folder / "marks", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HighWaterError, match="locked"):
            store.advance("scheduler", LOW)
    assert store.advance("scheduler", LOW) == LOW


def test_a_file_that_is_no_database_is_an_error(folder: Path) -> None:
    """And is left as it is."""
    store = SqliteHighWater(folder / "marks")
    (folder / "marks").write_bytes(b"something else" * 100)
    for attempt in (lambda: store.advance("scheduler", HIGH), lambda: SqliteHighWater(folder / "marks")):
        with pytest.raises(ConfigError, match="not a database"):
            attempt()
    assert (folder / "marks").read_bytes() == b"something else" * 100


# --- etcd ----------------------------------------------------------------------------------------------------


async def test_a_coroutine_function_is_told_apart() -> None:
    """The fence of an asyncio server awaits what is one, and asks the others in threads."""
    assert asyncio.iscoroutinefunction(EtcdHighWater(client=None, prefix=b"").advance)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
@virtual
async def test_servers_see_one_mark_in_etcd(seed: int) -> None:
    """Many stores that write at the same moment overtake each other, and none admits what another one has passed."""
    rng, place = random.Random(seed), etcd_place()
    now_s = asyncio.get_running_loop().time
    asked: list[Asked] = []

    async def run() -> None:
        async with place.open() as advance:
            for i in range(20):
                token = Token(0, rng.randrange(i, i + 15))
                began = int(now_s() * 1e9)
                mark = await advance("scheduler", token)
                asked.append(Asked(began, int(now_s() * 1e9), token, mark))
                await asyncio.sleep(rng.random() / 100)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(run())
    assert len(asked) == 5 * 20
    check(asked)


@pytest.mark.parametrize("overtaken", [False, True])
@virtual
async def test_a_write_whose_answer_was_lost_is_read_back(overtaken: bool) -> None:
    """Its repetition finds the mark raised, and the token is admitted all the same, unless it was passed meanwhile."""
    place = etcd_place()
    async with place.store() as (store, transport), place.open() as other:
        lost: list[int] = []

        async def lose(member: int, method: Method[Any, Any], _: Message) -> None:
            if method.path == methods.TXN.path and not lost:
                lost.append(member)
                if overtaken:
                    await other("scheduler", HIGH)
                raise RpcFailed(StatusCode.UNAVAILABLE, "Socket closed")

        transport.after_call = lose
        assert await store.advance("scheduler", MIDDLE) == (HIGH if overtaken else MIDDLE)
        assert lost


@virtual
async def test_without_etcd_there_is_no_answer() -> None:
    """Whoever asked refuses; nothing is answered from memory."""
    place = etcd_place()
    async with place.store() as (store, transport):
        assert await store.advance("scheduler", LOW) == LOW
        transport.cut()
        with pytest.raises(EtcdUnavailable):
            await store.advance("scheduler", LOW)
        transport.mend()
        assert await store.advance("scheduler", LOW) == LOW


@virtual
async def test_a_damaged_mark_in_etcd_is_an_error_and_is_left_as_it_is() -> None:
    """As a damaged file is."""
    place = etcd_place()
    async with (
        place.store() as (store, transport),
        EtcdClient(
            EtcdConfig(transport.endpoints), clock=VirtualClock(), transport=FakeTransport(place.etcd)
        ) as client,
    ):
        await client.put(b"/marks/scheduler", b"\xffseven")
        with pytest.raises(ConfigError, match=r"/marks/scheduler' is damaged"):
            await store.advance("scheduler", HIGH)
        found, _ = await client.get(b"/marks/scheduler")
        assert found is not None
        assert found.value == b"\xffseven"


@virtual
async def test_a_mark_in_etcd_is_written_only_when_it_rises() -> None:
    """A steady leader costs a read."""
    place = etcd_place()
    async with place.open() as advance:
        await advance("scheduler", MIDDLE)
        revision = place.etcd.store.revision
        for token in (MIDDLE, LOW, MIDDLE):
            assert await advance("scheduler", token) == MIDDLE
        assert place.etcd.store.revision == revision
