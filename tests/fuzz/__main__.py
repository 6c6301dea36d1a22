"""`python -m tests.fuzz`: attacks a server of the API, and says how it bore it."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import click

from election.dev.etcd import EtcdCluster
from election.errors import ElectionError
from election.store import connect
from tests.fuzz.attack import Attack
from tests.fuzz.target import Target, target

GROWTH_MIB = 32.0
"""How much more memory the server may have at the end than after the first tenth."""


async def fuzz(endpoints: tuple[str, ...], requests: int, seed: int) -> str:
    """Attacks a server on this etcd, and tells how it bore it; raises AssertionError with the seed when it did not."""
    try:
        async with connect(endpoints, namespace=f"fuzz-{seed}") as store, target(store) as server:
            return await _fuzz(server, requests, seed)
    except* (AssertionError, ElectionError, TimeoutError) as errors:
        raise AssertionError(f"seed {seed}: {errors.exceptions}") from errors


async def _fuzz(server: Target, requests: int, seed: int) -> str:
    attack = Attack(server.address, seed)
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(server.watch())
        await attack.run(requests // 10)
        first_mib = server.memory_mib
        await attack.run(requests - attack.sent)
        watching.cancel()
    await server.check()
    last_mib, took_s = server.memory_mib, time.monotonic() - began_s
    assert last_mib - first_mib < GROWTH_MIB, f"the server grew from {first_mib:.0f} to {last_mib:.0f} MiB"
    answers = ", ".join(f"{name} {count}" for name, count in attack.answers.most_common())
    return (
        f"seed {seed}: {attack.sent} requests in {took_s:.0f} s ({answers}); the server is alive and correct, with "
        f"{first_mib:.0f} MiB after a tenth of them and {last_mib:.0f} MiB at the end"
    )


@click.command()
@click.option("--requests", type=click.IntRange(min=100), default=100_000, show_default=True)
@click.option("--seed", type=int, help="[a random one]")
def main(requests: int, seed: int | None) -> None:
    """Sends bad requests to a server of the API, on an etcd of its own; exits with 1 when it does not bear them."""
    seed = random.randrange(2**32) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="election-fuzz-") as folder:
        cluster = asyncio.run(EtcdCluster.start(data_dir=Path(folder), members=1))
        try:
            click.echo(asyncio.run(fuzz(tuple(cluster.endpoints), requests, seed)))
        except AssertionError as error:
            click.echo(f"failed: {error}", err=True)
            sys.exit(1)
        finally:
            cluster.kill()


if __name__ == "__main__":
    main()
