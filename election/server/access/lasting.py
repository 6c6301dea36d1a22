"""What a stream was allowed when it began, and whether it still is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from election.errors import ElectionError, Unauthenticated
from election.server.access.caller import Caller, Grants
from election.server.access.roles import Role


class Lasting:
    """What a stream was allowed, and whether it still is.

    The identities are those that the caller has shown at the beginning: a certificate or a token that expires ends no
    stream. One that the policy gives no role any more does, and so does a token whose line is gone from its file, also
    where its name has another token there.
    """

    def __init__(self, caller: Caller, again: Callable[[Caller], Grants]) -> None:
        self._grants = caller.grants
        self._again = again
        self._needed: set[tuple[Role, str | None, str | None]] = set()
        self.caller = caller if caller.grants is None else replace(caller, grants=self)
        """For the handler: what it requires of this one has to hold for as long as the stream does."""

    def why_not(self, role: Role, *, election: str | None = None, agent: str | None = None) -> ElectionError | None:
        """As `Granted` tells it; what is allowed is remembered."""
        if self._grants is None:
            return None
        error = self._grants.why_not(role, election=election, agent=agent)
        if error is None:
            self._needed.add((role, election, agent))
        return error

    def lost(self) -> ElectionError | None:
        """Why the stream must end, by the files as they are now; None when it may go on."""
        if self._grants is None:
            return None
        try:
            self._grants = self._again(self.caller)
        except Unauthenticated as error:
            return error
        errors = (self._grants.why_not(role, election=election, agent=agent) for role, election, agent in self._needed)
        return next((error for error in errors if error is not None), None)
