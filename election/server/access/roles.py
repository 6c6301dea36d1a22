"""What a caller may be, and which role each method needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from election.api.resources import election_id

_SHOWN = 200


class Role(IntEnum):
    """The roles, ordered: a larger one may do everything that a smaller one may."""

    READER = 1
    """Gets, lists, watches, and checks tokens."""
    AGENT = 2
    """And holds a session, under its own id only."""
    CANDIDATE = 3
    """And campaigns."""
    ADMIN = 4
    """And drains, reaps and restores."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Access:
    """What a method needs before it is called, and the fields of its request that name what it is about.

    A method whose first message names it requires the rest itself: see `Caller.require`.
    """

    role: Role
    election_field: str | None = None
    agent_field: str | None = None

    def election(self, request: Any) -> str | None:
        """The election that a request names; raises BadField for what names none."""
        if self.election_field is None:
            return None
        return election_id(getattr(request, self.election_field), field=self.election_field)

    def resource(self, request: Any) -> str:
        """What a request is about, for people: as it was written, unchecked, though not more of it than a line."""
        fields = (field for field in (self.election_field, self.agent_field) if field is not None)
        return next((str(getattr(request, field))[:_SHOWN] for field in fields), "")

    def rest(self, request: Any) -> dict[str, object]:
        """What else a request says, for people, likewise."""
        named = (self.election_field, self.agent_field)
        return {
            field.name: value if isinstance(value, bool | int) else " ".join(str(value).split())[:_SHOWN]
            for field, value in request.ListFields()
            if field.name not in named
        }


_ELECTION = Access(Role.READER, election_field="election")
_READ = Access(Role.READER)
_CARE = Access(Role.ADMIN, agent_field="id")

METHODS = {
    "/election.v1.Elections/GetLeader": _ELECTION,
    "/election.v1.Elections/WatchLeader": _ELECTION,
    "/election.v1.Elections/ListElections": _READ,  # tells those that the caller may read
    "/election.v1.Elections/ListCandidates": _ELECTION,
    "/election.v1.Elections/CheckToken": _ELECTION,
    "/election.v1.Elections/Campaign": Access(Role.CANDIDATE),  # the first message names the election
    "/election.v1.Agents/ListAgents": _READ,
    "/election.v1.Agents/GetAgent": _READ,
    "/election.v1.Agents/WatchAgents": _READ,
    "/election.v1.Agents/ListTombstones": _READ,
    "/election.v1.Agents/GetBreaker": _READ,
    "/election.v1.Agents/Session": Access(Role.AGENT),  # the first message names the agent
    "/election.v1.Agents/DrainAgent": _CARE,
    "/election.v1.Agents/ReapAgent": _CARE,
    "/election.v1.Agents/RestoreAgent": _CARE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
}
"""Every method that is not open to all; the server does not start with one that is missing here."""
