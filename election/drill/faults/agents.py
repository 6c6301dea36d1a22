"""What strangers and operators do to agents, and when they come back at the worst moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from election.agent_control import ask_to_reap, drain, undrain
from election.drill.checker.writes import STRANGER
from election.drill.faults.fault import Fault, Lane, Nobody
from election.drill.faults.scene import Scene
from election.drill.slots import Role, Slot
from election.drill.vocabulary import Done
from election.errors import ElectionError, EtcdError
from election.etcd import txn


@asynccontextmanager
async def _evict(scene: Scene) -> AsyncGenerator[None]:
    slot = _alive(scene)
    scene.on(slot.name)
    await _delete_liveness(scene, slot.name)
    yield


@asynccontextmanager
async def _second(scene: Scene) -> AsyncGenerator[None]:
    """It waits until the id is free, or takes it; and is killed."""
    slot = _alive(scene)
    scene.on(slot.name)
    second = await scene.system.second(slot, takeover=scene.rng.random() < 0.5)
    try:
        yield
    finally:
        scene.system.kill(second)


@asynccontextmanager
async def _drain(scene: Scene) -> AsyncGenerator[None]:
    slot = _alive(scene)
    scene.on(slot.name)
    with suppress(ElectionError):
        await drain(scene.site.control, scene.keyspace, slot.name, by="drill")
    try:
        yield
    finally:
        with suppress(ElectionError):
            await undrain(scene.site.control, scene.keyspace, slot.name)


@asynccontextmanager
async def _kill_and_reap(scene: Scene) -> AsyncGenerator[None]:
    """An operator does not wait for the grace."""
    slot = _alive(scene)
    scene.on(slot.name)
    scene.system.kill(slot)
    try:
        await asyncio.sleep(scene.system.settings.ttl_s + 1)
        with suppress(ElectionError):
            await ask_to_reap(scene.site.control, scene.keyspace, slot.name, by="drill")
        yield
    finally:
        scene.system.start(slot)


@asynccontextmanager
async def _stranger(scene: Scene) -> AsyncGenerator[None]:
    """State of an agent that never lived; some of it under a key that none can have."""
    agent = f"s{scene.rng.randrange(5)}"
    scene.on(agent)
    key = scene.keyspace.state(agent, f"task-{scene.rng.randrange(3)}")
    key += b"/foreign" if scene.rng.random() < 0.2 else b""
    value = json.dumps({"by": STRANGER, "at_s": scene.site.control.clock.now_s()})
    with suppress(EtcdError):
        await scene.site.control.put(key, value.encode())
    yield


@asynccontextmanager
async def _ambush(scene: Scene) -> AsyncGenerator[None]:
    """An agent comes back while the collector stands still, past the grace.

    So the collector wakes up with a reap that is due, and has not heard of the return. Half of the agents have just
    vanished once more, and have a new grace.
    """
    system, grace_s = scene.system, scene.system.settings.grace_s
    slot, collecting = _alive(scene), system.leading(Role.COLLECTOR)
    if collecting is None or not collecting.can_be_hurt:
        raise Nobody("no collector leads that could be hurt")
    agent, collector = slot.process, collecting.process
    assert agent is not None
    assert collector is not None
    scene.on(slot.name)
    system.pause(slot)
    try:
        await _delete_liveness(scene, slot.name)
        await asyncio.sleep(grace_s / 2)  # the collector hears of it
        system.pause(collecting)
        system.resume(agent)
        await asyncio.sleep(grace_s)
        if scene.rng.random() < 0.5:
            system.pause(slot)
            await _delete_liveness(scene, slot.name)
        yield
    finally:
        system.resume(collector)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(grace_s / 4)
        system.resume(agent)


def _alive(scene: Scene) -> Slot:
    alive = scene.system.alive()
    slots = [slot for slot in scene.system.of(Role.AGENT) if slot.can_be_hurt and slot.name in alive]
    if not slots:
        raise Nobody("no agent lives that could be hurt")
    return scene.rng.choice(slots)


async def _delete_liveness(scene: Scene, agent: str) -> None:
    liveness = scene.keyspace.alive(agent)
    held = scene.system.observer.stored.get(liveness)
    if held is not None:
        scene.note(Done.EVICTED, agent, incarnation=held.created)
        with suppress(EtcdError):
            await scene.site.control.txn([txn.created_at(liveness, held.created)], [txn.delete(liveness)])


AGENT_FAULTS = (
    Fault("evict-agent", "a stranger deletes an agent's liveness key", Lane.FLEET, (0.2, 2.0), _evict),
    Fault("second-agent", "another process wants to be the same agent", Lane.FLEET, (1.0, 5.0), _second),
    Fault("drain-agent", "an operator drains an agent", Lane.FLEET, (0.2, 3.0), _drain),
    Fault("kill-and-reap-agent", "an operator asks for a dead agent's reap", Lane.FLEET, (0.2, 2.0), _kill_and_reap),
    Fault("stranger-state", "a stranger stores state of an agent that never lived", Lane.FLEET, (0.1, 0.5), _stranger),
    Fault("ambush", "an agent comes back while the collector stands still", Lane.FLEET, (0.2, 2.0), _ambush),
)
