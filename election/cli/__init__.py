"""The command `election`: each command parses, builds one config, makes one call, and ends with an exit code."""

from election.cli.main import main

__all__ = ["main"]
