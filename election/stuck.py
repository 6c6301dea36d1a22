"""Tells where a task hangs, for reports of work that does not stop."""

from __future__ import annotations

import asyncio
import sys
import traceback
from types import CodeType, FrameType
from typing import Any

_CALLS = 6
"""How many calls of a thread are told: below the work there are only those of the event loop."""


def where_task(task: asyncio.Future[Any]) -> str:
    """The calls that a suspended task waits in, outermost first, as `function (file:line)`; the text is for people."""
    calls: list[str] = []
    awaited: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    while awaited is not None:
        code: CodeType | None = _first(awaited, "cr_code", "ag_code", "gi_code")
        frame: FrameType | None = _first(awaited, "cr_frame", "ag_frame", "gi_frame")
        if code is not None and frame is not None:
            calls.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
        awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
    return " > ".join(calls) or repr(task)


def where_thread(thread: int) -> str:
    """The innermost calls that a thread is in at present, outermost first; empty when there is no such thread."""
    frame = sys._current_frames().get(thread)
    stack = traceback.extract_stack(frame)[-_CALLS:] if frame is not None else ()
    return " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in stack)


def _first(awaited: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(awaited, name, None)) is not None), None)
