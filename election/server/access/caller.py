"""Who makes a call, for the handlers whose permission depends on what the caller says later in a stream."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from election.errors import ElectionError
from election.server.access.roles import Role
from election.server.access.tokens import TokenLine

ANONYMOUS = "anonymous"
"""The identity of a caller that has shown none."""


class Grants(Protocol):
    """What the policy gives to a caller's identities together."""

    def why_not(self, role: Role, *, election: str | None = None, agent: str | None = None) -> ElectionError | None:
        """The error that says what is missing; None where nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one call: all of its identities, and where it calls from (as gRPC writes it).

    `grants` None means that the server has no policy to ask, and that everybody may do everything. `line` is that of
    the token file which the caller's token was found in, where it has shown one of these.
    """

    identities: tuple[str, ...] = (ANONYMOUS,)
    peer: str = ""
    grants: Grants | None = None
    line: TokenLine | None = field(default=None, repr=False)

    @property
    def who(self) -> str:
        """One text for all of the identities; for who has shown none, where it calls from."""
        if self.identities == (ANONYMOUS,):
            return f"{ANONYMOUS} at {self.peer.rpartition(':')[0]}"
        return ", ".join(self.identities)

    def require(self, role: Role, *, election: str | None = None, agent: str | None = None) -> None:
        """Returns if the caller has the role: for this election where one is named, and as this agent.

        Raises:
            PermissionDenied: with what is missing.
            Unauthenticated: when the caller has shown no identity at all.
        """
        if self.grants is not None and (error := self.grants.why_not(role, election=election, agent=agent)):
            raise error

    def may(self, role: Role, *, election: str | None = None, agent: str | None = None) -> bool:
        """Whether `require` would return."""
        return self.grants is None or self.grants.why_not(role, election=election, agent=agent) is None


current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039 (it is frozen)
"""The caller of the call that runs in this context."""
