"""Why a call to whoever leads has failed, where that is not what the leader answered."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from election.errors import ElectionError
from election.token import Token


class LeaderChanged(ElectionError, grpc.aio.AioRpcError):
    """The leader changed during the call, which was with the one of `old`; `new` is None where nobody leads.

    What became of the call is not known: it may have been done, in part or to its end. Repeat only what may be done
    twice. To those who look at statuses it is UNAVAILABLE, as a connection that breaks is.
    """

    def __init__(self, election: str, old: Token, new: Token | None) -> None:
        now = "nobody leads now" if new is None else f"it is {new} now"
        text = f"the leader of {election!r} changed during this call, which was with token {old}: {now}"
        grpc.aio.AioRpcError.__init__(self, grpc.StatusCode.UNAVAILABLE, details=text)
        self.election = election
        self.old = old
        self.new = new

    def __str__(self) -> str:
        return self.details() or ""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.election, self.old, self.new)


class NotSent(ElectionError, grpc.aio.AioRpcError):
    """Nothing was sent, because it is not known whom to call, or where: any call may be repeated.

    UNAVAILABLE when nobody leads or who does is not known, DEADLINE_EXCEEDED when a call has waited for that in vain,
    FAILED_PRECONDITION when the leader has said no address.
    """

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        grpc.aio.AioRpcError.__init__(self, code, details=text)

    def __str__(self) -> str:
        return self.details() or ""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code(), self.details())
