"""The demo: an embedded etcd, orchestrators, agents and `serve`, as processes; and what happens to them, as events."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from election.breaker import Breaker
from election.clock import BootClock
from election.config import DEFAULT_ENDPOINT
from election.dev.etcd import EtcdCluster
from election.dev.member import Member, PortTaken
from election.dev.ports import can_be_bound, free_ports
from election.dev.process import Process, Tell
from election.errors import ConfigError, EtcdError
from election.published import Published
from election.reader import AgentEvent, AgentEventKind, LeaderEvent
from election.store import connect
from election.views import View

ELECTION = "demo"
HOST = "127.0.0.1"
_STOP_S = 5.0
_LOOK_S = 0.25
_CLIENT_PORT = int(DEFAULT_ENDPOINT.rpartition(":")[2])
_GRPC_PORT = 50051


@dataclass(frozen=True, slots=True)
class DevConfig:
    """What `election dev` starts. Ports that are None are the usual ones when these are free, or others."""

    data_dir: Path
    members: int = 3
    orchestrators: int = 3
    agents: int = 5
    client_port: int | None = None
    grpc_port: int | None = None
    ttl_s: int = 5
    grace_s: float = 5.0
    respawn_s: float = 30.0


class Fleet:
    """All processes of one `election dev`; made by `start_fleet`."""

    def __init__(self, config: DevConfig, cluster: EtcdCluster, grpc_port: int, view: View) -> None:
        self.config = config
        self.cluster = cluster
        self.grpc_address = f"{HOST}:{grpc_port}"
        self.view = view
        self.breaker = Breaker()
        self.clock = BootClock()
        self._events: Published[dict[str, Any] | None] = Published(None)
        environment = {"ELECTION_ENDPOINTS": self.endpoints, "ELECTION_NAMESPACE": "default"}
        self.serve = self._process(
            "serve",
            ("election.cli", "serve", f"--grpc-port={grpc_port}", f"--grace={config.grace_s}", "-ojson"),
            environment,
        )
        ttl = str(config.ttl_s)
        self.orchestrators = [
            self._process(name, ("election.dev.orchestrator", ELECTION, name, ttl), environment)
            for name in (f"orchestrator-{number}" for number in range(1, config.orchestrators + 1))
        ]
        self.agents = [
            self._process(name, ("election.dev.agent", name, ttl), environment)
            for name in (f"agent-{number}" for number in range(1, config.agents + 1))
        ]

    @property
    def endpoints(self) -> str:
        """The etcd endpoints, as `--endpoints` takes them."""
        return ",".join(self.cluster.endpoints)

    @property
    def question(self) -> str:
        """A command that asks who leads, to be typed as it is in another terminal."""
        program = "election" if shutil.which("election") else sys.argv[0]
        first = self.cluster.endpoints[0]
        return f"{program} leader {ELECTION}" + ("" if first == DEFAULT_ENDPOINT else f" --endpoints {first}")

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Everything that happens from when this is first waited for, in order."""
        async with aclosing(self._events.values()) as events:
            async for event in events:
                if event is not None:
                    yield event

    def tell(self, event: dict[str, Any]) -> None:
        """Adds an event."""
        self._events.set(event)

    async def run(self) -> None:
        """Runs and watches everything, until cancelled."""
        respawn_s = self.config.respawn_s
        async with asyncio.TaskGroup() as group:
            for process in (self.serve, *self.orchestrators, *self.agents):
                group.create_task(process.run(respawn_s, self.tell))
            for member in self.cluster.members:
                self.tell({"event": "started", "process": _name(member), "pid": member.pid})
                group.create_task(_keep(member, respawn_s, self.tell))
            group.create_task(self._watch_leader())
            group.create_task(self._watch_agents())
            group.create_task(self._watch_breaker())

    async def stop(self) -> None:
        """Ends what was started, the agents first and etcd's members last."""
        for processes in (self.agents, self.orchestrators, [self.serve]):
            await asyncio.gather(*(process.stop(_STOP_S) for process in processes))

    def _process(self, name: str, module: tuple[str, ...], environment: dict[str, str]) -> Process:
        log = self.config.data_dir / f"{name}.log"
        return Process(name, (sys.executable, "-m", *module), environment, log)

    async def _watch_leader(self) -> None:
        async with aclosing(self.view.watch_leader(ELECTION)) as events:
            async for event in events:
                self.tell(_leader_event(event))

    async def _watch_agents(self) -> None:
        async with aclosing(self.view.watch_agents()) as events:
            async for event in events:
                if event.agent is not None and event.kind is not AgentEventKind.PRESENT:
                    self.tell(_agent_event(event))

    async def _watch_breaker(self) -> None:
        while True:
            with suppress(EtcdError):  # the screen says so, and shows what it knew
                self.breaker = (await self.view.breaker()).value
            await asyncio.sleep(1.0)


@asynccontextmanager
async def start_fleet(config: DevConfig) -> AsyncGenerator[Fleet]:
    """Starts etcd and prepares the rest, which `Fleet.run` starts; ends everything at the end.

    Raises:
        ConfigError: a port in use, no etcd to be found, or a data folder that another one uses.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(config.data_dir))
        usual = stack.enter_context(_usual_ports())
        grpc_port = _grpc_port(config.grpc_port, usual=usual)
        client_ports, peer_ports = _etcd_ports(config, usual=usual)
        try:
            cluster = await EtcdCluster.start(
                data_dir=config.data_dir / "etcd",
                members=config.members,
                client_ports=client_ports,
                peer_ports=peer_ports,
            )
        except PortTaken as error:
            raise ConfigError(f"{error}: give --client-port another one") from None
        stack.push_async_callback(cluster.stop)
        _remember_ports(config.data_dir, client_ports, peer_ports)
        store = await stack.enter_async_context(connect(cluster.endpoints))
        view = await stack.enter_async_context(store.view())
        fleet = Fleet(config, cluster, grpc_port, view)
        stack.push_async_callback(fleet.stop)
        yield fleet


async def _keep(member: Member, respawn_s: float, tell: Tell) -> None:
    """Notices the end of an etcd member, and starts it again with its data."""
    while True:
        pid = member.pid
        while member.running:  # noqa: ASYNC110 - a process tells nobody that it has ended
            await asyncio.sleep(_LOOK_S)
        again = {"respawn_s": respawn_s} if respawn_s else {}
        tell({"event": "ended", "process": _name(member), "pid": pid, "code": member.exit_code, **again})
        if not respawn_s:
            return
        await asyncio.sleep(respawn_s)
        try:
            await member.start()
        except (ConfigError, EtcdError) as error:
            tell({"event": "failed", "process": _name(member), "error": str(error)})
        else:
            tell({"event": "started", "process": _name(member), "pid": member.pid})


def _name(member: Member) -> str:
    return f"etcd-{member.name}"


def _leader_event(event: LeaderEvent) -> dict[str, Any]:
    leader = event.leader
    return {
        "event": event.kind.value,
        "election": ELECTION,
        "id": leader.id if leader else None,
        "token": str(leader.token) if leader else None,
        "revision": event.source.revision,
    }


def _agent_event(event: AgentEvent) -> dict[str, Any]:
    assert event.agent is not None
    told: dict[str, Any] = {"event": event.kind.value, "agent": event.agent.id, "incarnation": event.agent.incarnation}
    if event.tombstone is not None:
        told["collected"] = [entry.key for entry in event.tombstone.collected]
    return told


@contextmanager
def _only_one(data_dir: Path) -> Generator[None]:
    """Holds the data folder; the lock goes with the process, so nothing is left to clean up."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a")
    except OSError as error:
        raise ConfigError(f"cannot use {data_dir} as the data folder: {error.strerror}") from None
    with lock:
        if not _locked(lock):
            raise ConfigError(f"another `election dev` uses {data_dir}: end it, or give --data-dir another folder")
        yield


def _locked(file: TextIO) -> bool:
    """Takes the lock of an open file, unless another process holds it; it is given back when the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _usual_ports() -> Generator[bool]:
    """Whether this one may use the usual ports: of two that start at the same moment, only the first may.

    Looking whether a port is free is not enough, since it is bound a moment later.
    """
    with (Path(tempfile.gettempdir()) / f"election-dev-ports-{os.getuid()}.lock").open("a") as lock:
        yield _locked(lock)


def _grpc_port(given: int | None, *, usual: bool) -> int:
    if given is not None:
        if not can_be_bound(HOST, given):
            raise ConfigError(f"port {given} on {HOST} is in use by another program: give --grpc-port another one")
        return given
    return _GRPC_PORT if usual and can_be_bound(HOST, _GRPC_PORT) else free_ports(1, HOST)[0]


def _etcd_ports(config: DevConfig, *, usual: bool) -> tuple[list[int], list[int]]:
    """Client and peer ports: those of the data folder, or P, P+2, ... and P+1, P+3, ..., or free ones."""
    remembered = _remembered_ports(config.data_dir, config.members)
    first = config.client_port
    if remembered is not None:
        if first not in (None, remembered[0][0]):
            raise ConfigError(
                f"{config.data_dir} holds an etcd on port {remembered[0][0]}: give that --client-port, or another "
                "folder"
            )
        return remembered
    count = 2 * config.members
    ports = list(range(first or _CLIENT_PORT, (first or _CLIENT_PORT) + count))
    if first is not None and ports[-1] > 65535:
        raise ConfigError(f"--client-port {first} leaves no room for {count} ports in a row: give a smaller one")
    if first is None and not (usual and all(can_be_bound(HOST, port) for port in ports)):
        ports = free_ports(count, HOST)
    return ports[0::2], ports[1::2]


def _remembered_ports(data_dir: Path, members: int) -> tuple[list[int], list[int]] | None:
    try:
        ports = json.loads((data_dir / "ports.json").read_text())
        client, peer = ([int(port) for port in ports[kind]] for kind in ("client", "peer"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{data_dir / 'ports.json'} is damaged: remove it with its folder, or use another") from None
    if len(client) != members:
        raise ConfigError(f"{data_dir} holds an etcd of {len(client)} members: give --members that number")
    return client, peer


def _remember_ports(data_dir: Path, client: list[int], peer: list[int]) -> None:
    (data_dir / "ports.json").write_text(json.dumps({"client": client, "peer": peer}) + "\n")
