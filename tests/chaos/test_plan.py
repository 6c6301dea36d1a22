"""The plan of a drill: the same for the same seed, with every fault in it, and never more than can be undone."""

from __future__ import annotations

import pytest

from election.drill.plan import Action, plan

AGENTS = [f"w{number}" for number in range(1, 31)]


def made(seed: int, rounds: int = 1000) -> list[Action]:
    return plan(seed=seed, rounds=rounds, agents=AGENTS, quiet_every=50, ttl_s=3, grace_s=2)


def test_a_seed_decides_everything() -> None:
    """Two plans of one seed are equal, those of two seeds are not, and a longer one begins like a shorter one."""
    assert made(1) == made(1) != made(2)
    assert made(1, 100) == made(1)[: len(made(1, 100))]


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_is_in_a_thousand_rounds(seed: int) -> None:
    """And a quiet time after every fifty, with nothing left to be undone."""
    actions = made(seed)
    assert [action.round for action in actions if action.round] == list(range(1, 1001))
    names = [action.what for action in actions]
    assert names.count("quiet") == 20
    faults = {action.what for action in actions if action.round}
    assert len(faults) == 21


@pytest.mark.parametrize("seed", range(5))
def test_only_what_lives_is_hurt(seed: int) -> None:
    """Who is killed, paused or leaves is up; who is started is not; and etcd is hurt in one way at a time."""
    up, paused, hurt = set(AGENTS), set[str](), False
    for action in made(seed):
        match action.what:
            case "start":
                assert action.who not in up | paused
                up.add(action.who)
            case "kill" | "leave":
                up.remove(action.who)
            case "pause":
                up.remove(action.who)
                paused.add(action.who)
            case "kill paused":
                paused.remove(action.who)
            case "resume" if action.who in paused:
                paused.remove(action.who)
                up.add(action.who)
            case "kill and return" | "evict" | "second" | "ambush":
                assert action.who in up
            case "member kill" | "member pause" | "quorum loss":
                assert not hurt
                hurt = True
            case "member restart" | "member resume":
                hurt = False
            case "quiet":
                assert not paused
                assert not hurt
