"""Faults that set etcd back: it is restored from a snapshot, and has lost what it acknowledged since."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from election.dev.etcd import find_binary
from election.drill.faults.fault import Fault, Lane, Stage
from election.drill.faults.members import healed
from election.drill.site import Site
from election.drill.vocabulary import Done
from election.epoch import raise_epoch, read_epoch
from election.errors import ConfigError, EtcdError

_OPERATOR = "operator of the drill"
_LOST_S = (0.5, 2.0)
"""How long etcd goes on after the snapshot, besides what it takes to prepare the restored data."""

_BUMP = ("--bump-revision=1000000", "--mark-compacted")
_PROGRAM_S = 30.0
_PATIENCE_S = 20.0


@asynccontextmanager
async def _restore(stage: Stage, *, bumped: bool) -> AsyncGenerator[None]:
    """Without a bump, the operator raises the epoch when it is taken back, and nobody may lead before."""
    site, files = stage.site, stage.site.folder / "restored"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    await _save(site, stage.rng.choice(site.cluster.endpoints), files / "snapshot")
    for member in site.cluster.members:
        await _prepare(site, files, member.name, *(_BUMP if bumped else ()))
    await asyncio.sleep(stage.rng.uniform(*_LOST_S))
    stage.on("all members")
    try:
        async with healed(stage):
            async with stage.set_back(bumped=bumped):
                _swap(site, files)
                # A member answers to a token of later than it knows of only when it has come as far, or never.
                site.control.drop_token()
                await site.heal()
            yield
    finally:
        if not bumped:
            await _raise_epoch(stage)


def _swap(site: Site, files: Path) -> None:
    """Starts all members with the prepared data. No step is left to wait for, so it is done whole or not at all."""
    site.cluster.kill()
    for member in site.cluster.members:
        shutil.rmtree(member.data_dir)
        (files / member.name).rename(member.data_dir)
        member.spawn()


async def _save(site: Site, endpoint: str, file: Path) -> None:
    credentials = site.cluster.credentials
    user = [f"--user={':'.join(credentials)}"] if credentials else []
    await _run(find_binary("etcdctl"), f"--endpoints={endpoint}", *user, "snapshot", "save", file)


async def _prepare(site: Site, files: Path, name: str, *flags: str) -> None:
    """Makes the data of one member from the snapshot. All of them count as a cluster of their own."""
    urls = {member.name: member.peer_url for member in site.cluster.members}
    await _run(
        _restorer(), "snapshot", "restore", files / "snapshot",
        f"--name={name}",
        f"--data-dir={files / name}",
        f"--initial-cluster={','.join(f'{each}={url}' for each, url in urls.items())}",
        f"--initial-advertise-peer-urls={urls[name]}",
        *flags,
    )  # fmt: skip


async def _raise_epoch(stage: Stage) -> None:
    """What `election epoch raise` does, until it is done once."""
    control, keyspace = stage.site.control, stage.keyspace
    before = (await read_epoch(control, keyspace)).epoch
    stage.note(Done.EPOCH_RAISED, epoch=before + 1)
    async with asyncio.timeout(_PATIENCE_S):
        while (await read_epoch(control, keyspace)).epoch == before:
            with suppress(EtcdError):
                await raise_epoch(control, keyspace, by=_OPERATOR)


async def _run(*command: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"ETCDCTL_API": "3"},
    )
    try:
        async with asyncio.timeout(_PROGRAM_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise EtcdError(f"{command[0]} has ended with {process.returncode}: {said.decode(errors='replace')[-500:]}")


# --- whether it can be done ----------------------------------------------------------------------------------


def _restorer() -> Path:
    """What restores snapshots: a program of its own since etcd 3.5."""
    try:
        return find_binary("etcdutl")
    except ConfigError:
        return find_binary("etcdctl")


def _without_programs() -> str:
    try:
        find_binary("etcdctl")
    except ConfigError as error:
        return str(error)
    return ""


def _without_bump() -> str:
    if why := _without_programs():
        return why
    return "" if "--bump-revision" in _flags(_restorer()) else f"{_restorer()} cannot bump the revision"


@cache
def _flags(program: Path) -> str:
    words: Sequence[str | Path] = (program, "snapshot", "restore", "--help")
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=_PROGRAM_S, env={"ETCDCTL_API": "3"}
    ).stdout


RESTORES: tuple[Fault[Stage], ...] = (
    Fault(
        "restore-snapshot",
        "etcd is set back to a snapshot, and its revisions with it",
        Lane.ETCD,
        (1, 4),
        partial(_restore, bumped=False),
        _without_programs,
        ends_drill=True,
    ),
    Fault(
        "restore-snapshot-bumped",
        "etcd is set back to a snapshot, and its revisions go on above all before",
        Lane.ETCD,
        (1, 4),
        partial(_restore, bumped=True),
        _without_bump,
        ends_drill=True,
    ),
)
