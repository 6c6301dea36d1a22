"""What a resource is shown by whoever acts for a leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from election.token import Token

TOKEN_KEY = "x-fencing-token"  # noqa: S105 (no password)
"""In the metadata of a gRPC call, or the headers of an HTTP request: the token, in its text form."""
ELECTION_KEY = "x-fencing-election"
"""Beside it: the election's name."""


class Claim(Protocol):
    """That somebody acts for the leader of an election with this token: a `Term`, or a token that was passed on."""

    @property
    def election(self) -> str:
        """The election's name."""
        ...

    @property
    def token(self) -> Token:
        """The token of the term."""
        ...

    def check(self) -> None:
        """Raises NotLeader if the term is known to be over."""
        ...


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A token that a leader has sent along, in the hands of somebody who acts for it and holds no `Term`."""

    election: str
    token: Token

    def check(self) -> None:
        """Returns always: only the leader has a deadline to compare, and only the resource knows of newer tokens."""
