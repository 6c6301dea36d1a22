"""Half of the agents vanish at once: a short version of the drill of the breaker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.breaker import drill
from tests.chaos.checker import check
from tests.chaos.history import History, Settings

pytestmark = pytest.mark.etcd


async def test_when_half_of_them_vanish_nothing_is_reaped_until_it_is_known_why(tmp_path: Path) -> None:
    """They come back, then an operator gives them up, then the hold ends; and the history breaks no promise."""
    settings = Settings("drill", seed=0, ttl_s=3, grace_s=3, reconcile_s=5)
    seen = await drill(tmp_path, settings, agents=20, hold_s=9, tell=lambda _: None)
    assert len([line for line in seen if "and nobody else" in line]) == 2
    assert [str(violation) for violation in check(History.load(tmp_path))] == []
