"""All faults, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from election.drill.faults.agents import AGENT_FAULTS
from election.drill.faults.fault import Fault
from election.drill.faults.members import MEMBERS
from election.drill.faults.network import NETWORK
from election.drill.faults.operations import OPERATIONS
from election.drill.faults.processes import PROCESS_FAULTS
from election.drill.faults.restore import RESTORES
from election.drill.faults.strangers import STRANGERS
from election.errors import ConfigError

_ALL: tuple[Fault[Any], ...] = (
    *MEMBERS,
    *NETWORK,
    *OPERATIONS,
    *RESTORES,
    *STRANGERS,
    *PROCESS_FAULTS,
    *AGENT_FAULTS,
)
FAULTS: Mapping[str, Fault[Any]] = {fault.name: fault for fault in _ALL}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "kill-orchestrator": ("kill-leader", "kill-candidate"),
    "pause-orchestrator": ("pause-leader", "pause-candidate"),
}
"""Names for several at once."""


def chosen(names: Iterable[str]) -> list[Fault[Any]]:
    """The faults of these names, groups included, each once. Raises ConfigError for one that is not known."""
    found = dict[str, Fault[Any]]()
    for name in names:
        for each in GROUPS.get(name, (name,)):
            if each not in FAULTS:
                raise ConfigError(f"there is no fault {each!r}: `election drill --list` shows all")
            found[each] = FAULTS[each]
    return list(found.values())
