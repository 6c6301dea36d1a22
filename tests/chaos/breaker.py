"""The other drill: half of many agents vanish at once, and nothing is reaped until somebody knows what that means.

The first time they come back; then an operator gives them up; then the hold ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from election import dial
from election.breaker import Breaker, BreakerReason
from election.dev.ports import free_ports
from election.drill.checker.replay import object_of
from election.drill.figures import Report
from election.drill.history import Settings
from election.drill.system import DrillFailed, System, running

PROCESSES = 4
"""Half of them are killed."""
_LONGER_S = 2.0
"""For how long after the grace the breaker must still have held everything back."""
_SOON_S = 5.0
_START_S = 30.0


async def drill(folder: Path, settings: Settings, *, agents: int, hold_s: float, tell: Callable[[str], None]) -> Report:
    """Runs the scenario, with its history in the folder, and judges it; the report has what was seen, in order.

    Raises:
        DrillFailed: something else was seen.
    """
    names = [f"w{number}" for number in range(1, agents + 1)]
    crowds = {f"p{number}": tuple(names[number::PROCESSES]) for number in range(PROCESSES)}
    began_s = time.monotonic()
    async with running(folder, settings, ("--breaker-hold", f"{hold_s:g}")) as system:
        scenario = _Scenario(system, crowds, hold_s, tell)
        await scenario.run()
        await system.end()
        version = system.cluster.version
    return Report.of(folder, seen=scenario.seen, etcd=version, took_s=time.monotonic() - began_s)


@dataclass
class _Scenario:
    system: System
    crowds: dict[str, tuple[str, ...]]
    hold_s: float
    tell: Callable[[str], None]
    seen: list[str] = field(default_factory=list)
    port: int = field(default_factory=lambda: free_ports(1, "127.0.0.1")[0])

    async def run(self) -> None:
        system = self.system
        for _ in range(2):
            system.start_collector()
        system.start_server(self.port)
        for crowd in self.crowds:
            system.start_crowd(crowd, self.crowds[crowd])
        await self._all_live()

        await self._vanish(self._told())
        await self._come_back()
        await self._closes(BreakerReason.RECOVERED, _SOON_S)
        self._see(not self._reaped(), "they came back, it closed by itself, and nobody was reaped")

        await self._vanish()
        await self._ask("close")
        await self._closes(BreakerReason.OPERATOR, _SOON_S)
        await self._collected("an operator closed it")

        await self._come_back()
        await self._vanish()
        await self._closes(BreakerReason.HOLD_ENDED, self.hold_s + _SOON_S)
        await self._collected("the hold ended")
        await self._come_back()

    # --- what is done, and what must come of it --------------------------------------------------------------------

    @property
    def _half(self) -> list[str]:
        return list(self.crowds)[: len(self.crowds) // 2]

    @property
    def _gone(self) -> set[str]:
        return {agent for crowd in self._half for agent in self.crowds[crowd]}

    async def _vanish(self, *meanwhile: Awaitable[None]) -> None:
        """Kills half of the processes: the breaker opens, and nothing is reaped, whatever is done meanwhile."""
        before = self._reaped()
        for crowd in self._half:
            self.system.kill_crowd(crowd, self.crowds[crowd])
        settings = self.system.starter.settings
        everybody = {agent for agents in self.crowds.values() for agent in agents}
        await self._until(lambda: self.system.alive() == everybody - self._gone, settings.ttl_s + _SOON_S, "are gone")
        await self._until(lambda: self._breaker().open, _SOON_S, "the breaker is open")
        missing = len(self._gone)
        self._see(
            (self._breaker().reason, self._breaker().known) == (BreakerReason.VANISHED, len(everybody)),
            f"{missing} of {len(everybody)} vanished, and the breaker opened",
        )
        await asyncio.gather(asyncio.sleep(settings.grace_s + _LONGER_S), *meanwhile)
        self._see(self._reaped() == before, "and nothing was reaped, for longer than the grace")

    async def _told(self) -> None:
        """The same is told by the command, over etcd and over gRPC, by the API, and in the collector's events."""
        reason = BreakerReason.VANISHED.value
        over_grpc = self._ask("show", "--server", f"127.0.0.1:{self.port}")
        for source, shown in zip(("etcd", "gRPC"), await asyncio.gather(self._ask("show"), over_grpc), strict=True):
            holds = shown["open"] is True and shown["reason"] == reason
            self._see(holds, f"`election breaker show` over {source} tells why")
        async with dial(f"127.0.0.1:{self.port}") as client:
            answer = (await client.breaker()).value
        self._see(answer.open and answer.reason is BreakerReason.VANISHED, "GetBreaker tells why")
        leading = self.system.leading()
        lines = map(json.loads, self.system.starter.output(leading or "").read_text().splitlines())
        told = [line for line in lines if "breaker" in line["event"]]
        self._see(bool(told) and told[-1].get("reason") == reason, "the collector's events tell why")

    async def _come_back(self) -> None:
        for crowd in self._half:
            self.system.start_crowd(crowd, self.crowds[crowd])
        await self._all_live()

    async def _all_live(self) -> None:
        everybody = {agent for agents in self.crowds.values() for agent in agents}
        await self._until(lambda: self.system.alive() == everybody, _START_S, "all agents live")

    async def _closes(self, reason: BreakerReason, within_s: float) -> None:
        await self._until(lambda: not self._breaker().open, within_s, "the breaker is closed")
        self._see(self._breaker().reason is reason, f"the breaker closed: {reason.value}")

    async def _collected(self, why: str) -> None:
        """Exactly the half that has vanished is reaped, and soon."""
        bound_s = self.system.starter.settings.bound_s
        await self._until(lambda: not self.system.stale(), bound_s, "all of them are collected")
        everybody = {agent for agents in self.crowds.values() for agent in agents}
        kept = self._reaped() == self._gone and self.system.alive() == everybody - self._gone
        self._see(kept, f"{why}, and the {len(self._gone)} that had vanished were reaped, and nobody else")

    # --- what is seen ------------------------------------------------------------------------------------------------

    def _breaker(self) -> Breaker:
        stored = self.system.observer.stored.get(self.system.keyspace.breaker)
        fields = object_of(stored.value) if stored else {}
        reason = fields.get("reason")
        return Breaker(bool(fields.get("open")), reason and BreakerReason(reason), known=fields.get("known", 0))

    def _reaped(self) -> set[str]:
        prefix = self.system.keyspace.reaped_prefix
        keys = (key for key in self.system.observer.stored if key.startswith(prefix))
        return {key[len(prefix) :].split(b"/")[0].decode() for key in keys}

    async def _ask(self, *words: str) -> dict[str, Any]:
        """Runs `election breaker ...` and returns its document."""
        shared = ("--endpoints", ",".join(self.system.starter.endpoints), "--namespace", self.system.keyspace.namespace)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "election.cli", *shared, "-o", "json", "breaker", *words),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise DrillFailed(f"election breaker {' '.join(words)} exits with {process.returncode}")
        return dict(json.loads(out))

    async def _until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> None:
        await self.system.until(holds, timeout_s, f"it is not so that {what}")

    def _see(self, holds: bool, what: str) -> None:
        if not holds:
            raise DrillFailed(f"it is not so that {what}: {self._breaker()}, reaped {sorted(self._reaped())}")
        self.seen.append(what)
        self.tell(what)
