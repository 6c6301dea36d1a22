"""Faults of the processes that use etcd: they are killed, stand still, are told to end, and have wrong clocks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from election.drill.faults.fault import Fault, Lane, Nobody
from election.drill.faults.scene import Scene
from election.drill.processes import Process, faketime
from election.drill.slots import ORCHESTRATORS, Role, Slot
from election.drill.system import System

Choose: TypeAlias = Callable[[Scene], Slot]
Act: TypeAlias = Callable[[Scene], AbstractAsyncContextManager[None]]
_LEAVE_S = 10.0
_JUMPS_S = (-3600, -30, 30, 3600, 86_400)


def _leading(*roles: Role) -> Choose:
    def choose(scene: Scene) -> Slot:
        slot = scene.system.leading(*roles)
        if slot is None or not slot.can_be_hurt:
            raise Nobody(f"no {roles[0]} leads that could be hurt")
        return slot

    return choose


def _waiting(scene: Scene) -> Slot:
    leading = scene.system.leading(*ORCHESTRATORS)
    return _drawn(scene, [slot for slot in scene.system.of(*ORCHESTRATORS) if slot is not leading])


def _any(*roles: Role) -> Choose:
    return lambda scene: _drawn(scene, scene.system.of(*roles))


def _drawn(scene: Scene, among: list[Slot]) -> Slot:
    able = [slot for slot in among if slot.can_be_hurt]
    if not able:
        raise Nobody("none of them runs that could be hurt")
    return scene.rng.choice(able)


def _done_to(
    choose: Choose, do: Callable[[System, Slot], None], undo: Callable[[System, Slot, Process], Awaitable[None]]
) -> Act:
    @asynccontextmanager
    async def act(scene: Scene) -> AsyncGenerator[None]:
        slot = choose(scene)
        process = slot.process
        assert process is not None
        scene.on(slot.name)
        do(scene.system, slot)
        try:
            yield
        finally:
            await undo(scene.system, slot, process)

    return act


def _kill(choose: Choose) -> Act:
    return _done_to(choose, System.kill, _start_again)


def _leave(choose: Choose) -> Act:
    return _done_to(choose, System.leave, _start_again)


def _pause(choose: Choose) -> Act:
    return _done_to(choose, System.pause, _resume)


def _kill_paused(choose: Choose) -> Act:
    """It never learns that its term is over."""
    return _done_to(choose, System.pause, _replace)


async def _start_again(system: System, slot: Slot, process: Process) -> None:
    if not await process.ended(_LEAVE_S):  # etcd may be away, and it waits for an answer
        system.kill(slot)
    system.start(slot)


async def _replace(system: System, slot: Slot, process: Process) -> None:
    system.kill(slot)
    system.start(slot)


async def _resume(system: System, slot: Slot, process: Process) -> None:
    system.resume(process)


@asynccontextmanager
async def _clock_jump(scene: Scene) -> AsyncGenerator[None]:
    slot = _any(Role.ORCHESTRATOR)(scene)
    file = scene.system.starter.clock_file(slot.name)
    scene.on(slot.name)
    file.write_text(f"{scene.rng.choice(_JUMPS_S):+d}\n")
    try:
        yield
    finally:
        file.write_text("+0\n")


def _of_orchestrators(name: str, about: str, hold_s: tuple[float, float], act: Act) -> Fault[Scene]:
    return Fault(name, about, Lane.ORCHESTRATORS, hold_s, act)


def _of_fleet(name: str, about: str, hold_s: tuple[float, float], act: Act) -> Fault[Scene]:
    return Fault(name, about, Lane.FLEET, hold_s, act)


_SHORT, _LONG = (0.2, 2.0), (1.0, 8.0)
_LEADER, _COLLECTOR = _leading(*ORCHESTRATORS), _leading(Role.COLLECTOR)
_AGENT, _SERVER, _REGISTER = _any(Role.AGENT), _any(Role.SERVER), _any(Role.REGISTER)

PROCESS_FAULTS = (
    _of_orchestrators("kill-leader", "SIGKILL of the orchestrator that leads", _SHORT, _kill(_LEADER)),
    _of_orchestrators("pause-leader", "SIGSTOP of the orchestrator that leads", _LONG, _pause(_LEADER)),
    _of_orchestrators("kill-paused-leader", "SIGKILL of a leader that stands still", (1.0, 5.0), _kill_paused(_LEADER)),
    _of_orchestrators("stop-leader", "SIGTERM of the orchestrator that leads", _SHORT, _leave(_LEADER)),
    _of_orchestrators("kill-candidate", "SIGKILL of an orchestrator that waits", _SHORT, _kill(_waiting)),
    _of_orchestrators("pause-candidate", "SIGSTOP of an orchestrator that waits", _LONG, _pause(_waiting)),
    Fault(
        "clock-jump",
        "the wall clock of an orchestrator jumps",
        Lane.ORCHESTRATORS,
        (1.0, 4.0),
        _clock_jump,
        lambda: "" if faketime() else "libfaketime is not installed",
    ),
    _of_fleet("kill-agent", "SIGKILL of an agent", (0.2, 9.0), _kill(_AGENT)),
    _of_fleet("pause-agent", "SIGSTOP of an agent", _LONG, _pause(_AGENT)),
    _of_fleet("stop-agent", "SIGTERM of an agent", _SHORT, _leave(_AGENT)),
    _of_fleet("kill-collector", "SIGKILL of the collector that leads", _SHORT, _kill(_COLLECTOR)),
    _of_fleet("pause-collector", "SIGSTOP of the collector that leads", _LONG, _pause(_COLLECTOR)),
    _of_fleet("stop-collector", "SIGTERM of the collector that leads", _SHORT, _leave(_COLLECTOR)),
    _of_fleet("kill-server", "SIGKILL of a server of the gRPC API", _SHORT, _kill(_SERVER)),
    _of_fleet("pause-server", "SIGSTOP of a server of the gRPC API", _LONG, _pause(_SERVER)),
    _of_fleet("kill-register", "SIGKILL of the service that is written to", _SHORT, _kill(_REGISTER)),
    _of_fleet("pause-register", "SIGSTOP of the service that is written to", _SHORT, _pause(_REGISTER)),
)
