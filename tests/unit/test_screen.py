"""The live view of the demo: what state everything is in, in 80 columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from election.agent_records import Agent, AgentState
from election.breaker import Breaker, BreakerReason
from election.clock import BootClock
from election.dev.screen import Screen, sentence
from election.reader import AgentFilter, Answer, Source
from election.records import Candidate, Leader
from election.token import Token

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOURCE = Source(1, 2, 0.0)


class Shown:
    """A view in which every state occurs."""

    async def leader(self, election: str) -> Answer[Leader | None]:
        leader = Leader(election, "orchestrator-1", "", Token(0, 7), "k", 1, BootClock().wall(), {}, 0, proven=True)
        return Answer(leader, SOURCE)

    async def candidates(self, election: str) -> Answer[tuple[Candidate, ...]]:
        return Answer((Candidate(election, "k", 7, 1, "orchestrator-1"),), SOURCE)

    async def agents(self, chosen: AgentFilter) -> Answer[tuple[Agent, ...]]:
        states = dict(zip("12345", (*AgentState, AgentState.REAPED), strict=True))
        agents = [Agent(f"agent-{number}", state, 5, state_keys=("task-1",)) for number, state in states.items()]
        others = [Agent("another", AgentState.DRAINING, 5), Agent("long-reaped", AgentState.REAPED, 5)]
        return Answer(tuple(agent for agent in (*agents, *others) if chosen.takes(agent)), SOURCE)


def fleet(breaker: Breaker) -> Any:
    def process(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, pid=1234567, running=True)

    return SimpleNamespace(
        view=Shown(),
        breaker=breaker,
        clock=BootClock(),
        cluster=SimpleNamespace(
            version="3.5.30",
            endpoints=["127.0.0.1:2379"],
            members=[SimpleNamespace(name=f"m{number}", pid=1234567, running=True) for number in (1, 2, 3)],
        ),
        grpc_address="127.0.0.1:50051",
        question="election leader demo",
        config=SimpleNamespace(respawn_s=30.0),
        orchestrators=[process(f"orchestrator-{number}") for number in (1, 2, 3)],
        agents=[process(f"agent-{number}") for number in (1, 2, 3, 4, 5, 6)],
        serve=process("serve"),
    )


async def drawn(breaker: Breaker) -> str:
    screen = Screen(fleet(breaker))
    for number in range(7):
        screen.note({"event": "reaped", "agent": f"agent-{number}", "collected": [f"task-{n}" for n in range(30)]})
    console = Console(width=80, height=24, record=True, color_system=None, file=StringIO())
    console.print(await screen.render())
    return console.export_text()


async def test_each_state_of_an_agent_is_shown() -> None:
    """One that was reaped, too, but for strangers: their tombstones would fill the screen for a week."""
    text = await drawn(Breaker())
    for number, state in enumerate((*AgentState, "reaped", "gone"), 1):
        [line] = [line for line in text.splitlines() if f"agent-{number} " in line and "1234567" in line]
        assert f" {state} " in f"{line} ", line
    assert "another" in text
    assert "long-reaped" not in text
    assert "breaker" not in text
    assert max(map(len, text.splitlines())) <= 80


async def test_an_open_breaker_is_shown_with_its_reason() -> None:
    """And until when it is open, and how it is closed."""
    opened = Breaker(True, BreakerReason.NONE_ALIVE, 100, 100, "serve", NOW, NOW + timedelta(seconds=300), 9)
    text = await drawn(opened)
    assert "Breaker open: none alive, 100 of 100 missing; nothing is reaped until 12:05:00\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 24
    held = await drawn(Breaker(True, BreakerReason.OPERATOR, by="me"))
    assert "Breaker open: operator; nothing is reaped until `election breaker close`\n" in held
    assert sentence({"event": "breaker_opened", "reason": "vanished"}) == "the breaker is open: vanished"
