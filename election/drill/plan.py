"""What is done in a drill, and when: decided before it begins, by the seed alone."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_GAP_S = (0.1, 0.45)
_PHASE = 25
"""After so many rounds it may change whether etcd and the collectors are hurt as well, or agents alone."""
_STORMS = 0.65
COLLECTORS = 2
"""How many run at first."""
_MOST_COLLECTORS = 3
_LEASE_S = 12
"""For so long a collector sleeps that is to lose its lease, which is one of 10 s."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do, `wait_s` after the one before. `round` is 0 for what undoes an earlier one."""

    round: int
    wait_s: float
    what: str
    who: str = ""
    more: dict[str, Any] = field(default_factory=dict)


def plan(
    *, seed: int, rounds: int, agents: Sequence[str], quiet_every: int, ttl_s: float, grace_s: float
) -> list[Action]:
    """All actions of a drill, with a quiet time after every `quiet_every` rounds and at the end."""
    planner = _Planner(random.Random(seed), list(agents), ttl_s, grace_s)
    actions: list[Action] = []
    for number in range(1, rounds + 1):
        actions += planner.round(number)
        if number % quiet_every == 0 or number == rounds:
            actions += planner.quiet()
    return actions


class _Planner:
    """Who lives, is stopped or is gone when all goes as planned; times are those of the plan."""

    def __init__(self, rng: random.Random, agents: list[str], ttl_s: float, grace_s: float) -> None:
        self._rng = rng
        self._ttl_s, self._grace_s = ttl_s, grace_s
        self._up, self._down, self._paused = agents, list[str](), list[str]()
        self._collectors = COLLECTORS
        self._etcd_is_well = True
        self._storm = False
        self._now_s = 0.0
        self._strangers = 0
        self._later: list[tuple[float, int, Action, Callable[[], None]]] = []
        self._count = 0

    # --- one round -------------------------------------------------------------------------------------------

    def round(self, number: int) -> Iterator[Action]:
        """One fault, and what is due before it."""
        if number % _PHASE == 1:
            self._storm = self._rng.random() < _STORMS
        wait_s = self._rng.uniform(*_GAP_S)
        yield from self._due(self._now_s + wait_s)
        faults = self._faults()
        [fault] = self._rng.choices(list(faults), weights=[weight for weight, _ in faults.values()])
        _, do = faults[fault]
        who, more = do()
        yield self._at(self._now_s + wait_s, Action(number, 0, fault, who, more))

    def quiet(self) -> Iterator[Action]:
        """Undoes at once what is still to be undone, and waits until the bounds can be checked."""
        yield from (replace(action, wait_s=0) for action in self._due(float("inf")))
        yield Action(0, 0, "quiet")
        self._collectors = max(self._collectors, 1)

    def _due(self, until_s: float) -> Iterator[Action]:
        while self._later and self._later[0][0] <= until_s:
            at_s, _, action, undone = heapq.heappop(self._later)
            undone()
            yield self._at(at_s, action)

    def _at(self, at_s: float, action: Action) -> Action:
        wait_s = max(at_s - self._now_s, 0.0)
        self._now_s = max(at_s, self._now_s)
        return Action(action.round, round(wait_s, 3), action.what, action.who, action.more)

    def _after(self, wait_s: float, what: str, who: str, undone: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._later, (self._now_s + wait_s, self._count, Action(0, 0, what, who), undone))

    def _faults(self) -> dict[str, tuple[float, Callable[[], tuple[str, dict[str, Any]]]]]:
        """What can be done at this moment, and how likely it is."""
        some_up, some_down = len(self._up) > 2, bool(self._down)
        fewer = 4 + 3 * len(self._down) if some_down else 0
        faults: dict[str, tuple[float, Callable[[], tuple[str, dict[str, Any]]]]] = {
            "start": (fewer, self._start),
            "kill": (14 * some_up, self._kill),
            "kill and return": (6 * some_up, self._kill_and_return),
            "pause": (14 * some_up, self._pause),
            "kill paused": (3 * bool(self._paused), self._kill_paused),
            "leave": (10 * some_up, self._leave),
            "second": (3 * some_up, self._second),
            "evict": (4 * some_up, self._one_up),
            "drain": (3 * some_up, self._one_up),
            "ask to reap": (4 * some_down, self._one_down),
            "stranger": (5, self._stranger),
            "compact": (3, self._nobody),
        }
        if self._storm:
            some = self._collectors > 0
            faults |= {
                "ambush": (8 * some_up * some, self._ambush),
                "collector start": (9 * (self._collectors < _MOST_COLLECTORS), self._collector_start),
                "collector kill": (7 * (some), self._collector_gone),
                "collector leave": (4 * (some), self._collector_gone),
                "collector pause": (6 * (some), self._collector_pause),
                "move etcd leader": (7 * self._etcd_is_well, self._nobody),
                "member kill": (7 * self._etcd_is_well, self._member_down),
                "member pause": (3 * self._etcd_is_well, self._member_paused),
                "quorum loss": (3 * self._etcd_is_well, self._quorum_lost),
            }
        return faults

    # --- agents ----------------------------------------------------------------------------------------------

    def _take(self, among: list[str]) -> str:
        return among.pop(self._rng.randrange(len(among)))

    def _start(self) -> tuple[str, dict[str, Any]]:
        self._up.append(agent := self._take(self._down))
        return agent, {"keep_state": self._rng.random() < 0.5}

    def _kill(self) -> tuple[str, dict[str, Any]]:
        self._down.append(agent := self._take(self._up))
        return agent, {}

    def _kill_and_return(self) -> tuple[str, dict[str, Any]]:
        return self._rng.choice(self._up), {
            "keep_state": self._rng.random() < 0.5,
            "takeover": self._rng.random() < 0.5,
        }

    def _pause(self) -> tuple[str, dict[str, Any]]:
        """Shorter than the TTL, about the grace, or longer than both."""
        agent = self._take(self._up)
        self._paused.append(agent)
        whole_s = self._ttl_s + self._grace_s
        for_s = self._rng.choice((self._rng.uniform(0.3, self._ttl_s), self._rng.uniform(self._ttl_s, 2 * whole_s)))

        def resumed() -> None:
            if agent in self._paused:
                self._paused.remove(agent)
                self._up.append(agent)

        self._after(for_s, "resume", agent, resumed)
        return agent, {"for_s": round(for_s, 2)}

    def _kill_paused(self) -> tuple[str, dict[str, Any]]:
        self._down.append(agent := self._take(self._paused))
        return agent, {}

    def _leave(self) -> tuple[str, dict[str, Any]]:
        self._down.append(agent := self._take(self._up))
        return agent, {}

    def _second(self) -> tuple[str, dict[str, Any]]:
        agent = self._rng.choice(self._up)
        self._after(self._rng.uniform(0.8, 4.0), "end second", agent, lambda: None)
        return agent, {"takeover": self._rng.random() < 0.5}

    def _one_up(self) -> tuple[str, dict[str, Any]]:
        return self._rng.choice(self._up), {}

    def _one_down(self) -> tuple[str, dict[str, Any]]:
        return self._down[-1], {}

    def _stranger(self) -> tuple[str, dict[str, Any]]:
        """State of an agent that never lived, or something new in the state of one that is gone."""
        if self._down and self._rng.random() < 0.3:
            return self._rng.choice(self._down), {}
        if not self._strangers or self._rng.random() < 0.7:
            self._strangers += 1
        return f"s{self._rng.randint(max(self._strangers - 5, 1), self._strangers)}", {}

    # --- collectors and etcd -----------------------------------------------------------------------------------

    def _nobody(self) -> tuple[str, dict[str, Any]]:
        return "", {}

    def _ambush(self) -> tuple[str, dict[str, Any]]:
        longer_s = self._rng.choice((0, 0, 0, 0, _LEASE_S))
        return self._rng.choice(self._up), {"again": self._rng.random() < 0.5, "longer_s": longer_s}

    def _collector_start(self) -> tuple[str, dict[str, Any]]:
        self._collectors += 1
        return "", {}

    def _collector_gone(self) -> tuple[str, dict[str, Any]]:
        self._collectors -= 1
        return "", {}

    def _collector_pause(self) -> tuple[str, dict[str, Any]]:
        for_s = self._rng.choice((self._rng.uniform(0.3, 3.0), self._rng.uniform(5.0, 15.0)))
        self._after(for_s, "collector resume", "", lambda: None)
        return "", {}

    def _member_down(self) -> tuple[str, dict[str, Any]]:
        return self._hurt("member restart", self._rng.uniform(0.5, 12.0))

    def _member_paused(self) -> tuple[str, dict[str, Any]]:
        return self._hurt("member resume", self._rng.uniform(0.5, 6.0))

    def _quorum_lost(self) -> tuple[str, dict[str, Any]]:
        return self._hurt("member restart", self._rng.uniform(0.5, 6.0))

    def _hurt(self, undo: str, for_s: float) -> tuple[str, dict[str, Any]]:
        self._etcd_is_well = False

        def well() -> None:
            self._etcd_is_well = True

        self._after(for_s, undo, "", well)
        return self._rng.choice(("leader", "follower")), {"for_s": round(for_s, 2)}
