"""The group of all commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import logging
import os
import sys

import click

from election.cli.dev import dev
from election.cli.exits import ERROR, INTERRUPTED
from election.cli.options import remember_group_options, shared_options
from election.cli.read import agents_list, candidates, leader, list_elections, observe
from election.cli.run import agents_join, campaign, collect, serve
from election.cli.version import version
from election.errors import ElectionError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@shared_options(env=True)
@click.pass_context
def cli(context: click.Context, /, **options: object) -> None:
    """Leader election, fencing and stale-agent cleanup on etcd.

    Every option can also be given as an environment variable ELECTION_<OPTION>; ETCDCTL_ENDPOINTS, ETCDCTL_CACERT,
    ETCDCTL_CERT, ETCDCTL_KEY and ETCDCTL_USER are understood where ours is not set.

    Exit codes: 0 fine, 1 error, 2 usage, 3 nobody leads, 4 leadership lost (campaign --once).
    """
    remember_group_options(context, options)


@cli.group()
def agents() -> None:
    """Agents: who is alive, and what they leave behind."""


agents.add_command(agents_join)
agents.add_command(agents_list)
for command in (campaign, candidates, collect, dev, leader, list_elections, observe, serve, version):
    cli.add_command(command)


def main() -> None:
    """Runs the command line and exits. Errors are one line on stderr; a bug is a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        code = cli.main(prog_name="election", standalone_mode=False)
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
