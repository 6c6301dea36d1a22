"""The example for Node against real servers: what it asks, and what it tells over their deaths."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from election.dev.parent import bound_to_this_process
from election.server.serving import GrpcServer
from election.store import Store
from tests.integration.ran import until
from tests.integration.test_cli import Cli
from tests.integration.test_grpc_api import ScriptedReader, certificate
from tests.integration.test_leader_client import ELECTION, WAIT_S, serve, serve_twice, soon, store, terms

__all__ = ["store"]

pytestmark = pytest.mark.etcd

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"
UNREACHABLE = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ERR_SOCKET_TIMEOUT|E40[137]|E50[234]")


@pytest.fixture(scope="session")
def environment() -> Mapping[str, str]:
    """What the example needs to find its packages, in a folder that is kept while the lock file is the same."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node or no npm on PATH")
    lock = hashlib.sha256((EXAMPLE / "package-lock.json").read_bytes()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"election-node-{os.getuid()}-{lock}"
    if not kept.exists():
        fresh = Path(tempfile.mkdtemp(prefix="election-node-"))
        try:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(EXAMPLE / name, fresh)
            command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries", "1")
            ended = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=120)
            if ended.returncode != 0 and UNREACHABLE.search(ended.stderr):
                pytest.skip(f"npm cannot reach its registry: {ended.stderr.strip().splitlines()[0]}")
            assert ended.returncode == 0, ended.stderr
            try:
                fresh.rename(kept)
            except OSError:
                assert kept.exists()  # another worker was faster
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return {**os.environ, "NODE_PATH": str(kept / "node_modules")}


async def run(environment: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """The example to its end: its exit code, its stdout and its stderr."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(EXAMPLE / "leader.js"), *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    out, err = await soon(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def watching(environment: Mapping[str, str], servers: str) -> AsyncIterator[list[dict[str, Any]]]:
    """What it tells while it watches."""
    node = shutil.which("node")
    assert node is not None
    process = await asyncio.create_subprocess_exec(
        *bound_to_this_process((node, str(EXAMPLE / "leader.js"), "watch", servers, ELECTION)),
        stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    told: list[dict[str, Any]] = []

    async def read(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            told.append(json.loads(line))  # noqa: PERF401 (it is read while it grows)

    reading = asyncio.create_task(read(process.stdout))
    try:
        yield told
    finally:
        process.kill()
        await process.wait()
        await soon(reading)


def elected(told: list[dict[str, Any]]) -> list[str]:
    return [message["token"] for message in told if message["kind"] == "ELECTED"]


async def test_it_asks_once(environment: Mapping[str, str], cli: Cli, store: Store) -> None:
    """Of several servers the one that answers; and what all would refuse is one line."""
    _, address = await serve(cli)
    code, out, err = await run(environment, "ask", f"127.0.0.1:1,{address}", ELECTION)
    assert (code, err, json.loads(out)["kind"]) == (0, "", "NOBODY")
    async with terms(store) as rivals:
        await until(lambda: bool(rivals.leader))
        code, out, err = await run(environment, "ask", address, ELECTION)
        answer = json.loads(out)
        assert (code, err) == (0, "")
        assert (answer["kind"], answer["id"], answer["token"]) == ("LEADER", rivals.leader, str(rivals.tokens[-1]))
        assert answer["address"] == f"{rivals.leader}:1"
        assert 0 <= answer["age_s"] < 2
    code, out, err = await run(environment, "ask", address, "a/b")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is not a valid name" in err
    code, out, err = await run(environment, "ask", "127.0.0.1:1", ELECTION)
    assert (code, out) == (1, "")
    assert "127.0.0.1:1" in err


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_it_watches_and_misses_no_term(
    environment: Mapping[str, str], cli: Cli, store: Store, harm: signal.Signals
) -> None:
    """When its server dies or hangs it goes on at the other one; heartbeats say how fresh what it was told is."""
    servers = await serve_twice(cli)
    first, _ = servers
    async with terms(store) as rivals, watching(environment, ",".join(servers)) as told:
        await until(lambda: elected(told) == [str(rivals.tokens[0])], WAIT_S)
        await until(lambda: told[-1]["kind"] == "HEARTBEAT")
        assert told[-1]["age_s"] < 2
        await rivals.change()
        await until(lambda: elected(told) == [str(token) for token in rivals.tokens])
        servers[first].send(harm)
        for _ in range(3):
            await rivals.change()
        await until(lambda: elected(told) == [str(token) for token in rivals.tokens])
        assert "RESET" not in [message["kind"] for message in told]
        assert len(set(elected(told))) == len(elected(told))


async def test_it_is_told_when_terms_may_have_been_missed(
    environment: Mapping[str, str], cli: Cli, store: Store
) -> None:
    """RESET, by a server that was started after it was told something for the last time."""
    running, address = await serve(cli)
    async with terms(store) as rivals, watching(environment, address) as told:
        await until(lambda: elected(told) == [str(rivals.tokens[0])], WAIT_S)
        running.kill()
        await rivals.change()
        await rivals.change()
        await serve(cli, int(address.rpartition(":")[2]))
        await until(lambda: "RESET" in [message["kind"] for message in told])
        [reset] = [message for message in told if message["kind"] == "RESET"]
        assert reset["token"] == str(rivals.tokens[-1])


async def test_it_speaks_tls(environment: Mapping[str, str], tmp_path: Path) -> None:
    """With the authority that it is told to trust, and no other."""
    reader = ScriptedReader()
    reader.go_on.set()
    (cert, key), (stranger, _) = certificate(tmp_path, "server"), certificate(tmp_path, "stranger")
    async with GrpcServer(reader, port=0, cert=cert, key=key) as server:
        code, out, _ = await run({**environment, "CACERT": str(cert)}, "ask", server.address, ELECTION)
        assert (code, json.loads(out)["id"]) == (0, "one")
        code, out, err = await run({**environment, "CACERT": str(stranger)}, "ask", server.address, ELECTION)
        assert (code, out) == (1, "")
        assert "UNAVAILABLE" in err
