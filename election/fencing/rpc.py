"""Fencing of gRPC calls: what a call carries, and by which rules it is refused.

A leader's calls say which election it leads, and its token. A server keeps the highest token that it has seen of
each election that it serves, and refuses what comes with a smaller one.

What is promised: once a call with a token has been let through, no call with a smaller one is, by any server that
shares the store, nor does a call that was let through earlier go on: a message of a stream, in either direction, and
the end of a request stream are checked like a call. What is not: that a handler stops. The one of an earlier token
may be at work, and goes on until its next message; and a deposed leader is let through until the server has heard of
a later one. So what a handler writes has to be checked where it is written, too; `claim_of` tells it the token.

Tokens are no secrets and prove nothing: whoever may call can raise the mark, and so lock the leader out. Admit only
those whom you trust to lead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from grpc import StatusCode

from election.errors import ConfigError, ElectionError
from election.fencing.claim import ELECTION_KEY, TOKEN_KEY, PassedOn
from election.token import Token

logger = logging.getLogger("election")

HIGHEST_KEY = "x-fencing-highest"
"""In the trailing metadata of a refusal, and of nothing else: the highest token seen, which is above the call's."""

HEALTH_AND_REFLECTION = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
Metadata: TypeAlias = Iterable[tuple[str, Any]]


class Context(Protocol):
    """The context that gRPC gives to a handler, sync or asyncio, as far as it is needed here."""

    def invocation_metadata(self) -> Metadata | None:
        """What came with the call."""
        ...


def claim_of(context: Context) -> PassedOn | None:
    """The claim of the call that a handler answers, to pass the token on to what it writes; None without one.

    It only reads the metadata: they have been checked where the method is fenced.

    Raises:
        ConfigError: they are malformed, which a fence refuses.
    """
    return claim_in(context.invocation_metadata() or ())


def claim_in(metadata: Metadata) -> PassedOn | None:
    """The claim in the metadata of a call; raises ConfigError unless both keys are there once, or not at all."""
    found: dict[str, list[Any]] = {TOKEN_KEY: [], ELECTION_KEY: []}
    for key, value in metadata:
        if key in found:
            found[key].append(value)
    tokens, elections = found[TOKEN_KEY], found[ELECTION_KEY]
    if not tokens and not elections:
        return None
    if len(tokens) != 1 or len(elections) != 1:
        raise ConfigError(
            f"a call carries {TOKEN_KEY} and {ELECTION_KEY} once each, not {len(tokens)} and {len(elections)} times"
        )
    return PassedOn(str(elections[0]), Token.parse(str(tokens[0])))


class Refused(ElectionError):
    """This call does not go on: the status that its caller gets."""

    def __init__(self, code: StatusCode, text: str, highest: Token | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.trailing_metadata = () if highest is None else ((HIGHEST_KEY, str(highest)),)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which calls a server lets through, as far as that can be told without the highest token seen.

    Raises:
        ConfigError: when there is no election to guard for.
    """

    elections: frozenset[str]
    required: bool
    exempt: frozenset[str]

    def __post_init__(self) -> None:
        if not self.elections:
            raise ConfigError("a fence needs the name of at least one election")

    def exempts(self, method: str) -> bool:
        """Whether a method, `/package.Service/Method`, is left alone."""
        method = method.removeprefix("/")
        return method in self.exempt or method.partition("/")[0] in self.exempt

    def judge(self, metadata: Metadata) -> PassedOn | Refused | None:
        """The claim of a call, or why it is refused whatever has been seen; None when it may go without a claim."""
        try:
            claim = claim_in(metadata)
        except ConfigError as error:
            return Refused(StatusCode.INVALID_ARGUMENT, str(error))
        if claim is None and self.required:
            return Refused(
                StatusCode.FAILED_PRECONDITION,
                f"the call carries no fencing token: this server wants {TOKEN_KEY} and {ELECTION_KEY}",
            )
        if claim is not None and claim.election not in self.elections:
            # Every name has a mark of its own, so under another one a deposed leader would pass.
            return Refused(
                StatusCode.FAILED_PRECONDITION,
                f"this server is for election {' or '.join(sorted(self.elections))}, not {claim.election[:128]!r}",
            )
        return claim


def verdict(claim: PassedOn, mark: Token) -> Refused | None:
    """Why a claim is refused, unless its token is the highest one seen."""
    if mark == claim.token:
        return None
    text = f"token {claim.token} of election {claim.election!r} is deposed: {mark} has been seen"
    return Refused(StatusCode.FAILED_PRECONDITION, text, mark)


def undecided(error: Exception) -> Refused:
    """The refusal of a call while the highest token seen is not known; only the log says why."""
    if isinstance(error, ElectionError):
        logger.error("a call is refused: %s", error)
    else:
        logger.error("a call is refused: the store of the highest tokens seen has failed", exc_info=error)
    return Refused(
        StatusCode.UNAVAILABLE, "this server cannot tell the highest token seen, so it refuses; its log says why"
    )
