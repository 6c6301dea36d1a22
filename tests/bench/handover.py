"""From the signal to a leader until the next one, another process, has begun: beside `etcdctl elect`.

In each round both programs get a new follower, each waits for the same time, and then they are measured one after the
other, in an order that turns from round to round (the first finds a cluster that has rested, and is slower): what else
the machine does hits both alike.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.etcd.client import EtcdClient
from election.keys import Keyspace
from tests.bench import contender
from tests.bench.contender import BenchFailed, Contender
from tests.bench.samples import Measured, Ratio, Samples

GOAL = 0.8
"""The most that ours may take, as a part of what etcdctl takes."""

_NAMESPACE = "bench"
_TTL_S = 10
_SETTLED_S = 0.6
_QUIET_S = 0.1
"""Between two measurements, for those who have ended to be gone."""
_QUEUED_S = 20.0
_POLL_S = 0.02
_IDLE_S = 5.0


class Lane:
    """One election of one program: somebody leads, and one process waits."""

    def __init__(
        self, name: str, prefix: bytes, start: Callable[[str], Contender], *, number: signal.Signals, client: EtcdClient
    ) -> None:
        self.name = name
        self.taken_ms: list[float] = []
        self._prefix = prefix
        self._start = start
        self._signal = number
        self._client = client
        self._contenders: list[Contender] = []
        self._started = 0

    async def begin(self) -> None:
        """Starts the first leader, and returns when it leads."""
        self._add()
        await self.queued(1)
        self._check(self.leader.read(), await self._keys())

    @property
    def leader(self) -> Contender:
        """The one that leads."""
        return self._contenders[0]

    @property
    def follower(self) -> Contender:
        """The one that waits."""
        return self._contenders[1]

    def refill(self) -> None:
        """Starts a follower where there is none; one that stayed after its term is the next one."""
        if len(self._contenders) < 2:
            self._add()

    async def queued(self, count: int = 2) -> None:
        """Waits until so many processes stand."""
        give_up_at_s = time.monotonic() + _QUEUED_S
        while len(await self._keys()) != count:
            if time.monotonic() >= give_up_at_s:
                raise BenchFailed(f"{self.name}: not {count} candidates after {_QUEUED_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def measure(self) -> None:
        """One handover, and whether it was one: the follower names the key that is the oldest in etcd."""
        leader, follower = self.leader, self.follower
        self.taken_ms.append(contender.handover_ns(leader, follower, self._signal) / 1e6)
        self._check(follower.read(), await self._keys())
        self._contenders.remove(leader)
        if self._signal is signal.SIGTERM:
            leader.wait_ended()
            leader.kill()
        else:
            self._contenders.append(leader)
            await self.queued()  # now, so that it does not disturb the next measurement

    def kill(self) -> None:
        """Ends all processes."""
        for each in self._contenders:
            each.kill()

    def _add(self) -> None:
        self._started += 1
        self._contenders.append(self._start(f"{self.name.replace(' ', '-')}-{self._started}"))

    async def _keys(self) -> Sequence[bytes]:
        return [kv.key for kv in (await self._client.list(self._prefix)).kvs]

    def _check(self, said: str, keys: Sequence[bytes]) -> None:
        if not keys or not said.startswith(keys[0].decode() + "\n"):
            raise BenchFailed(f"{self.name}: {said!r} was said while etcd has {keys!r}")


async def measure(cluster: EtcdCluster, runs: int, folder: Path, tell: Callable[[str], None]) -> Measured:
    """Runs so many rounds.

    Raises:
        BenchFailed: when a process did not lead, or somebody else did.
    """
    keys = Keyspace(_NAMESPACE)

    def ours(election: str) -> Callable[[str], Contender]:
        return lambda who: contender.ours(
            election,
            who,
            endpoints=cluster.endpoints,
            namespace=_NAMESPACE,
            log=folder / "election.log",
            ttl_s=_TTL_S,
        )

    def peers(id: str) -> Contender:
        return contender.etcdctl("/peer", id, endpoints=cluster.endpoints, log=folder / "etcdctl.log")

    async with EtcdClient(EtcdConfig(cluster.endpoints)) as client:
        lanes = (
            Lane("election", keys.campaign("leaving"), ours("leaving"), number=signal.SIGTERM, client=client),
            Lane("etcdctl elect", b"/peer/", peers, number=signal.SIGTERM, client=client),
            Lane("election stays", keys.campaign("staying"), ours("staying"), number=signal.SIGUSR1, client=client),
        )
        try:
            for lane in lanes:
                await lane.begin()
            for run in range(runs):
                if run % 20 == 0:
                    tell(f"handover: {run} of {runs}")
                await _settle(lanes)
                for turn in range(len(lanes)):
                    await lanes[(run + turn) % len(lanes)].measure()
                    await asyncio.sleep(_QUIET_S)
            await _settle(lanes)
            idle = await _cpu_of_followers(lanes)
        finally:
            for lane in lanes:
                lane.kill()
    leaving, peer, staying = (Samples(lane.name, lane.taken_ms) for lane in lanes)
    return Measured(
        "handover: from the signal to the line of the next leader, another process",
        (leaving, peer, staying),
        (Ratio("election / etcdctl elect", leaving, peer, (50, 99), GOAL),),
        idle,
    )


async def _settle(lanes: Sequence[Lane]) -> None:
    """Gives every lane a follower, and lets all of them wait for the same time."""
    for lane in lanes:
        lane.refill()
    for lane in lanes:
        await lane.queued()
    await asyncio.sleep(_SETTLED_S)


async def _cpu_of_followers(lanes: Sequence[Lane]) -> tuple[tuple[str, float], ...]:
    before_ns = [lane.follower.cpu_ns() for lane in lanes]
    await asyncio.sleep(_IDLE_S)
    used_ns = [lane.follower.cpu_ns() - before for lane, before in zip(lanes, before_ns, strict=True)]
    return tuple(
        (f"CPU of a follower that waits, {lane.name}: ms per s", used / 1e6 / _IDLE_S)
        for lane, used in list(zip(lanes, used_ns, strict=True))[:2]
    )
