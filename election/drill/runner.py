"""Runs a scenario: populates a system, hurts it, lets it get well, and brings it to its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from election.agent_control import REQUEST_TTL_S
from election.config import EtcdConfig
from election.drill.attached import attach
from election.drill.checker.replay import object_of
from election.drill.faults.fault import Fault, Nobody
from election.drill.faults.scene import Scene, Tally
from election.drill.history import LATER, REVISIONS, Revision, Settings, lines
from election.drill.scenario import Scenario, Step
from election.drill.site import open_site
from election.drill.slots import ORCHESTRATORS, Role, Slot
from election.drill.system import DrillFailed, System, running
from election.drill.vocabulary import Done
from election.drill.workload.registers import ETCD, GRPC, SQLITE, SqliteRegister, etcd_key, fields_of
from election.keys import AliveKey, CandidateKey, DrainingKey, ReapRequestKey, StateKey

SCENARIO = "scenario.toml"
COLLECT_OPTIONS = ("--breaker-agents", "3", "--breaker-share", "0.9", "--breaker-hold", "10")
"""Of random deaths the breaker is to hear only when nearly everybody vanishes, as when etcd was away for long."""
_HEALTHY_S = 90.0
"""How long it may take until all is well; when that is, is no promise of ours, so it is generous."""
_LEAVE_S = 20.0
_AGAIN_S, _TRIES = 0.25, 12
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """An etcd that runs already. With `election`, the candidates of that are hurt, and none of our own stand."""

    etcd: EtcdConfig
    namespace: str
    election: str = ""

    def settings(self, of: Settings) -> Settings:
        """Those of a drill there; leases may be longer than those of a drill's own candidates."""
        made = replace(of, namespace=self.namespace, whole=False)
        return (
            replace(made, election=self.election, hurts=self.election, slack_s=_PATIENCE_S) if self.election else made
        )


@dataclass
class Runner:
    """One drill on one system."""

    system: System
    faults: Mapping[str, Fault[Any]]
    tell: Callable[[str], None]
    tally: Tally = field(default_factory=Tally)

    async def populate(self, scenario: Scenario) -> None:
        """Starts all processes; returns when somebody leads, somebody collects, and all agents live."""
        system = self.system
        SqliteRegister(system.starter.sqlite).create()
        counts = {
            Role.REGISTER: 1,
            Role.SERVER: scenario.servers,
            Role.COLLECTOR: scenario.collectors,
            Role.ORCHESTRATOR: scenario.orchestrators,
            Role.BLOCKING: scenario.blocking,
            Role.AGENT: scenario.agents,
            Role.READER: 1,
        }
        for role, count in counts.items():
            for number in range(1, count + 1):
                system.start(await system.add(role, number))
        agents = {slot.name for slot in system.of(Role.AGENT)}
        await system.until(lambda: system.alive() >= agents, _HEALTHY_S, "not all agents live")
        await self._well()
        for slot in system.of(Role.AGENT)[:1]:
            await self._bury(slot)

    async def _bury(self, slot: Slot) -> None:
        """An agent dies and is reaped while all is well, so that no drill is without a reap."""
        system, settings = self.system, self.system.settings
        system.kill(slot)
        await system.until(lambda: slot.name not in system.alive(), settings.ttl_s + _HEALTHY_S, "an agent lives on")
        await system.until(lambda: slot.name not in system.stale(), settings.bound_s + _HEALTHY_S, "no agent is reaped")
        system.start(slot)
        await system.until(lambda: slot.name in system.alive(), _HEALTHY_S, "no agent comes back")

    async def phase(self, steps: Sequence[Step]) -> None:
        """Does the faults of a phase, those of one lane after the other, and then lets the system get well."""
        began_s = asyncio.get_running_loop().time()
        lanes: dict[str, list[Step]] = {}
        for step in steps:
            lanes.setdefault(self.faults[step.fault].lane, []).append(step)
        async with asyncio.TaskGroup() as group:
            for each in lanes.values():
                group.create_task(self._lane(each, began_s))
        await self._settle()

    async def end(self) -> None:
        """All processes leave; notes what the registers hold, and what is left that should not be."""
        system = self.system
        await self._leave(system.of(Role.AGENT))
        await asyncio.sleep(system.settings.ttl_s)  # for the leases of those that were killed
        bound_s = system.settings.bound_s + _HEALTHY_S
        await system.until(lambda: not system.stale(), bound_s, "not everything is collected")
        await system.until(
            lambda: not system.requests(), REQUEST_TTL_S + _HEALTHY_S, "a request to reap is still there"
        )
        await self._leave(system.of(*ORCHESTRATORS, Role.READER))
        await self._leave(system.of(Role.SERVER, Role.REGISTER, Role.COLLECTOR))
        if system.settings.hurts:
            system.note(Done.LEFT_OVER, texts=[])  # whatever is there is of those that run on
            return
        await asyncio.sleep(max(system.settings.ttl_s, system.settings.candidate_ttl_s) + 1)
        await self._note_leases()
        self._note_registers()
        gone = AliveKey | StateKey | DrainingKey | ReapRequestKey | CandidateKey
        left = [key.decode() for key in system.observer.stored if isinstance(system.keyspace.parse(key), gone)]
        system.note(Done.LEFT_OVER, texts=left)

    async def _lane(self, steps: Sequence[Step], began_s: float) -> None:
        for step in steps:
            await asyncio.sleep(began_s + step.at_s - asyncio.get_running_loop().time())
            for _ in range(_TRIES):
                try:
                    await self._do(step)
                    break
                except Nobody as nobody:
                    why = str(nobody)
                    await asyncio.sleep(_AGAIN_S)
            else:
                self.system.note(Done.SKIPPED, fault=step.fault, why=why)

    async def _do(self, step: Step) -> None:
        fault = self.faults[step.fault]
        scene = Scene(self.system, fault, random.Random(step.draw), self.tally)
        async with fault.act(scene):
            scene.harmed()
            await asyncio.sleep(step.hold_s)
            scene.healing()
        scene.healed()

    async def _settle(self) -> None:
        """Waits until somebody leads and writes, and nothing is stale; what takes too long, the checker tells."""
        system, settings = self.system, self.system.settings
        await system.site.cluster.wait_healthy()
        system.note(Done.ALL_HEALED)
        register = etcd_key(system.keyspace)
        before = system.observer.stored.get(register)
        bound_s = max(settings.takeover_bound_s, settings.ttl_s + settings.bound_s + settings.reconcile_s) + 1
        try:
            async with asyncio.timeout(bound_s):
                while not system.is_led or (
                    system.of(*ORCHESTRATORS) and system.observer.stored.get(register) == before
                ):
                    await asyncio.sleep(0.1)
                await asyncio.sleep(settings.ttl_s + 1)  # for the leases of those that were killed
                while system.stale():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        await self._well()
        system.note(Done.SETTLED)

    async def _well(self) -> None:
        system = self.system
        if system.of(Role.COLLECTOR):
            await system.until(self._collects, _HEALTHY_S, "no collector leads, or the breaker is open")
        await system.until(lambda: system.is_led, _HEALTHY_S, "nobody leads")

    def _collects(self) -> bool:
        leading = self.system.leading(Role.COLLECTOR)
        breaker = self.system.observer.stored.get(self.system.keyspace.breaker)
        is_open = breaker is not None and object_of(breaker.value)["open"]
        return leading is not None and leading.can_be_hurt and not is_open

    async def _leave(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self.system.leave(slot)
        for slot in slots:
            if slot.process is not None and not await slot.process.ended(_LEAVE_S):
                raise DrillFailed(f"{slot.process.name} has not ended {_LEAVE_S:g} s after SIGTERM")

    async def _note_leases(self) -> None:
        client = self.system.site.control
        answer = await client.leases()
        await self.system.observer.reach(answer.header.revision)
        keys = {}
        for each in answer.leases:
            found = await client.lease_time_to_live(each.ID, keys=True)
            is_ours = self.system.settings.whole or any(key.startswith(self.system.keyspace.root) for key in found.keys)
            if found.TTL >= 0 and is_ours:
                keys[f"{each.ID:x}"] = [key.decode("latin-1") for key in found.keys]
        self.system.note(Done.LEASES, leases=keys)

    def _note_registers(self) -> None:
        folder, starter = self.system.site.folder, self.system.starter
        register = etcd_key(self.system.keyspace)
        in_etcd = [
            fields_of(change.after.value)
            for skipped, file in ((0, folder / REVISIONS), (1, folder / LATER))
            for line in list(lines(file))[skipped:]
            for change in Revision.decode(line).changes
            if change.key == register and change.after is not None
        ]
        rows = {
            ETCD: in_etcd,
            SQLITE: SqliteRegister(starter.sqlite).rows(),
            GRPC: SqliteRegister(starter.service_sqlite).rows(),
        }
        for name, content in rows.items():
            self.system.note(Done.CONTENT, name, rows=content)


async def run(
    folder: Path,
    scenario: Scenario,
    faults: Mapping[str, Fault[Any]],
    tell: Callable[[str], None],
    *,
    target: Target | None = None,
) -> None:
    """Runs the scenario, with its history in the folder, which is there and empty.

    Raises:
        DrillFailed, HistoryLost: it could not go on, and nothing is proved.
        ElectionError: etcd does not start, or does not come back.
    """
    scenario.write(folder / SCENARIO)
    settings = Settings("drill", scenario.seed, ttl_s=3, grace_s=2, reconcile_s=5, members=scenario.members)
    if target is None:
        made = open_site(folder, members=scenario.members, auth=scenario.auth)
    else:
        made = attach(folder, target.etcd)
        settings = target.settings(settings)
    async with running(made, settings, servers=scenario.servers, collect_options=COLLECT_OPTIONS) as system:
        runner = Runner(system, faults, tell)
        await runner.populate(scenario)
        tell(f"etcd {system.settings.etcd}, {len(system.slots)} processes; {len(scenario.faults)} faults to come")
        for number, phase in enumerate(scenario.phases, 1):
            await runner.phase(phase)
            tell(f"phase {number} of {len(scenario.phases)}: {runner.tally.injected} faults so far")
        await runner.end()
