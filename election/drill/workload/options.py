"""What every orchestrator of a drill is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from election.config import CandidateConfig

F = TypeVar("F", bound=Callable[..., Any])
USER = "ELECTION_USER"
PACE_S = (0.02, 0.3)
"""How long an orchestrator waits between two writes, in its term."""
LATE_S = (0.2, 3.0)
"""How long after its term it writes once more, as a process does that wakes too late."""


@dataclass(frozen=True, slots=True)
class Options:
    """Who it is, where it stands, and where it writes to."""

    id: str
    process: str
    journal: Path
    endpoints: str
    namespace: str
    election: str
    ttl: int
    sqlite: Path
    register: str

    @property
    def candidate(self) -> CandidateConfig:
        """Quick to stand again, since drills are short."""
        return CandidateConfig(ttl_s=self.ttl, retry_max_s=1.0)

    @property
    def user(self) -> str | None:
        """The user of etcd, as NAME:PASSWORD."""
        return os.environ.get(USER)


def orchestrator_options(function: F) -> F:
    """The options of the command, one for each field of `Options`."""
    for option in (
        click.option("--id", required=True),
        click.option("--process", required=True, help="The name of this process among all that have ever been."),
        click.option("--journal", type=click.Path(path_type=Path), required=True),
        click.option("--endpoints", required=True),
        click.option("--namespace", required=True),
        click.option("--election", required=True),
        click.option("--ttl", type=int, required=True),
        click.option("--sqlite", type=click.Path(path_type=Path), required=True, help="The file of the register."),
        click.option("--register", required=True, help="The address of the register that is a service."),
    ):
        function = option(function)
    return function
