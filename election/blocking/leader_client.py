"""Who leads, kept in memory, without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from election.background import Background
from election.client import leader_client as asynchronous
from election.client.leader_client import HEARTBEAT_S
from election.config import TlsConfig
from election.reader import MAX_AGE_S, Answer, LeaderEvent
from election.records import Leader

_LEAVE_S = 1.0


class LeaderClient:
    """Follows one election inside `with`, in a thread of its own; see `election.LeaderClient`.

    Any number of threads may use it. `current` costs no more than a look at the clock, and can be asked at every step.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        election: str,
        *,
        tls: TlsConfig | None = None,
        token: str | Path | None = None,
        insecure: bool = False,
        max_age_s: float = MAX_AGE_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.election = election
        self._inner = asynchronous.LeaderClient(
            servers,
            election,
            tls=tls,
            token=token,
            insecure=insecure,
            max_age_s=max_age_s,
            heartbeat_s=heartbeat_s,
        )
        self._background: Background | None = None

    def __enter__(self) -> Self:
        self._background = Background()
        try:
            self._background.call(self._inner.__aenter__())
        except BaseException:
            self._background.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._background is not None and self._background.is_ours:
            self._background.call(self._leave())
            self._background.close()

    @property
    def current(self) -> Answer[Leader | None]:
        """Who leads, and how old that is, from memory; raises ViewStale. See `election.LeaderClient.current`."""
        return self._inner.current

    def watch(self) -> Iterator[LeaderEvent]:
        """Who leads now, and then every change; ends with the client. See `election.LeaderClient.watch`."""
        return self._open.iterate(self._inner.watch())

    def wait_for_leader(self, timeout_s: float | None = None) -> Answer[Leader]:
        """Waits for a proven leader; raises NoLeader. See `election.LeaderClient.wait_for_leader`."""
        return self._open.call(self._inner.wait_for_leader(timeout_s))

    async def _leave(self) -> None:
        await self._inner.__aexit__(None, None, None)
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        if waiting:  # threads that watch are to see its end
            await asyncio.wait(waiting, timeout=_LEAVE_S)

    @property
    def _open(self) -> Background:
        if self._background is None:
            raise RuntimeError("the client is not open: use it inside `with`")
        return self._background
