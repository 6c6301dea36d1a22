"""The group of all commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import ClassVar

import click

from election.cli.exits import ERROR, INTERRUPTED
from election.cli.options import group_options, remember_group_options
from election.errors import ConfigError, ElectionError


class Commands(click.Group):
    """Commands that are imported when they are used: each needs only the extras that it uses, and starts fast."""

    where: ClassVar[dict[str, str]] = {
        "campaign": "election.cli.campaign:campaign",
        "candidates": "election.cli.read:candidates",
        "collect": "election.cli.collect:collect",
        "dev": "election.cli.dev:dev",
        "drill": "election.cli.drill:drill",
        "leader": "election.cli.read:leader",
        "list": "election.cli.read:list_elections",
        "observe": "election.cli.read:observe",
        "serve": "election.cli.serve:serve",
        "token": "election.cli.token:token",
        "version": "election.cli.version:version",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *self.where})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self.where:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.where[cmd_name].partition(":")
        try:
            command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("election"):
                raise
            raise ConfigError(
                f"`election {cmd_name}` needs the package {error.name}: install election with the extra [all]"
            ) from None
        assert isinstance(command, click.Command)
        return command


class AgentCommands(Commands):
    """The commands below `election agents`."""

    where: ClassVar[dict[str, str]] = {
        "drain": "election.cli.care:agents_drain",
        "join": "election.cli.join:agents_join",
        "list": "election.cli.agents:list_",
        "reap": "election.cli.care:agents_reap",
        "restore": "election.cli.care:agents_restore",
        "run": "election.cli.wrap:agents_run",
        "show": "election.cli.agents:show",
        "tombstones": "election.cli.agents:tombstones",
        "watch": "election.cli.agents:watch",
    }


class BreakerCommands(Commands):
    """The commands below `election breaker`."""

    where: ClassVar[dict[str, str]] = {
        "close": "election.cli.breaker:close",
        "hold": "election.cli.breaker:hold",
        "show": "election.cli.breaker:show",
    }


class EpochCommands(Commands):
    """The commands below `election epoch`."""

    where: ClassVar[dict[str, str]] = {
        "raise": "election.cli.epoch:raise_",
        "show": "election.cli.epoch:show",
    }


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="election", message="%(prog)s %(version)s")
@group_options(env=True)
@click.pass_context
def cli(context: click.Context, /, **options: object) -> None:
    """Leader election, fencing and stale-agent cleanup on etcd.

    Every option can also be given as an environment variable ELECTION_<OPTION>; ETCDCTL_ENDPOINTS, ETCDCTL_CACERT,
    ETCDCTL_CERT, ETCDCTL_KEY and ETCDCTL_USER are understood where ours is not set.

    Exit codes: 0 fine, 1 error, 2 usage, 3 nobody leads, 4 lost (campaign --once, agents run
    --on-loss stop).
    """
    remember_group_options(context, options)


@cli.group(cls=AgentCommands, context_settings={"help_option_names": ["-h", "--help"]})
@group_options()
@click.pass_context
def agents(context: click.Context, /, **options: object) -> None:
    """Agents, and what the dead ones leave behind."""
    remember_group_options(context, options)


@cli.group(cls=BreakerCommands, context_settings={"help_option_names": ["-h", "--help"]})
@group_options()
@click.pass_context
def breaker(context: click.Context, /, **options: object) -> None:
    """Whether collectors may reap.

    The breaker opens when too many agents vanish at once, and holds everything back until somebody has looked.
    """
    remember_group_options(context, options)


@cli.group(cls=EpochCommands, context_settings={"help_option_names": ["-h", "--help"]})
@group_options()
@click.pass_context
def epoch(context: click.Context, /, **options: object) -> None:
    """The first part of every fencing token.

    Raise it after etcd was restored from a snapshot.
    """
    remember_group_options(context, options)


def main() -> None:
    """Runs the command line and exits. Errors are one line on stderr; a bug is a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        try:
            code = cli.main(prog_name="election", standalone_mode=False)
        except BaseExceptionGroup as errors:  # of what ran side by side, the first error tells enough
            raise _first(errors) from None
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ElectionError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(ERROR)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as in `election observe x | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ERROR)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
