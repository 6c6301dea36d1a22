"""What a collector tells is printed, also when it tells more at once than waits to be printed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from election.agent_records import StateEntry, Tombstone
from election.breaker import Breaker, BreakerReason
from election.cli.collect import print_collector
from election.cli.options import Settings
from election.collector import (
    BreakerClosed,
    BreakerOpened,
    Collector,
    CollectorEvent,
    Foreign,
    Reaped,
    ReapFailed,
    Recovered,
    Suspected,
    WouldReap,
)
from election.machine import Transition
from election.published import QUEUE_LIMIT, Published
from election.token import Token

TOMBSTONE = Tombstone("w", 7, None, "c", Token(0, 3), (StateEntry("task", b"x", 5),), part=1)
EVENTS: tuple[CollectorEvent, ...] = (
    Suspected("w", 5.0),
    Recovered("w"),
    Reaped(TOMBSTONE),
    WouldReap(TOMBSTONE),
    ReapFailed("w", "too large"),
    BreakerOpened(Breaker(True, BreakerReason.VANISHED, 5, 8, "c")),
    BreakerClosed(Breaker(False, BreakerReason.RECOVERED, by="c")),
    Foreign(("a/b",)),
)


class Talker:
    """A collector that only talks."""

    def __init__(self) -> None:
        self.said: Published[CollectorEvent | None] = Published(None)
        self.candidate = SimpleNamespace(id="c")

    def events(self) -> AsyncGenerator[CollectorEvent | None]:
        return self.said.values()

    async def transitions(self) -> AsyncGenerator[Transition]:
        await asyncio.Event().wait()
        yield cast("Any", None)


async def printed(batches: list[list[CollectorEvent]], capsys: pytest.CaptureFixture[str], output: str) -> str:
    """What is printed of what is said, each batch at once."""
    talker = Talker()
    settings = Settings("127.0.0.1:1", "default", None, None, output)
    printing = asyncio.create_task(print_collector(settings, cast("Collector", talker)))
    for _ in range(10):  # until it listens
        await asyncio.sleep(0)
    for batch in batches:
        for event in batch:
            talker.said.set(event)
        for _ in range(10):
            await asyncio.sleep(0)
    printing.cancel()
    with suppress(asyncio.CancelledError):
        await printing
    return capsys.readouterr().out


async def test_each_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With the agent it is about, or what the breaker is."""
    lines = [json.loads(line) for line in (await printed([list(EVENTS)], capsys, "json")).splitlines()]
    assert [line["event"] for line in lines] == [
        *("suspected", "recovered", "reaped", "would_reap", "reap_failed"),
        *("breaker_opened", "breaker_closed", "foreign"),
    ]
    assert all(line["agent"] == "w" for line in lines[:5])
    assert (lines[2]["incarnation"], lines[2]["part"], lines[2]["collected"]) == (7, 1, ["task"])
    assert (lines[5]["open"], lines[5]["missing"], lines[6]["reason"]) == (True, 5, "recovered")
    assert lines[7]["keys"] == ["a/b"]


async def test_each_event_is_one_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """No Python object among them."""
    lines = (await printed([list(EVENTS)], capsys, "table")).splitlines()
    assert len(lines) == len(EVENTS)
    assert "breaker_opened: vanished, 5 of 8 agents missing by c" in lines[5]
    assert not any("<" in line or "[" in line or "(" in line for line in lines), lines


async def test_more_events_than_wait_to_be_printed_do_not_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    """That some are left out is said, and what comes later is printed."""
    many: list[CollectorEvent] = [Suspected(f"w{number}", 5.0) for number in range(2 * QUEUE_LIMIT)]
    lines = (await printed([many, [Recovered("last")]], capsys, "json")).splitlines()
    told = [json.loads(line) for line in lines]
    assert "skipped" in [line["event"] for line in told]
    assert told[-1] == {"event": "recovered", "agent": "last"}
