"""What is seen when half of all agents vanish at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from election.drill.checker.agents import agents
from election.drill.checker.verdict import State
from election.drill.history import History
from tests.chaos import breaker

pytestmark = pytest.mark.etcd


async def test_when_half_vanish_nothing_is_reaped_until_it_is_known_why(tmp_path: Path) -> None:
    """They come back, then an operator gives them up, then the hold ends; and the history breaks no promise."""
    seen: list[str] = []
    await breaker.drill(tmp_path, agents=20, hold_s=12, tell=seen.append)
    assert len([line for line in seen if "and nobody else" in line]) == 2
    assert [verdict for verdict in agents(History.load(tmp_path)) if verdict.state is not State.HELD] == []
