"""TLS files that are replaced: when they are read again, and what happens to the channels before."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from election.channels import Line
from election.config import TlsConfig
from election.credentials import Credentials
from election.errors import ConfigError


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        """Seconds."""
        return self.at_s

    async def sleep_s(self, duration_s: float) -> None:
        """Nobody sleeps here."""
        raise NotImplementedError

    def wall(self) -> datetime:
        """For people."""
        return datetime(2026, 1, 1, tzinfo=UTC)


class Files:
    """Three files of one line each; those whose lines differ do not fit together."""

    def __init__(self, folder: Path) -> None:
        self.tls = TlsConfig(folder / "ca", folder / "cert", folder / "key")
        self.clock = HandClock()
        self.reads = 0
        self.while_reading: Callable[[], None] = lambda: None
        for file in self.paths:
            file.write_text("one")
        self.credentials = Credentials(self.tls, self.clock, read=self._read)

    @property
    def paths(self) -> list[Path]:
        return [file for file in (self.tls.cacert, self.tls.cert, self.tls.key) if file]

    def now(self, after_s: float = 1.0) -> str:
        """What is in use after a while."""
        self.clock.at_s += after_s
        return str(self.credentials.now())

    def _read(self, tls: TlsConfig) -> grpc.ChannelCredentials:
        self.reads += 1
        try:
            texts = [file.read_text() for file in self.paths]
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}") from None
        self.while_reading()
        if len(set(texts)) > 1:
            raise ConfigError(f"{' '.join(texts)} do not fit together")
        return cast("grpc.ChannelCredentials", texts[0])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Files that fit, and credentials that have read them."""
    return Files(tmp_path)


def test_files_that_stay_as_they_are_are_read_once(files: Files) -> None:
    """A look at them is a stat, and the credentials are the same object."""
    first = files.credentials.now()
    for _ in range(3):
        assert files.now() == "one"
    assert files.credentials.now() is first
    assert files.reads == 1


def test_files_are_looked_at_once_a_second_at_most(files: Files) -> None:
    """Asking more often changes nothing before the second is over."""
    assert files.now() == "one"
    for file in files.paths:
        file.write_text("second")
    assert [files.now(0.3), files.now(0.3), files.now(0.3)] == ["one"] * 3
    assert files.now(0.2) == "second"


def test_files_that_cannot_be_used_change_nothing_and_are_reported_once(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """Until they change again to something good; another fault is another report."""
    first = files.credentials.now()
    files.paths[1].write_text("half")
    for _ in range(3):
        assert files.now() == "one"
    files.paths[2].unlink()
    for _ in range(3):
        assert files.now() == "one"
    assert files.credentials.now() is first
    assert files.reads == 3  # not again while nothing changes
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the TLS files have changed, and those before stay in use: one half one do not fit together",
        f"the TLS files have changed, and those before stay in use: cannot read {files.tls.key}",
    ]
    for file in files.paths:
        file.write_text("second")
    assert files.now() == "second"


def test_files_that_change_while_they_are_read_are_read_again(files: Files) -> None:
    """What was read may be of both versions, and is not used though it seems to fit; nothing is reported for it."""

    def replace() -> None:
        files.while_reading = lambda: None
        files.paths[2].write_text("third and last")

    for file in files.paths:
        file.write_text("second")
    files.while_reading = replace
    assert files.now() == "one"
    for file in files.paths[:2]:
        file.write_text("third and last")
    assert files.now() == "third and last"


def test_a_link_that_is_swapped_is_a_change(tmp_path: Path) -> None:
    """Kubernetes mounts a folder of links through one link, and swaps that: size and time may be the same."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
    files = Files(tmp_path / "v1")
    for name in ("ca", "cert", "key"):
        other = tmp_path / "v2" / name
        other.write_text("two")
        was = (tmp_path / "v1" / name).stat()
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    (tmp_path / "data").symlink_to("v1")
    linked = TlsConfig(tmp_path / "data/ca", tmp_path / "data/cert", tmp_path / "data/key")
    files.tls, files.credentials = linked, Credentials(linked, files.clock, read=files._read)
    assert files.now() == "one"
    (tmp_path / "swapped").symlink_to("v2")
    (tmp_path / "swapped").rename(tmp_path / "data")
    assert files.now() == "two"


def test_files_that_cannot_be_used_at_the_beginning_are_an_error(tmp_path: Path) -> None:
    """There is nothing to go on with."""
    files = Files(tmp_path)
    files.paths[0].write_text("other")
    with pytest.raises(ConfigError, match="do not fit"):
        Credentials(files.tls, files.clock, read=files._read)


# --- what becomes of a channel that was replaced -----------------------------------------------------------------


class Channel:
    """A channel that can be closed."""

    closed = False

    async def close(self) -> None:
        """Notes it."""
        self.closed = True


class Call:
    """A call that ends when the test says so."""

    def __init__(self, line: Line) -> None:
        self._tell: list[Callable[[Any], None]] = []
        line.carry(cast("grpc.aio.Call", self))

    def add_done_callback(self, tell: Callable[[Any], None]) -> None:
        """As grpc.aio has it."""
        self._tell.append(tell)

    async def end(self) -> None:
        """Ends it, and lets happen what follows from it."""
        for tell in self._tell:
            tell(self)
        await asyncio.sleep(0)


async def test_a_replaced_channel_is_closed_with_its_last_call() -> None:
    """No call on it is ever cut short."""
    channel = Channel()
    line = Line(cast("grpc.aio.Channel", channel))
    first, second = Call(line), Call(line)
    line.retire()
    await first.end()
    third = Call(line)  # somebody had taken the line before it was replaced
    await second.end()
    assert not channel.closed
    await third.end()
    assert channel.closed
    assert line.is_closed


async def test_a_channel_in_use_stays_open_without_calls() -> None:
    """Only one that was replaced is closed, and one without calls at once."""
    channel = Channel()
    line = Line(cast("grpc.aio.Channel", channel))
    await Call(line).end()
    assert not channel.closed
    line.retire()
    await asyncio.sleep(0)
    assert channel.closed
