"""The resource names of the API, as https://google.aip.dev/122 has them: `elections/scheduler`, `agents/worker-7`.

Requests may say the id alone, which no slash can be in.
"""

from __future__ import annotations

from election.errors import BadField, ConfigError
from election.keys import COLLECTOR_ELECTION, check_name

_ELECTIONS = "elections/"
_AGENTS = "agents/"


def election_name(id: str) -> str:
    """The resource name of an election."""
    return _ELECTIONS + id


def leader_name(election: str) -> str:
    """The resource name of the leader of an election."""
    return f"{_ELECTIONS}{election}/leader"


def candidate_name(election: str, lease: int) -> str:
    """The resource name of a candidate."""
    return f"{_ELECTIONS}{election}/candidates/{lease:x}"


def agent_name(id: str) -> str:
    """The resource name of an agent."""
    return _AGENTS + id


def tombstone_name(agent: str, incarnation: int, part: int = 0) -> str:
    """The resource name of a tombstone."""
    return f"{_AGENTS}{agent}/tombstones/{incarnation}" + (f"-{part}" if part else "")


def election_id(named: str, *, field: str = "election") -> str:
    """The id of an election that a request names; raises BadField for what names none."""
    election = named.removeprefix(_ELECTIONS)
    return election if election == COLLECTOR_ELECTION else _checked("election", election, field)


def agent_id(named: str, *, field: str = "id") -> str:
    """The id of an agent that a request names; raises BadField for what names none."""
    return _checked("agent", named.removeprefix(_AGENTS), field)


def _checked(kind: str, id: str, field: str) -> str:
    try:
        return check_name(kind, id)
    except ConfigError as error:
        raise BadField(str(error), field=field) from None
