"""The other drill: half of many agents vanish at once, and nothing is reaped until somebody knows what that means.

The first time they come back; then an operator gives them up; then the hold ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from election import dial
from election.breaker import Breaker, BreakerReason
from election.drill.checker.replay import object_of
from election.drill.history import Settings
from election.drill.runner import Runner
from election.drill.site import open_site
from election.drill.slots import Role, Slot
from election.drill.system import DrillFailed, System, running
from election.drill.workload.registers import SqliteRegister

PROCESSES = 4
"""Half of them are killed."""
_LONGER_S = 2.0
"""For how long after the grace the breaker must still have held everything back."""
_SOON_S = 5.0
_START_S = 30.0
_PACE = 5.0


async def drill(folder: Path, *, agents: int, hold_s: float, tell: Callable[[str], None]) -> None:
    """Runs the scenario, with its history in the folder.

    Raises:
        DrillFailed: something else was seen.
    """
    settings = Settings("drill", seed=0, ttl_s=3, grace_s=3, reconcile_s=5)
    names = [f"w{number}" for number in range(1, agents + 1)]
    crowds = {f"p{number}": tuple(names[number::PROCESSES]) for number in range(PROCESSES)}
    async with running(
        open_site(folder), settings, collect_options=("--breaker-hold", f"{hold_s:g}"), servers=1
    ) as system:
        SqliteRegister(system.starter.sqlite).create()
        SqliteRegister(system.starter.service_sqlite).create()
        await _Scenario(system, crowds, hold_s, tell).run()
        await Runner(system, {}, tell).end()


@dataclass
class _Scenario:
    system: System
    crowds: dict[str, tuple[str, ...]]
    hold_s: float
    tell: Callable[[str], None]

    async def run(self) -> None:
        system = self.system
        for role, count in ((Role.COLLECTOR, 2), (Role.SERVER, 1)):
            for number in range(count):
                system.start(await system.add(role, number + 1))
        for crowd in self.crowds:
            system.start(await self._crowd(crowd))
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

    async def _crowd(self, name: str) -> Slot:
        """A process that is many agents, none of which is busy."""
        endpoints, ids, starter = await self.system.site.endpoints_for(name), self.crowds[name], self.system.starter
        slot = Slot(name, Role.AGENT, lambda process: starter.agent(process, ids, endpoints, "--pace", f"{_PACE}"))
        self.system.slots[name] = slot
        return slot

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
            self.system.kill(self.system.slots[crowd])
        settings = self.system.settings
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
        over_grpc = self._ask("show", "--server", self._server)
        for source, shown in zip(("etcd", "gRPC"), await asyncio.gather(self._ask("show"), over_grpc), strict=True):
            holds = shown["open"] is True and shown["reason"] == reason
            self._see(holds, f"`election breaker show` over {source} tells why")
        async with dial(self._server) as client:
            answer = (await client.breaker()).value
        self._see(answer.open and answer.reason is BreakerReason.VANISHED, "GetBreaker tells why")
        leading = self.system.leading(Role.COLLECTOR)
        assert leading is not None
        assert leading.process is not None
        lines = map(json.loads, self.system.starter.output(leading.process.name).read_text().splitlines())
        told = [line for line in lines if "breaker" in line["event"]]
        self._see(bool(told) and told[-1].get("reason") == reason, "the collector's events tell why")

    async def _come_back(self) -> None:
        for crowd in self._half:
            self.system.start(self.system.slots[crowd])
        await self._all_live()

    async def _all_live(self) -> None:
        everybody = {agent for agents in self.crowds.values() for agent in agents}
        await self._until(lambda: self.system.alive() == everybody, _START_S, "all agents live")

    async def _closes(self, reason: BreakerReason, within_s: float) -> None:
        await self._until(lambda: not self._breaker().open, within_s, "the breaker is closed")
        self._see(self._breaker().reason is reason, f"the breaker closed: {reason.value}")

    async def _collected(self, why: str) -> None:
        """Exactly the half that has vanished is reaped, and soon."""
        bound_s = self.system.settings.bound_s
        await self._until(lambda: not self.system.stale(), bound_s, "all of them are collected")
        everybody = {agent for agents in self.crowds.values() for agent in agents}
        kept = self._reaped() == self._gone and self.system.alive() == everybody - self._gone
        self._see(kept, f"{why}, and the {len(self._gone)} that had vanished were reaped, and nobody else")

    @property
    def _server(self) -> str:
        return f"127.0.0.1:{self.system.ports['s1']}"

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
        shared = (
            "--endpoints",
            ",".join(self.system.site.cluster.endpoints),
            "--namespace",
            self.system.keyspace.namespace,
        )
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
        self.tell(what)
