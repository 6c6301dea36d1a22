"""How much one caller may ask of a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from election.clock import Clock
from election.errors import ConfigError, TooManyRequests, TooManyStreams
from election.server.access.caller import Caller

_BURST_S = 1.0
"""How much of a caller's rate may come at once."""

_STREAM_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """How much one identity may ask for, None: without end; how large a message may be, and how long a call may take.

    The deadline is for calls without streams whose caller has named none.
    """

    requests_per_s: float | None = None
    streams: int | None = None
    message_bytes: int = 128 * 1024  # twice the largest value of a state
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        if self.requests_per_s is not None and not 1 <= self.requests_per_s <= 1e9:
            raise ConfigError(f"the rate of requests has to be 1 or more in a second, not {self.requests_per_s:g}")
        if self.streams is not None and self.streams < 1:
            raise ConfigError(f"the number of streams has to be 1 or more, not {self.streams}")
        if not 1024 <= self.message_bytes < 2**31:
            raise ConfigError(
                f"messages have to be of 1024 bytes or more, and less than 2 GiB, not {self.message_bytes}"
            )
        if not 0 < self.deadline_s <= 1e9:
            raise ConfigError(f"the deadline has to be more than 0, not {self.deadline_s:g}")


class Limits:
    """Counts requests and streams of each identity, by the text that stands for all of the caller's.

    The rate is a token bucket: what a caller did not use for up to a second, it may use at once. Of callers that have
    used nothing for that long nothing is remembered, and never more than `remembered` of the others: beyond that, the
    one that was heard first starts anew.
    """

    def __init__(self, config: LimitsConfig, clock: Clock, *, remembered: int = 10_000) -> None:
        self._config = config
        self._clock = clock
        self._remembered = remembered
        self._full_at_s: dict[str, float] = {}  # when the bucket will be full again
        self._streams: dict[str, int] = {}

    def request(self, caller: Caller) -> None:
        """Counts a request.

        Raises:
            TooManyRequests: when the caller has used up its rate; the request does not count then.
        """
        rate = self._config.requests_per_s
        if rate is None:
            return
        who = caller.who
        now_s = self._clock.now_s()
        full_at_s = max(self._full_at_s.get(who, 0.0), now_s) + 1 / rate
        if full_at_s > now_s + _BURST_S + 1e-9:
            raise TooManyRequests(
                f"{who} has made more than {rate:g} requests in a second: ask less often",
                retry_after_s=full_at_s - now_s - _BURST_S,
            )
        self._full_at_s[who] = full_at_s
        if len(self._full_at_s) > self._remembered:
            self._forget(now_s)

    @contextmanager
    def stream(self, caller: Caller) -> Iterator[None]:
        """Counts a stream inside the block.

        Raises:
            TooManyStreams: when the caller has as many as it may have.
        """
        who = caller.who
        most, open_now = self._config.streams, self._streams.get(who, 0)
        if most is not None and open_now >= most:
            raise TooManyStreams(
                f"{who} has {open_now} streams open, and may have {most}: end one first",
                retry_after_s=_STREAM_RETRY_S,
            )
        self._streams[who] = open_now + 1
        try:
            yield
        finally:
            self._streams[who] -= 1
            if not self._streams[who]:
                del self._streams[who]

    def _forget(self, now_s: float) -> None:
        """Forgets whose bucket is full, which loses nothing; then the oldest, so that this is not done each time."""
        kept = [(who, full_at_s) for who, full_at_s in self._full_at_s.items() if full_at_s > now_s]
        room = self._remembered * 9 // 10
        self._full_at_s = dict(kept[-room:])
