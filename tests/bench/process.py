"""A Python process of a measurement, bound to this one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from tests.bench.contender import ROOT


@asynccontextmanager
async def process(
    cluster: EtcdCluster, namespace: str, module: str, *arguments: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Runs a module with the connection in its environment and its stdout in a pipe; ended with the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ELECTION_")}
    made = await asyncio.create_subprocess_exec(
        *bound_to_this_process([sys.executable, "-m", module, *arguments]),
        env={**environment, "ELECTION_ENDPOINTS": ",".join(cluster.endpoints), "ELECTION_NAMESPACE": namespace},
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            made.terminate()
        await made.wait()
