"""Programs that are bound to the life of something, as real processes: they end in time, and nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from election.clock import BootClock
from election.dev.parent import bound_to_this_process
from election.errors import ConfigError
from election.supervisor import CannotRun, Ended, Program, find, running

CLOCK = BootClock()
FOREVER = "while :; do sleep 0.05; done"
LATE_S = 5.0
"""What starting and noticing may take on a busy machine."""


@pytest.fixture
def mark() -> str:
    """In the environment of all processes of one test, to find them by."""
    return f"mark-{secrets.token_hex(8)}"


def marked(mark: str) -> list[int]:
    """The processes that have the mark and are no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def signal_masks(process: Path) -> list[int]:
    """Those that are blocked, and those that are ignored, as /proc tells them."""
    lines = [line.split() for line in process.read_text().splitlines() if line.startswith(("SigBlk:", "SigIgn:"))]
    return [int(mask, 16) for _, mask in lines]


def own_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def until(holds: Callable[[], bool | int], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


async def over(program: Program) -> Ended:
    """How the program ended, which must not take long any more."""
    return await asyncio.wait_for(program.ended(), 30)


async def nothing_left(mark: str, timeout_s: float = 20.0) -> None:
    await until(lambda: not marked(mark), timeout_s)


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("kill -INT $$", 130)],
)
async def test_the_exit_code_is_that_of_a_shell(script: str, code: int) -> None:
    """128 + n for signal n."""
    async with running(sh(script)) as program:
        ended = await over(program)
    assert (ended.code, ended.stopped) == (code, False)


async def test_a_program_has_the_environment_and_what_is_added(tmp_path: Path) -> None:
    """And nothing of Python's own: no signal is ignored or blocked that was not before."""
    script = f'echo "$PATH|$EXTRA" > {tmp_path}/env; grep -E "Sig(Ign|Blk)" /proc/self/status > {tmp_path}/signals'
    async with running(sh(script), env={"EXTRA": "a b"}) as program:
        assert (await over(program)).code == 0
    assert (tmp_path / "env").read_text() == f"{os.environ['PATH']}|a b\n"
    pythons = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    own = [mask & ~pythons for mask in signal_masks(Path("/proc/self/status"))]
    for mask, inherited in zip(signal_masks(tmp_path / "signals"), own, strict=True):
        assert mask & ~inherited == 0, f"{mask:x}, {inherited:x}"


async def test_stdin_stdout_and_stderr_are_inherited() -> None:
    """All three; and the program ends when its stdin does."""
    process = await driver("async with running(['sh', '-c', 'cat; echo err >&2']) as p: print((await p.ended()).code)")
    out, err = await asyncio.wait_for(process.communicate(b"in\n"), 30)
    assert (out, err) == (b"in\n0\n", b"err\n")


async def driver(body: str, **environment: str) -> asyncio.subprocess.Process:
    """A process that supervises, as the body of a coroutine says; to be stopped and killed."""
    program = (
        "import asyncio, sys, time\nfrom election.supervisor import running\n"
        f"async def main():\n    {body}\nasyncio.run(main())"
    )
    return await asyncio.create_subprocess_exec(
        *bound_to_this_process((sys.executable, "-c", program)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip


async def test_a_program_that_is_stopped_can_end_in_order(mark: str, tmp_path: Path) -> None:
    """It gets SIGTERM, and is told from one that ended by itself."""
    ready = tmp_path / "ready"
    async with running(sh(f"trap 'exit 5' TERM; touch {ready}; {FOREVER}"), env={"MARK": mark}) as program:
        await until(ready.exists)
        program.stop()
        ended = await over(program)
    assert (ended.code, ended.stopped) == (5, True)
    await nothing_left(mark)


async def test_a_program_that_does_not_stop_is_killed(mark: str, tmp_path: Path) -> None:
    """After `stop_s`, and not before."""
    ready = tmp_path / "ready"
    async with running(sh(f"trap '' TERM; touch {ready}; {FOREVER}"), env={"MARK": mark}, stop_s=1) as program:
        await until(ready.exists)
        began_at_s = time.monotonic()
        program.stop()
        program.stop()
        ended = await over(program)
    assert 1 <= time.monotonic() - began_at_s < 1 + LATE_S
    assert (ended.code, ended.stopped) == (137, True)
    await nothing_left(mark)


async def test_leaving_the_block_stops_the_program(mark: str, tmp_path: Path) -> None:
    """In order; when that is cancelled, at once."""
    ready, told = tmp_path / "ready", tmp_path / "told"
    async with running(sh(f"trap 'touch {told}; exit' TERM; touch {ready}; {FOREVER}"), env={"MARK": mark}):
        await until(ready.exists)
    assert told.exists()
    assert marked(mark) == []

    async def run() -> None:
        async with running(sh(f"trap '' TERM; {FOREVER}"), env={"MARK": mark}, stop_s=60) as program:
            await over(program)

    task = asyncio.create_task(run())
    await until(lambda: len(marked(mark)) > 1)
    for _ in range(2):  # the second time while it is being stopped
        task.cancel()
        await asyncio.sleep(0.2)
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left(mark)


async def test_a_stop_right_after_the_start_is_not_lost(mark: str) -> None:
    """Signals that come while the program is being started wait for it."""
    for _ in range(5):
        began_at_s = time.monotonic()
        async with running(("sleep", "1000"), env={"MARK": mark}, stop_s=60) as program:
            program.stop()
            assert (await over(program)).code == 143
        assert time.monotonic() - began_at_s < LATE_S


async def test_everything_that_a_program_has_started_ends_with_it(mark: str) -> None:
    """What runs in its group gets SIGTERM; what has made itself a session of its own is killed."""
    script = f"setsid sh -c '{FOREVER}' & sh -c '{FOREVER}' & {FOREVER}"
    async with running(sh(script), env={"MARK": mark}) as program:
        await until(lambda: len(marked(mark)) >= 4)
        program.stop()
        assert (await over(program)).code == 143
        assert marked(mark) == []


async def test_what_a_program_leaves_behind_can_end_in_order(mark: str, tmp_path: Path) -> None:
    """The exit code is the program's, and comes when the rest is over."""
    ready, done = tmp_path / "ready", tmp_path / "done"
    worker = f'trap "sleep 0.5; touch {done}; exit" TERM; touch {ready}; {FOREVER}'
    script = f"sh -c '{worker}' & while ! test -e {ready}; do sleep 0.05; done; exit 3"
    async with running(sh(script), env={"MARK": mark}) as program:
        ended = await over(program)
        assert (ended.code, ended.stopped, done.exists()) == (3, False, True)
        assert marked(mark) == []


async def test_signals_go_to_the_whole_group(mark: str, tmp_path: Path) -> None:
    """As a terminal does it."""
    script = f"trap 'touch {tmp_path}/one' INT; sh -c 'trap \"touch {tmp_path}/two; exit\" INT; {FOREVER}'; exit 4"
    async with running(sh(script), env={"MARK": mark}) as program:
        await until(lambda: len(marked(mark)) >= 4)
        program.send(signal.SIGINT)
        assert (await over(program)).code == 4
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


async def test_a_program_lives_while_it_is_bound_anew() -> None:
    """And is stopped when it is not, with its own exit code when it ends before it is killed."""
    async with running(sh(f"trap 'exit 5' TERM; {FOREVER}")) as program:
        for _ in range(10):
            now_s = CLOCK.now_s()
            program.bind(now_s + 3, now_s + 60)
            await asyncio.sleep(0.2)
        stop_at_s = CLOCK.now_s() + 1
        program.bind(stop_at_s, stop_at_s + 60)
        ended = await over(program)
        assert stop_at_s <= CLOCK.now_s() < stop_at_s + LATE_S
    assert (ended.code, ended.stopped) == (5, True)


async def test_a_program_that_is_bound_does_not_outlast_the_deadline(tmp_path: Path) -> None:
    """However long it may take to stop; and a later deadline gives it no more than that."""
    ready, again = tmp_path / "ready", tmp_path / "again"
    async with running(sh(f"trap '' TERM; touch {ready}; {FOREVER}"), stop_s=60) as program:
        await until(ready.exists)
        kill_at_s = CLOCK.now_s() + 2
        program.bind(kill_at_s - 1, kill_at_s)
        assert (await over(program)).code == 137
        assert kill_at_s <= CLOCK.now_s() < kill_at_s + LATE_S
    async with running(sh(f"trap '' TERM; touch {again}; {FOREVER}"), stop_s=1) as program:
        await until(again.exists)
        began_at_s = CLOCK.now_s()
        program.stop()
        program.bind(began_at_s + 60, began_at_s + 60)
        assert (await over(program)).code == 137
        assert began_at_s + 1 <= CLOCK.now_s() < began_at_s + 1 + LATE_S


BIND = (
    "async with running(['sh', '-c', {script!r}]) as p: "
    "now = time.clock_gettime(time.CLOCK_BOOTTIME); p.bind(now + {stop}, now + {kill}); "
    "print(now + {kill}, flush=True); await p.ended()"
)


async def test_a_supervisor_that_is_killed_takes_everything_along(mark: str) -> None:
    """The program, its group, and what has left it."""
    script = f"trap '' TERM; setsid sh -c '{FOREVER}' & sh -c '{FOREVER}' & {FOREVER}"
    process = await driver(BIND.format(script=script, stop=1000, kill=1000), MARK=mark)
    await until(lambda: len(marked(mark)) >= 5)
    process.kill()
    await process.wait()
    await nothing_left(mark, LATE_S)


async def test_a_supervisor_that_is_stopped_does_not_keep_its_program_alive(mark: str, tmp_path: Path) -> None:
    """The deadline holds although nobody watches it: SIGTERM before, SIGKILL at it."""
    told = tmp_path / "told"
    script = f"trap 'touch {told}' TERM; {FOREVER}"
    process = await driver(BIND.format(script=script, stop=3, kill=6), MARK=mark)
    assert process.stdout is not None
    kill_at_s = float(await process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    try:
        await until(told.exists)
        assert CLOCK.now_s() < kill_at_s
        await until(lambda: marked(mark) == [process.pid])
        assert CLOCK.now_s() < kill_at_s + LATE_S
    finally:
        process.kill()
        await process.wait()


async def test_a_keeper_that_is_killed_takes_the_program_along(mark: str) -> None:
    """And the supervisor hears of it; a signal that is meant for everybody does not end it."""
    async with running(("sleep", "1000"), env={"MARK": mark}) as program:
        await until(lambda: any(command_of(pid).startswith(b"sleep\0") for pid in marked(mark)))
        [keeper] = [pid for pid in marked(mark) if b"keeper.py" in command_of(pid)]
        os.kill(keeper, signal.SIGTERM)
        os.kill(keeper, signal.SIGINT)
        await asyncio.sleep(0.3)
        assert len(marked(mark)) == 2
        os.kill(keeper, signal.SIGKILL)
        assert (await over(program)).code == 137
    await nothing_left(mark)


@pytest.mark.parametrize(("name", "code"), [("no-such-program", 127), ("/no/such/program", 127), ("/tmp", 126)])
async def test_a_program_that_cannot_be_run_is_one_line(
    name: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the exit code that shells have for it; `find` knows before."""
    async with running((name, "x")) as program:
        assert (await over(program)).code == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {name!r} cannot be run: ")
    with pytest.raises(CannotRun, match="cannot be run") as refused:
        find(name)
    assert refused.value.code == code


async def test_a_file_that_is_no_program_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither one that may not be executed, nor one that the kernel does not know how to."""
    file = tmp_path / "file"
    file.write_text("what is this\n")
    with pytest.raises(CannotRun, match="not executable") as refused:
        find(str(file))
    assert refused.value.code == 126
    file.chmod(0o755)
    find(str(file))
    async with running((str(file),)) as program:
        assert (await over(program)).code == 126
    assert "Exec format error" in capfd.readouterr().err


async def test_what_no_program_can_be_given_is_refused() -> None:
    """An empty command, and NUL in an argument."""
    for command in ((), ("",), ("echo", "a\0b")):
        with pytest.raises(ConfigError):
            async with running(command):
                pytest.fail("it ran")


async def test_nothing_is_left_of_many_programs() -> None:
    """No file that is open, and no zombie."""

    async def one() -> None:
        async with running(sh("sleep 1000 & exit 0")) as program:
            await over(program)

    await one()
    before, others = own_files(), children()
    await asyncio.gather(*(one() for _ in range(10)))
    await until(lambda: len(own_files()) <= len(before))
    await until(lambda: children() <= others)
