"""An orchestrator without asyncio; it does what the other one does, in the main thread."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import grpc

from election import blocking
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
)
from election.fencing.claim import Claim, PassedOn
from election.fencing.rpc_client import client_fence


@dataclass
class Orchestrator:
    """What it does in its terms, and after them."""

    options: Options
    store: blocking.Store
    beliefs: Beliefs
    rng: random.Random

    def work(self, term: blocking.Term) -> None:
        """Writes to every register for as long as it leads, by its clock: nothing else tells this thread to stop."""
        self.beliefs.began(term.token)
        threading.Thread(target=self._afterwards, args=(term,), daemon=True).start()
        writes: dict[str, Callable[[bytes], Any]] = {
            ETCD: partial(self.store.fenced_put, term, etcd_key(self.store.keyspace)),
            SQLITE: partial(self._insert, term),
            GRPC: partial(self._call, term),
        }
        while term.is_leader:
            for register, write in writes.items():
                with self.beliefs.writing(register, term.token) as row:
                    write(row)
                time.sleep(self.rng.uniform(*PACE_S))
        self.beliefs.ended(term.token)

    def _afterwards(self, term: blocking.Term) -> None:
        """Says how the term was lost, and writes once more, as a process does that wakes too late."""
        loss = term.wait_lost()
        if loss is None:
            return
        self.beliefs.lost(loss)
        time.sleep(self.rng.uniform(*LATE_S))
        claim = PassedOn(term.election, term.token)
        for register, write in ((SQLITE, self._insert), (GRPC, self._call)):
            with self.beliefs.writing(register, term.token, late=True) as row:
                write(claim, row)

    def _insert(self, claim: Claim, row: bytes) -> None:
        SqliteRegister(self.options.sqlite).write(claim, row)

    def _call(self, claim: Claim, row: bytes) -> None:
        with grpc.insecure_channel(self.options.register) as channel:
            write: Any = grpc.intercept_channel(channel, *client_fence(claim)).unary_unary(METHOD)
            try:
                write(row, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise deposed(error) or error from None


@click.command()
@orchestrator_options
def main(**given: Any) -> None:
    """Stands until SIGTERM, and then leaves."""
    options = Options(**given)
    with blocking.connect(options.endpoints, namespace=options.namespace, user=options.user) as store:
        candidate = store.candidate(options.election, id=options.id, config=options.candidate)
        signal.signal(signal.SIGTERM, lambda *_: candidate.leave())
        beliefs = Beliefs(Journal(options.journal), options.process, candidate)
        beliefs.watch()
        candidate.run(Orchestrator(options, store, beliefs, random.Random(options.process)).work)


if __name__ == "__main__":
    main()
