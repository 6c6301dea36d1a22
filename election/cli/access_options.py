"""The options of `election serve` on who may call, and how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from election.cli.options import FILE, more_than_zero, setting
from election.server.access.bearer import JwtConfig
from election.server.access.gate import AccessConfig
from election.server.access.limits import LimitsConfig

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = LimitsConfig()
_REQUESTS_PER_S = 1000.0
_STREAMS = 2000


def access_options(function: F) -> F:
    """Adds the options; the command gets them together, as `access`."""
    function = _given_together(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    setting("--policy", type=FILE, help="which identities have which role [who shows one may read]"),
    setting("--tokens", type=FILE, help="hashes of bearer tokens, as `election token` makes them"),
    setting("--jwks", type=FILE, help="public keys whose JWTs are taken as bearer tokens"),
    setting("--jwt-issuer", metavar="TEXT", help="who has to have issued them"),
    setting("--jwt-audience", metavar="TEXT", help="for whom they have to be"),
    setting(
        "--max-streams-per-identity",
        type=click.IntRange(1, 10**9),
        default=_STREAMS,
        show_default=True,
        metavar="N",
        help="watches, sessions and campaigns at once",
    ),
    setting(
        "--max-requests-per-second",
        type=click.FloatRange(0, 1e9),
        default=_REQUESTS_PER_S,
        show_default=True,
        metavar="N",
        help="of one identity; 0: no limit",
    ),
    setting(
        "--max-message-bytes",
        type=click.IntRange(1024, 2**31 - 1),
        default=_LIMITS.message_bytes,
        show_default=True,
        metavar="N",
        help="of what a caller sends",
    ),
    setting(
        "--default-deadline",
        type=float,
        callback=more_than_zero,
        default=_LIMITS.deadline_s,
        show_default=True,
        metavar="S",
        help="of calls that name none, streams excepted, seconds",
    ),
)


def _given_together(function: F) -> F:
    def run(
        *arguments: Any,
        policy: Path | None,
        tokens: Path | None,
        jwks: Path | None,
        jwt_issuer: str | None,
        jwt_audience: str | None,
        max_streams_per_identity: int,
        max_requests_per_second: float,
        max_message_bytes: int,
        default_deadline: float,
        **options: Any,
    ) -> Any:
        access = AccessConfig(
            policy=policy,
            token_file=tokens,
            jwt=JwtConfig.of(jwks, jwt_issuer, jwt_audience),
            limits=LimitsConfig(
                requests_per_s=max_requests_per_second or None,
                streams=max_streams_per_identity,
                message_bytes=max_message_bytes,
                deadline_s=default_deadline,
            ),
        )
        return function(*arguments, access=access, **options)

    run.__doc__ = function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
