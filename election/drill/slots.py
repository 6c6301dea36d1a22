"""The places for the processes of a drill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from election.drill.processes import Process


class Role(StrEnum):
    """What a process of a drill is."""

    REGISTER = "register"
    SERVER = "server"
    READER = "reader"
    COLLECTOR = "collector"
    ORCHESTRATOR = "orchestrator"
    BLOCKING = "blocking orchestrator"
    AGENT = "agent"
    SECOND = "second agent"
    """A process that wants to be an agent that another one is."""


ORCHESTRATORS = (Role.ORCHESTRATOR, Role.BLOCKING)


@dataclass
class Slot:
    """A place for a process, that is started again when it ends: the name stays, as a Pod's does in a StatefulSet.

    `wanted` is whether a process is to run; the keeper sees to it.
    """

    name: str
    role: Role
    start: Callable[[str], Process]
    started: int = 0
    wanted: bool = False
    process: Process | None = None
    since: int = 0
    """The revision of etcd at which its process was started: what is older is its predecessor's."""

    @property
    def can_be_hurt(self) -> bool:
        """Whether its process runs, and nothing is done to it at present."""
        process = self.process
        return self.wanted and process is not None and process.running and not (process.paused or process.leaving)


LETTERS = {
    Role.REGISTER: "r",
    Role.SERVER: "s",
    Role.READER: "q",
    Role.COLLECTOR: "c",
    Role.ORCHESTRATOR: "o",
    Role.BLOCKING: "b",
    Role.AGENT: "w",
}
"""What the names of slots begin with."""
