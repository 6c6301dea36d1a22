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
from election.store import connect
from tests.fuzz.attack import Attack
from tests.fuzz.target import target

GROWTH_MIB = 32.0
"""How much more memory the server may have at the end than after the first tenth."""


async def fuzz(endpoints: tuple[str, ...], requests: int, seed: int) -> str:
    """Attacks a server on this etcd; raises AssertionError when it does not bear it."""
    async with connect(endpoints, namespace=f"fuzz-{seed}") as store, target(store) as server:
        attack = Attack(server.address, seed)
        watching = asyncio.create_task(server.watch())
        began_s = time.monotonic()
        try:
            await attack.run(requests // 10)
            first_mib = server.memory_mib
            await attack.run(requests - attack.sent)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not watching.cancelled():
            watching.result()
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
        except* AssertionError as errors:
            click.echo(f"failed: {errors.exceptions[0]}", err=True)
            sys.exit(1)
        finally:
            cluster.kill()


if __name__ == "__main__":
    main()
