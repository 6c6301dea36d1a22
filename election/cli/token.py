"""The command `token`: a new bearer token for `election serve --tokens`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from election.cli.exits import OK
from election.cli.options import Settings, command
from election.cli.output import print_json
from election.clock import BootClock
from election.server.access.tokens import new_token

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def _when(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    """`90d`, `12h`, `30m` from now, or a time; it has to be in the future."""
    if text is None:
        return None
    now = BootClock().wall()
    try:
        if text[-1:] in _UNITS:
            time = now + timedelta(**{_UNITS[text[-1]]: float(text[:-1])})
        else:
            time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is neither like 90d, 12h or 30m, nor like 2027-01-31T12:00:00Z") from None
    if time.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no time zone: write a Z behind it for UTC")
    if time <= now:
        raise click.BadParameter(f"{text!r} is not in the future")
    return time.astimezone(UTC).replace(microsecond=0)


@command("token", shared=["output"])
@click.argument("name")
@click.option("--expires", callback=_when, metavar="TIME", help="90d, 12h or 30m from now, or a time [never]")
def token(settings: Settings, name: str, expires: datetime | None) -> int:
    """Make a bearer token for NAME.

    The token goes to stdout and is shown this once; its line for the file of `election serve --tokens` goes to stderr.
    """
    made, line = new_token(name, expires)
    if settings.json:
        print_json({"token": made, "line": str(line)})
    else:
        click.echo(made)
        click.echo(str(line), err=True)
    return OK
