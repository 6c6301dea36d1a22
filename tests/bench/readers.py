"""What readers wait for: a change on many streams beside etcd's Observe, one question beside an empty one.

The change is one within a term: of Observe's streams many are told nothing any more once their leader was succeeded.
The servers, etcd and this client are processes of their own. What is compared is asked by the same client, by turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from election import Store, connect
from election.dev.etcd import EtcdCluster
from election.etcd import txn
from election.pb.election.v1 import election_pb2 as pb
from election.pb.election.v1 import election_pb2_grpc as services
from election.pb.etcd import election_pb2 as el
from election.records import CandidateRecord
from tests.bench.contender import BenchFailed
from tests.bench.echo import ANSWER, ECHO, STREAM
from tests.bench.process import process
from tests.bench.samples import Bound, Figure, Measured, Ratio, Samples

CHANGE_GOAL = 1.0
"""The most that a change may take to reach readers, as a part of what it takes through etcd's Observe."""
QUESTION_GOAL = 0.9
"""The least rate of questions, as a part of that of empty ones."""

_GET_LEADER = "/election.v1.Elections/GetLeader"
_ELECTION = "scheduler"
_OBSERVE = "/v3electionpb.Election/Observe"
_TURNS = ("observe", "watch", "watch", "observe")
_CHANGES_PER_TURN = 10
_SUCCESSIONS_PER_TURN = 2
_AT_ONCE = 32
_BLOCKS = 50
_WARM_UP_STREAMS = 50
_LONGEST_S = 60.0
_GIVE_UP_S = 5.0
_SETTLE_S = 0.5
_DEADLINE_S = 5.0
_BEATING_S = 5.0


async def measure(cluster: EtcdCluster, streams: int, questions: int, tell: Callable[[str], None]) -> Measured:
    """Changes the leader under so many streams, and asks so many questions.

    Raises:
        BenchFailed: when a process fails, or a stream is not told.
    """
    async with (
        connect(cluster.endpoints, namespace="readers") as store,
        _serving(cluster, "tests.bench.api") as (address, api),
        _serving(cluster, "tests.bench.echo") as (bare_address, bare),
        grpc.aio.insecure_channel(address) as ours,
        grpc.aio.insecure_channel(bare_address) as echo,
        grpc.aio.insecure_channel(cluster.endpoints[0]) as first,
        grpc.aio.insecure_channel(cluster.endpoints[-1]) as other,
    ):
        reign = _Reign(store)
        await reign.succeed()
        stub = services.ElectionsStub(ours)
        watch = _Streams(
            lambda: stub.WatchLeader(pb.WatchLeaderRequest(election=_ELECTION)), lambda told: told.view.revision
        )
        observed = el.LeaderRequest(name=store.keyspace.campaign_name(_ELECTION))
        # What its Observes block when they end stays blocked in a member, so each turn has one of its own.
        observe = [_Streams(partial(_observe_on(etcd), observed), _mod_revision) for etcd in (first, other)]

        tell(f"readers: memory of {streams} idle streams")
        wait_on: Any = echo.unary_stream(STREAM)
        idle = _Streams(lambda: wait_on(b""), lambda message: 0)
        bare_kb = await _kb_per_stream(idle, streams, bare.pid)
        our_kb = await _kb_per_stream(watch, streams, api.pid)

        tell(f"readers: heartbeats of {streams} streams")
        beating = pb.WatchLeaderRequest(election=_ELECTION, heartbeat=Duration(seconds=1))
        beat_us = await _cpu_per_beat(_Streams(lambda: stub.WatchLeader(beating), lambda _: 0), streams, api.pid)

        all_ms: dict[str, list[float]] = {"watch": [], "observe": []}
        last_ms: dict[str, list[float]] = {"watch": [], "observe": []}
        deaf: dict[str, list[int]] = {}
        for turn, what in enumerate(_TURNS):
            tell(f"readers: {streams} streams of {what}, {turn + 1} of {len(_TURNS)}")
            async with (watch if what == "watch" else observe.pop()).open(streams) as opened:
                for _ in range(_CHANGES_PER_TURN):
                    took_ms = await opened.hear(reign.change)
                    all_ms[what] += took_ms
                    last_ms[what].append(max(took_ms))
                if turn >= len(_TURNS) // 2:
                    deaf[what] = [await opened.deaf(reign.succeed) for _ in range(_SUCCESSIONS_PER_TURN)]

        tell(f"readers: {questions} questions, as many empty ones, and as many with a bare answer of the same size")
        asked = pb.GetLeaderRequest(election=_ELECTION)
        size = str((await stub.GetLeader(asked)).ByteSize()).encode()
        empty_on: Any = echo.unary_unary(ECHO)
        bare_on: Any = echo.unary_unary(ANSWER)
        our_on: Any = ours.unary_unary(_GET_LEADER)  # bytes, as in the other two: the client does the same in all
        question = asked.SerializeToString()
        asks: dict[str, tuple[Callable[[], Any], int]] = {
            "ours": (lambda: our_on(question, timeout=_DEADLINE_S), api.pid),
            "empty": (lambda: empty_on(b"", timeout=_DEADLINE_S), bare.pid),
            "bare": (lambda: bare_on(size, timeout=_DEADLINE_S), bare.pid),
        }
        rates: dict[str, list[float]] = {what: [] for what in asks}
        cpu_us: dict[str, list[float]] = {what: [] for what in asks}
        for block in range(_BLOCKS):
            for what in sorted(asks, reverse=block % 2 == 1):
                rate, cpu = await _rate(*asks[what], questions // _BLOCKS)
                rates[what].append(rate)
                cpu_us[what].append(cpu)

    change, change_in_etcd = Samples("WatchLeader", all_ms["watch"]), Samples("etcd Observe", all_ms["observe"])
    last, last_in_etcd = Samples("WatchLeader, last", last_ms["watch"]), Samples("Observe, last", last_ms["observe"])
    # Of neighbours in time, since what else the machine does changes more than what is compared.
    of_empty, of_bare = (
        median(ours / other for ours, other in zip(rates["ours"], rates[what], strict=True))
        for what in ("empty", "bare")
    )
    return Measured(
        f"readers: a change of the leader's record on {streams:,} streams of one server, from before the write",
        series=(change, change_in_etcd, last, last_in_etcd),
        ratios=(
            Ratio("WatchLeader / Observe", change, change_in_etcd, (50,), CHANGE_GOAL),
            Ratio("the last stream to hear: WatchLeader / Observe", last, last_in_etcd, (50, 90), CHANGE_GOAL),
        ),
        numbers=(
            ("streams of WatchLeader that are not told of a successor within 5 s", max(deaf["watch"])),
            # The watches of all Observes of a member block each other when they end (etcd #20716).
            ("streams of etcd Observe that are not", max(deaf["observe"])),
            ("GetLeader: per s", median(rates["ours"])),
            ("an empty call: per s", median(rates["empty"])),
            ("GetLeader, CPU of the server: us", median(cpu_us["ours"])),
            ("an empty call, CPU of the server: us", median(cpu_us["empty"])),
            ("a bare answer of as many bytes, CPU of the server: us", median(cpu_us["bare"])),
            ("GetLeader / a bare answer of as many bytes: % of its rate", 100 * of_bare),
            ("an idle WatchLeader: KB of the server's memory", our_kb),
            ("an idle bare stream: KB of the server's memory", bare_kb),
            ("a heartbeat, CPU of the server: us", beat_us),
        ),
        figures=(Figure("GetLeader / an empty call", of_empty, QUESTION_GOAL, Bound.AT_LEAST),),
    )


class _Reign:
    """Who leads, written as candidates write it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lease = 0
        self._changes = 0

    async def succeed(self) -> int:
        """Somebody else leads, from one transaction on; returns its revision."""
        ended = [txn.delete(self._key())] if self._lease else []
        self._lease += 1
        answer = await self._store.client.txn([], [*ended, txn.put(self._key(), self._record())])
        return answer.header.revision

    async def change(self) -> int:
        """The leader says something else of itself; returns the revision."""
        self._changes += 1
        return (await self._store.client.put(self._key(), self._record())).header.revision

    def _key(self) -> bytes:
        return self._store.keyspace.candidate(_ELECTION, self._lease)

    def _record(self) -> bytes:
        now = self._store.client.clock.wall()
        return CandidateRecord("orchestrator", f"10.0.0.1:{self._changes}", elected_at=now).encode()


class _Streams:
    """Streams of one kind that are read at once."""

    def __init__(self, call: Callable[[], Any], revision_of: Callable[[Any], int]) -> None:
        self._call = call
        self._revision_of = revision_of
        self._heard_at_s: dict[int, list[float]] = {}
        self._news = asyncio.Event()
        self._number = 0

    @asynccontextmanager
    async def open(self, number: int) -> AsyncGenerator[_Streams]:
        """So many, each of which has been told something."""
        self._heard_at_s = {}
        calls = [self._call() for _ in range(number)]
        readings = [asyncio.create_task(self._read(call)) for call in calls]
        try:
            await self._until(lambda: self.heard >= number)
            await asyncio.sleep(_SETTLE_S)
            self._number = number
            yield self
        finally:
            for call in calls:
                call.cancel()
            await asyncio.wait(readings)

    @property
    def heard(self) -> int:
        """How many messages have come."""
        return sum(map(len, self._heard_at_s.values()))

    def more(self) -> _Streams:
        """Others of the same kind."""
        return _Streams(self._call, self._revision_of)

    async def hear(self, change: Callable[[], Awaitable[int]]) -> list[float]:
        """How long after a change began each of them was told, in ms."""
        began_s = time.monotonic()
        revision = await change()
        await self._until(lambda: len(self._heard_at_s.get(revision, ())) == self._number)
        await asyncio.sleep(_SETTLE_S)
        return [(at_s - began_s) * 1e3 for at_s in self._heard_at_s[revision]]

    async def deaf(self, change: Callable[[], Awaitable[int]]) -> int:
        """How many of them are not told of a change, however long they wait."""
        revision = await change()
        await asyncio.sleep(_GIVE_UP_S)
        return self._number - len(self._heard_at_s.get(revision, ()))

    async def _read(self, call: Any) -> None:
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            while True:
                heard = self._heard_at_s.setdefault(self._revision_of(await call.read()), [])
                heard.append(time.monotonic())
                self._news.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(_LONGEST_S):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise BenchFailed(f"not every stream is told within {_LONGEST_S:g} s") from None


def _observe_on(etcd: grpc.aio.Channel) -> Any:
    return etcd.unary_stream(
        _OBSERVE,
        request_serializer=el.LeaderRequest.SerializeToString,
        response_deserializer=el.LeaderResponse.FromString,
    )


def _mod_revision(message: Any) -> int:
    return int(message.kv.mod_revision)


@asynccontextmanager
async def _serving(cluster: EtcdCluster, module: str) -> AsyncGenerator[tuple[str, asyncio.subprocess.Process]]:
    async with process(cluster, "readers", module) as made:
        assert made.stdout is not None
        address = (await made.stdout.readline()).decode().strip()
        if not address:
            raise BenchFailed(f"{module} does not serve")
        yield address, made


async def _kb_per_stream(streams: _Streams, number: int, pid: int) -> float:
    """What one more idle stream costs, once the first ones have been there."""
    async with streams.open(_WARM_UP_STREAMS):
        before_kb = _resident_kb(pid)
        async with streams.more().open(number):
            return (_resident_kb(pid) - before_kb) / number


async def _cpu_per_beat(streams: _Streams, number: int, pid: int) -> float:
    """What one sign of life costs the server in microseconds of CPU, where each stream gets one a second."""
    async with streams.open(number):
        cpu_ns, heard = _cpu_ns(pid), streams.heard
        await asyncio.sleep(_BEATING_S)
        return (_cpu_ns(pid) - cpu_ns) / max(streams.heard - heard, 1) / 1e3


async def _rate(ask: Callable[[], Any], pid: int, number: int) -> tuple[float, float]:
    """Answers per second, and what one costs the server in microseconds of CPU."""

    async def some(count: int) -> None:
        for _ in range(count):
            await ask()

    began_s, cpu_ns = time.monotonic(), _cpu_ns(pid)
    await asyncio.gather(*(some(number // _AT_ONCE) for _ in range(_AT_ONCE)))
    took_s, asked = time.monotonic() - began_s, number // _AT_ONCE * _AT_ONCE
    return asked / took_s, (_cpu_ns(pid) - cpu_ns) / asked / 1e3


def _resident_kb(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return float(line.split()[1])


def _cpu_ns(pid: int) -> int:
    """The CPU time that its threads have used, by the kernel's scheduler."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
