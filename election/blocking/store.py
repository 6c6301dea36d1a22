"""A connection to etcd, without asyncio."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from election import candidate as asynchronous
from election import store as stores
from election.background import Background
from election.blocking.candidate import Candidate
from election.blocking.term import Term
from election.config import DEFAULT_ENDPOINT, DEFAULT_NAMESPACE, CandidateConfig, TlsConfig
from election.fencing import txn as fencing
from election.pb.etcd import rpc_pb2 as rpc


class Store:
    """A connection to etcd, used for one namespace; made by `connect`.

    It opens itself at the first use and is closed by `close`, at the end of a `with` block, or with the program. Any
    number of threads may use it.
    """

    def __init__(self, store: stores.Store) -> None:
        self.keyspace = store.keyspace
        self.config = store.config
        self._store = store
        self._lock = threading.Lock()
        self._background: Background | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def background(self) -> Background:
        """The thread in which everything happens, and the open store."""
        with self._lock:
            if self._background is None:
                self._background = Background()
                self._background.call(self._store.__aenter__())
            return self._background

    def close(self) -> None:
        """Ends the connection. End its candidates before."""
        with self._lock:
            background = self._background
            if background is not None and background.is_ours:
                background.call(self._store.__aexit__(None, None, None))
                background.close()

    def candidate(
        self,
        election: str,
        *,
        id: str | None = None,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        config: CandidateConfig | None = None,
    ) -> Candidate:
        """A candidate for an election; see `election.Store.candidate`."""

        async def make() -> asynchronous.Candidate:
            return self._store.candidate(
                election, id=id, address=address, labels=labels, priority=priority, config=config
            )

        return Candidate(self.background, self.background.call(make()))

    def fenced_txn(
        self,
        term: Term,
        compare: Sequence[rpc.Compare],
        success: Sequence[rpc.RequestOp],
        failure: Sequence[rpc.RequestOp] = (),
    ) -> rpc.TxnResponse:
        """Runs a transaction while the term lasts; see `election.fenced_txn`."""
        return self.background.call(fencing.fenced_txn(self._store.client, term.inner, compare, success, failure))

    def fenced_put(self, term: Term, key: bytes, value: bytes, *, lease: int = 0) -> int:
        """Writes one key while the term lasts; see `election.fenced_put`."""
        return self.background.call(fencing.fenced_put(self._store.client, term.inner, key, value, lease=lease))

    def fenced_delete(self, term: Term, key: bytes) -> bool:
        """Deletes one key while the term lasts; see `election.fenced_delete`."""
        return self.background.call(fencing.fenced_delete(self._store.client, term.inner, key))


def connect(
    endpoints: str | Iterable[str] = DEFAULT_ENDPOINT,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    tls: TlsConfig | None = None,
    user: str | None = None,
    state_dir: Path | None = None,
) -> Store:
    """A store; nothing is sent before its first use. See `election.connect`."""
    return Store(stores.connect(endpoints, namespace=namespace, tls=tls, user=user, state_dir=state_dir))
