"""The command `version`."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from election.cli.exits import OK
from election.cli.options import Settings, command
from election.cli.output import print_json


@command("version", shared=["output"])
def version(settings: Settings) -> int:
    """Print the version of this program and of what it runs on."""
    versions = {
        "election": metadata.version("election"),
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
    }
    if settings.json:
        print_json(versions)
    else:
        click.echo("  ".join(f"{name} {number}" for name, number in versions.items()))
    return OK
