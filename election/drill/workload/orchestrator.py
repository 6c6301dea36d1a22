"""An orchestrator on asyncio: it stands for an election, and writes to three registers while it leads."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import grpc
import grpc.aio

from election.drill.history import Journal
from election.drill.workload.beliefs import Beliefs
from election.drill.workload.options import LATE_S, PACE_S, Options, orchestrator_options
from election.drill.workload.registers import (
    ETCD,
    GRPC,
    METHOD,
    SQLITE,
    TIMEOUT_S,
    SqliteRegister,
    deposed,
    etcd_key,
    joined,
)
from election.errors import Deposed
from election.etcd import txn
from election.fencing.claim import Claim, PassedOn
from election.fencing.rpc_client import aio_client_fence
from election.fencing.txn import fenced_put, guard
from election.store import Store, connect
from election.term import Term


@dataclass
class Orchestrator:
    """What it does in its terms, and after them."""

    options: Options
    store: Store
    beliefs: Beliefs
    rng: random.Random
    late: asyncio.TaskGroup

    async def work(self, term: Term) -> None:
        """Writes to every register, again and again, until it is cancelled."""
        self.beliefs.began(term.token)
        self.late.create_task(self._afterwards(term))
        writes = {ETCD: partial(self._put, term), SQLITE: partial(self._insert, term), GRPC: partial(self._call, term)}
        try:
            while True:
                for register, write in writes.items():
                    with self.beliefs.writing(register, term.token) as row:
                        await write(row)
                    await asyncio.sleep(self.rng.uniform(*PACE_S))
        finally:
            self.beliefs.ended(term.token)

    async def _afterwards(self, term: Term) -> None:
        """Says how the term was lost, and writes once more to every register, as a process does that wakes too late."""
        self.beliefs.lost(await term.lost)
        await asyncio.sleep(self.rng.uniform(*LATE_S))
        claim = PassedOn(term.election, term.token)
        with self.beliefs.writing(ETCD, term.token, late=True) as row:
            answer = await self.store.client.txn([guard(term)], [txn.put(etcd_key(self.store.keyspace), row)])
            if not answer.succeeded:
                raise Deposed("etcd has seen the end of the term")
        with self.beliefs.writing(SQLITE, term.token, late=True) as row:
            await self._insert(claim, row)
        with self.beliefs.writing(GRPC, term.token, late=True) as row:
            await self._call(claim, row)

    async def _put(self, term: Term, row: bytes) -> None:
        await fenced_put(self.store.client, term, etcd_key(self.store.keyspace), row)

    async def _insert(self, claim: Claim, row: bytes) -> None:
        await joined(SqliteRegister(self.options.sqlite).write, claim, row)

    async def _call(self, claim: Claim, row: bytes) -> None:
        interceptors = aio_client_fence(claim)
        async with grpc.aio.insecure_channel(self.options.register, interceptors=interceptors) as channel:
            write: Any = channel.unary_unary(METHOD)
            try:
                await write(row, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                raise deposed(error) or error from None


async def _run(options: Options) -> None:
    rng = random.Random(options.process)
    async with connect(options.endpoints, namespace=options.namespace, user=options.user) as store:
        candidate = store.candidate(options.election, id=options.id, config=options.candidate)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, candidate.leave)
        beliefs = Beliefs(Journal(options.journal), options.process, candidate)
        beliefs.watch()
        async with asyncio.TaskGroup() as late:
            await candidate.lead(Orchestrator(options, store, beliefs, rng, late).work)


@click.command()
@orchestrator_options
def main(**options: Any) -> None:
    """Stands until SIGTERM, and then leaves."""
    asyncio.run(_run(Options(**options)))


if __name__ == "__main__":
    main()
