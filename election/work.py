"""Runs the work of a term: it begins when the term does, and the key is released only when it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from election import leadership
from election.errors import LossReason
from election.leadership import Leading, Leaving
from election.machine import Machine
from election.stuck import where_task

logger = logging.getLogger("election")

_UNPROTECTED = "another leader can start while it runs, and only fencing protects from it now"
_WAITED_FOR = "its successor waits for it, and this process has to be killed if it never ends"


async def to_the_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs something that must not be broken off; who is cancelled meanwhile hears of it when it has ended."""
    running = asyncio.create_task(coroutine)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            cancelled = True
    running.result()
    if cancelled:
        raise asyncio.CancelledError


async def run_work(
    machine: Machine, work: Awaitable[Any], *, margin_s: float, who: str, where: Callable[[], str] | None = None
) -> None:
    """Runs the work until it ends or the term is lost; joined when this returns, even when cancelled.

    `where` tells where the work hangs when it does not stop in time; by default, where its coroutine waits.
    """
    working = asyncio.ensure_future(work)
    lost = asyncio.create_task(machine.until(lambda state: not isinstance(state, Leading)))
    # Once, and not by this task, which would hear of the loss some turns of the loop later.
    lost.add_done_callback(lambda _: working.cancel())
    try:
        await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
        _note_end(machine, working, who)
    finally:
        machine.stop(LossReason.CLOSED)  # only when cancelled
        lost.cancel()
        await _join(machine, working, margin_s, who, where or (lambda: where_task(working)))


def _note_end(machine: Machine, working: asyncio.Future[Any], who: str) -> None:
    if not working.done():
        return
    now_s = machine.clock.now_s()
    if not working.cancelled() and (error := working.exception()):
        logger.error("%s: the work failed", who, exc_info=error)
        machine.apply(leadership.WorkFailed(now_s, error))
    else:
        machine.apply(leadership.WorkReturned(now_s))


async def _join(
    machine: Machine, working: asyncio.Future[Any], margin_s: float, who: str, where: Callable[[], str]
) -> None:
    """Waits for the end of the cancelled work, however long that takes; says so when it is past the deadline."""
    loss = machine.state
    assert isinstance(loss, Leaving)
    cancelled = False
    reported = False
    # At its deadline the work still has the margin, half of which is kept for clocks that drift.
    deadline_s = loss.noticed_at_s + max(loss.margin_s, margin_s / 2)
    while not working.done():
        left_s = max(deadline_s - machine.clock.now_s(), 0)
        try:
            await asyncio.wait({working}, timeout=None if reported else left_s)
        except asyncio.CancelledError:
            cancelled = True
            continue
        if not working.done() and not reported:
            reported = True
            logger.critical(
                "%s: the work has not stopped by its deadline (token %s, lost: %s): %s; it hangs in %s",
                who,
                loss.token,
                loss.reason.value,
                _UNPROTECTED if loss.reason.takes_the_key else _WAITED_FOR,
                where(),
            )
    with suppress(asyncio.CancelledError, Exception):
        working.result()
    if cancelled:
        raise asyncio.CancelledError
