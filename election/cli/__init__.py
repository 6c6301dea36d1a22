"""The command `election`: each command parses, builds one config, makes one call, and ends with an exit code."""

import os

# gRPC's core writes lines of its own to stderr for each handshake that fails; our errors say the same once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from election.cli.main import main

__all__ = ["main"]
