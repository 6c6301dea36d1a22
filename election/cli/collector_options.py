"""The options of a collector, for the commands that run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from election.cli.options import more_than_zero, setting
from election.config import BreakerConfig, CollectorConfig

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT, _BREAKER = CollectorConfig(), BreakerConfig()


def collector_options(function: F) -> F:
    """Adds the options of a collector; the command gets them together, as `collector_config`."""
    function = _given_together(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    setting("--id", "id", metavar="ID", help="this collector's name [host-pid]"),
    setting(
        "--grace",
        type=click.FloatRange(min=0),
        default=_DEFAULT.grace_s,
        show_default=True,
        metavar="S",
        help="from when an agent vanishes until it is reaped, seconds",
    ),
    setting(
        "--reconcile",
        type=float,
        callback=more_than_zero,
        default=_DEFAULT.reconcile_s,
        show_default=True,
        metavar="S",
        help="how often everything is listed and compared, seconds",
    ),
    setting(
        "--retention",
        type=click.IntRange(1, 10**9),
        default=_DEFAULT.retention_s,
        show_default=True,
        metavar="S",
        help="how long a tombstone stays, seconds",
    ),
    setting(
        "--rate",
        type=float,
        callback=more_than_zero,
        metavar="N",
        help="the most agents to reap in a second [no limit]",
    ),
    setting(
        "--breaker-agents",
        type=click.IntRange(1, 10**9),
        default=_BREAKER.agents,
        show_default=True,
        metavar="N",
        help="nothing is reaped when so many agents vanish within a grace",
    ),
    setting(
        "--breaker-share",
        type=click.FloatRange(0, 1, min_open=True),
        default=_BREAKER.share,
        show_default=True,
        metavar="X",
        help="and are this share of all",
    ),
    setting(
        "--breaker-hold",
        type=float,
        callback=more_than_zero,
        default=_BREAKER.hold_s,
        show_default=True,
        metavar="S",
        help="until they are back, or for so long, seconds",
    ),
    setting("--no-breaker", is_flag=True, help="reap however many vanish at once"),
)


def _given_together(function: F) -> F:
    def run(
        *arguments: Any,
        grace: float,
        reconcile: float,
        retention: int,
        rate: float | None,
        breaker_agents: int,
        breaker_share: float,
        breaker_hold: float,
        no_breaker: bool,
        **options: Any,
    ) -> Any:
        config = CollectorConfig(
            grace_s=grace,
            reconcile_s=reconcile,
            retention_s=retention,
            rate_per_s=rate,
            breaker=None if no_breaker else BreakerConfig(breaker_agents, breaker_share, breaker_hold),
        )
        return function(*arguments, collector_config=config, **options)

    run.__doc__ = function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
