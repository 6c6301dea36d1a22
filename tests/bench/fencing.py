"""What fencing costs: a fenced write beside a bare one through the same client, and a look at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from election import Store, Term, connect, fenced_txn
from election.dev.etcd import EtcdCluster
from election.etcd import txn
from tests.bench.samples import Measured, Ratio, Samples

_VALUE = b"v" * 100
_WARM_UP = 20
_CHECKS = 200_000


async def measure(cluster: EtcdCluster, runs: int, tell: Callable[[str], None]) -> Measured:
    """Writes so many times each way, by turns."""
    bare_ms: list[float] = []
    fenced_ms: list[float] = []
    checks_per_s: list[float] = []

    async with connect(cluster.endpoints, namespace="bench") as store:

        async def work(term: Term) -> None:
            tell(f"fencing: {runs} writes each way")
            for _ in range(_WARM_UP):
                await _bare(store)
                await _fenced(store, term)
            for run in range(runs):
                for write in (_bare, _fenced) if run % 2 else (_fenced, _bare):
                    began_ns = time.monotonic_ns()
                    await (_fenced(store, term) if write is _fenced else _bare(store))
                    (fenced_ms if write is _fenced else bare_ms).append((time.monotonic_ns() - began_ns) / 1e6)
            checks_per_s.append(_checks_per_s(term))

        await store.candidate("fencing", id="bench").lead(work, once=True)
    bare, fenced = Samples("client.put", bare_ms), Samples("fenced_txn", fenced_ms)
    return Measured(
        "fencing: one write of 100 bytes, by turns",
        (fenced, bare),
        (Ratio("fenced_txn / client.put", fenced, bare, (50,)),),
        (("term.check(): calls per s", checks_per_s[0]),),
    )


async def _bare(store: Store) -> None:
    await store.client.put(b"/bench/bare", _VALUE)


async def _fenced(store: Store, term: Term) -> None:
    await fenced_txn(store.client, term, [], [txn.put(b"/bench/fenced", _VALUE)])


def _checks_per_s(term: Term) -> float:
    began_ns = time.monotonic_ns()
    for _ in range(_CHECKS):
        term.check()
    return _CHECKS / (time.monotonic_ns() - began_ns) * 1e9
