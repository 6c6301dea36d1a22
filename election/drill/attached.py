"""An etcd that runs already, as far as a drill may use it: its members are not ours to hurt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from election.config import EtcdConfig
from election.dev.etcd import EtcdCluster
from election.drill.peers import Peers
from election.drill.site import CALL_S, PROBE_KEY, Site
from election.errors import ConfigError, EtcdError, EtcdUnavailable
from election.etcd.client import EtcdClient

_POLL_S = 0.2


class RunningEtcd(EtcdCluster):
    """A cluster without members, so that nothing that ends or hurts a member does anything."""

    def __init__(self, config: EtcdConfig, *, version: str) -> None:
        super().__init__((), version=version, tls=None)
        self._running = replace(config, call_timeout_s=CALL_S)
        if config.user is not None and config.password is not None:
            self.credentials = config.user, config.password

    @property
    def endpoints(self) -> tuple[str, ...]:
        """As they were given."""
        return self._running.endpoints

    async def wait_healthy(self, timeout_s: float = 30.0) -> None:
        """Waits until a linearizable read is answered; raises EtcdUnavailable."""
        give_up_at_s = time.monotonic() + timeout_s
        async with EtcdClient(self._running) as client:
            while True:
                try:
                    await client.get(PROBE_KEY)
                    return
                except EtcdUnavailable:
                    if time.monotonic() >= give_up_at_s:
                        raise
                await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def attach(folder: Path, config: EtcdConfig) -> AsyncGenerator[Site]:
    """A site on an etcd that runs; the links to it end with the block, and it does not.

    Raises:
        ConfigError: it wants TLS, which links cannot pass on: certificates are for the address behind them.
        EtcdError: it cannot be used.
    """
    if config.tls is not None:
        raise ConfigError("a drill reaches etcd by links that it can cut, and TLS does not let them pass: leave it out")
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(EtcdClient(replace(config, call_timeout_s=CALL_S)))
        version = await _version(control)
        cluster = RunningEtcd(config, version=version)
        links = await stack.enter_async_context(AsyncExitStack())
        yield Site(folder, cluster, Peers(()), control, user=cluster.credentials, _stack=links)


async def _version(client: EtcdClient) -> str:
    failure: EtcdError | None = None
    for number in range(len(client.config.endpoints)):
        try:
            return (await client.status(number)).version
        except EtcdError as error:
            failure = error
    assert failure is not None
    raise failure
