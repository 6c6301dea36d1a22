"""What networks do between two ends: hold traffic back, one way or both, and delay it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Way:
    """One direction of a link: what is sent flows, takes its time, or is held back."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._stuck: list[Callable[[], None]] = []

    def hold(self) -> None:
        """Nothing arrives any more, from this moment on; what was under way is held, too."""
        self._flows.clear()

    def release(self) -> None:
        """What was held arrives now, late and in order, and everything else after it."""
        self._flows.set()
        stuck, self._stuck = self._stuck, []
        for go_on in stuck:
            go_on()

    def when_released(self, go_on: Callable[[], None]) -> None:
        """Calls it once, when the way is released; it is held now."""
        self._stuck.append(go_on)

    @property
    def held(self) -> bool:
        """Whether nothing arrives."""
        return not self._flows.is_set()

    async def passed(self) -> None:
        """Returns when what was sent at the call arrives."""
        await asyncio.sleep(self.delay_s)
        while self.held:
            await self._flows.wait()


class Link:
    """The two directions between who dials and who is dialled. Connections may share it, as they do a cable."""

    def __init__(self, requests: Way | None = None, answers: Way | None = None) -> None:
        self.requests = requests or Way()
        self.answers = answers or Way()

    def cut(self) -> None:
        """Holds back both directions."""
        self.hold_requests()
        self.hold_answers()

    def hold_requests(self) -> None:
        """The server hears nothing, and is heard."""
        self.requests.hold()

    def hold_answers(self) -> None:
        """The server hears everything, and is not heard."""
        self.answers.hold()

    def slow(self, delay_s: float) -> None:
        """Everything that is sent from now on arrives this much later, in each direction."""
        self.requests.delay_s = self.answers.delay_s = delay_s

    def mend(self) -> None:
        """Everything flows again; what was held arrives late, as TCP sends again what nobody has confirmed."""
        self.slow(0.0)
        self.requests.release()
        self.answers.release()

    async def connected(self) -> None:
        """Returns when a handshake is over, for which both directions have to work."""
        while self.requests.held or self.answers.held:
            await self.requests.passed()
            await self.answers.passed()
