"""Processes that share one virtual loop, and can each be stopped, suspended and killed as a whole.

Everything that a process does runs in a context that names it: its tasks, and what they schedule. A stopped process
runs nothing at all. What comes meanwhile, from the network or by its timers, waits, and is run when it goes on, as
after SIGSTOP and SIGCONT. What the network and etcd do is of no process, and goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.fake.clock import VirtualLoop

T = TypeVar("T")
Callback = Callable[..., object]

_OF: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Call:
    """Something that a process is to run, soon or by a timer."""

    __slots__ = ("_args", "_callback", "_process", "_slept_s", "handle", "is_timer")

    def __init__(self, process: Process, callback: Callback, args: tuple[object, ...], *, is_timer: bool) -> None:
        self._process = process
        self._callback = callback
        self._args = args
        self._slept_s = process.slept_s
        self.is_timer = is_timer
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        process = self._process
        if process.is_stopped:
            process.put_off(self)
        elif self.is_timer and process.slept_s > self._slept_s:  # timers stand still while the machine sleeps
            later_s, self._slept_s = process.slept_s - self._slept_s, process.slept_s
            asyncio.get_running_loop().call_later(later_s, self.run)
        else:
            self._callback(*self._args)

    def run(self) -> None:
        """Runs it after all, unless it was cancelled meanwhile."""
        if self.handle is None or not self.handle.cancelled():
            self()


class Process:
    """One process on a machine of its own."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.is_stopped = False
        self.is_killed = False
        self.slept_s = 0.0
        """For how long the machine has been suspended: its timers have not counted that."""
        self._rng = rng
        self._stops = 0
        self._put_off: list[tuple[_Call, contextvars.Context]] = []
        self._context = contextvars.copy_context()
        self._context.run(_OF.set, self)

    def run(self, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts the process."""
        return asyncio.get_running_loop().create_task(main, name=self.name, context=self._context)

    def call(self, function: Callable[[], object]) -> None:
        """Lets it call something at once."""
        self._context.run(function)

    def stop(self, for_s: float, *, suspended: bool = False) -> None:
        """Stops it for a while; with `suspended` the whole machine, whose timers stand still as well."""
        self.is_stopped = True
        self._stops += 1
        asyncio.get_running_loop().call_later(
            for_s, self._go_on, self._stops, for_s if suspended else 0.0, context=contextvars.Context()
        )

    def kill(self) -> None:
        """It runs nothing any more."""
        self.is_killed = self.is_stopped = True

    def revive(self) -> None:
        """For the end of a run: what is left of it can be cancelled."""
        self.is_killed = self.is_stopped = False
        self._stops += 1
        self._run_put_off()

    def put_off(self, call: _Call) -> None:
        """Called by what came while it was stopped."""
        self._put_off.append((call, contextvars.copy_context()))

    def _go_on(self, stop: int, slept_s: float) -> None:
        self.slept_s += slept_s
        if stop == self._stops and not self.is_killed:
            self.is_stopped = False
            self._run_put_off()

    def _run_put_off(self) -> None:
        put_off, self._put_off = self._put_off, []
        if self._rng.random() < 0.5:  # whether sockets or timers are looked at first
            put_off.sort(key=lambda each: each[0].is_timer)
        loop = asyncio.get_running_loop()
        for call, context in put_off:
            asyncio.SelectorEventLoop.call_soon(loop, call.run, context=context)  # type: ignore[arg-type]


class _NoSelector(selectors.DefaultSelector):
    """Never looks at a socket: there is none. It tells the loop how long it would have waited."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "no task can go on, and no timer is set"
        if timeout > 0:
            self._jump(timeout)
        return []


class ProcessLoop(VirtualLoop):
    """A virtual loop in which whatever belongs to a process that is stopped waits until it goes on."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        asyncio.SelectorEventLoop.__init__(self, _NoSelector(self._jump))
        self._tasks = 0
        self.set_task_factory(self._task)

    def call_soon(
        self, callback: Callback, *args: object, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As any loop, but for processes that are stopped."""
        process = _OF.get() if context is None else context.get(_OF)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        call = _Call(process, callback, args, is_timer=False)
        call.handle = handle = super().call_soon(call, context=context)
        return handle

    def call_at(
        self, when: float, callback: Callback, *args: object, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As any loop, but for processes that are stopped, and machines that were suspended."""
        process = _OF.get() if context is None else context.get(_OF)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        call = _Call(process, callback, args, is_timer=True)
        call.handle = handle = super().call_at(when, call, context=context)
        return handle

    def _task(self, _: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any) -> asyncio.Task[Any]:
        self._tasks += 1
        task = _Task(coroutine, loop=self, **settings)
        task.number = self._tasks
        return task


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address, so that a run can be repeated."""

    number = 0

    def __hash__(self) -> int:
        return self.number


def run_processes(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, that is of no process, in a loop of its own."""
    with asyncio.Runner(loop_factory=ProcessLoop) as runner:
        return runner.run(main)
