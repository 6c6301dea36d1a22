"""The blocking API on a real etcd: the same promises, from threads; and what signals and forks do to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from election import CandidateConfig, Deposed, ElectionError, EtcdUnavailable, LossReason, NotLeader, Token, blocking
from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process
from election.etcd.client import EtcdClient
from election.leadership import Campaigning, Closed, Following, Leading
from election.reader import LeaderEventKind

pytestmark = pytest.mark.etcd

ELECTION = "demo"
QUICK = CandidateConfig(ttl_s=3, retry_max_s=1.0)


@pytest.fixture
def store(etcd_cluster: EtcdCluster, namespace: str) -> Iterator[blocking.Store]:
    with blocking.connect(etcd_cluster.endpoints, namespace=namespace) as made:
        yield made


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    give_up_at_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_at_s
        time.sleep(0.005)


def test_the_block_is_the_work_of_a_term(store: blocking.Store) -> None:
    """It leads inside, and has resigned after it; a fenced write goes through inside and is refused after it."""
    key = store.keyspace.root + b"resource"
    candidate = store.candidate(ELECTION, config=QUICK)
    with candidate.lead() as term:
        assert candidate.is_leader
        assert term.is_leader
        assert 0 < term.remaining_s() <= QUICK.ttl_s - QUICK.margin_s
        term.check()
        assert store.fenced_put(term, key, b"1") > term.token.revision
        assert store.fenced_delete(term, key)
        time.sleep(QUICK.ttl_s + 1)  # it is renewed although this thread does nothing for it
        term.check()
    assert candidate.state == Following()
    assert term.loss is not None
    assert term.loss.reason is LossReason.RESIGNED
    with pytest.raises(NotLeader, match="resigned"):
        store.fenced_put(term, key, b"2")
    with candidate.lead() as again:
        assert again.token > term.token


def test_an_error_in_the_block_ends_the_term_and_is_raised(store: blocking.Store) -> None:
    """As it is, after the key was released."""
    candidate = store.candidate(ELECTION, config=QUICK)
    boom = ValueError("boom")
    with pytest.raises(ValueError, match="boom") as raised, candidate.lead():
        raise boom
    assert raised.value is boom
    assert candidate.loss is not None
    assert (candidate.loss.reason, candidate.loss.error) == (LossReason.WORK_FAILED, boom)
    with store.candidate(ELECTION, config=QUICK).lead(timeout_s=2):
        pass


def test_run_does_the_work_in_this_thread_in_every_term(store: blocking.Store) -> None:
    """Work that fails is followed by another term, or raised, as one likes."""
    tokens: list[Token] = []
    candidate = store.candidate(ELECTION, id="a", config=QUICK)

    def work(term: blocking.Term) -> None:
        assert threading.current_thread() is threading.main_thread()
        tokens.append(term.token)
        if len(tokens) < 3:
            raise ValueError("not yet")
        candidate.leave()
        loss = term.wait_lost(10)
        assert loss is not None
        assert loss.reason is LossReason.RESIGNED

    loss = candidate.run(work)
    assert loss is not None
    assert loss.reason is LossReason.RESIGNED
    assert candidate.state == Closed()
    assert len(tokens) == 3
    assert tokens == sorted(tokens)
    tokens.clear()
    with pytest.raises(ValueError, match="not yet"):
        store.candidate(ELECTION, config=QUICK).run(work, reraise=True)
    once = store.candidate(ELECTION, config=QUICK).run(lambda term: None, once=True)
    assert once is not None
    assert once.reason is LossReason.RESIGNED


def test_a_term_that_is_lost_is_noticed_by_the_work(store: blocking.Store) -> None:
    """By `check`, by waiting for it, and by etcd, which refuses its writes; the block goes on until it looks."""
    key = store.keyspace.root + b"resource"
    a, b = (store.candidate(ELECTION, id=name, config=QUICK) for name in "ab")
    with a.lead() as term:
        assert term.wait_lost(0.1) is None
        store.fenced_delete(term, term.key)  # a leader that deletes its own key, as a stranger might
        loss = term.wait_lost(10)
        assert loss is not None
        assert loss.reason is LossReason.KEY_DELETED
        with pytest.raises(NotLeader, match="key_deleted"):
            term.check()
        with b.lead() as later, pytest.MonkeyPatch.context() as patch:
            patch.setattr(term.inner, "check", lambda: None)  # a process that was paused has a clock of its own
            with pytest.raises(Deposed, match=str(term.token)):
                store.fenced_put(term, key, b"late")
            assert store.fenced_txn(later, [], []).succeeded


def test_the_key_is_released_only_when_the_block_has_ended(store: blocking.Store) -> None:
    """However long that takes within the lease; the term itself is over at once."""
    a, b = (store.candidate(ELECTION, id=name, config=CandidateConfig(ttl_s=20)) for name in "ab")
    with a.lead() as term:
        follower = threading.Thread(target=b.run, args=[lambda term: term.wait_lost()])
        follower.start()
        until(lambda: handed_over(term, "b"))
        assert not term.is_leader
        time.sleep(1)
        assert not b.is_leader
    until(lambda: b.is_leader, 5)
    assert term.loss is not None
    assert term.loss.reason is LossReason.TRANSFERRED
    b.leave()
    follower.join(10)
    assert not follower.is_alive()


def handed_over(term: blocking.Term, to: str) -> bool:
    """Whether the successor waits, and the term was ended in its favour."""
    try:
        term.hand_over(to)
    except NotLeader:
        raise
    except ElectionError:
        return False
    return True


def standing(store: blocking.Store) -> int:
    """How many stand for the election."""

    async def ask() -> int:
        async with EtcdClient(store.config) as client:
            return (await client.list(store.keyspace.campaign(ELECTION))).count

    return asyncio.run(ask())


def test_work_that_outlives_its_deadline_is_reported_with_its_line(
    fresh_cluster: EtcdCluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can cancel a thread; the log says which one hangs where."""
    store = blocking.connect(fresh_cluster.endpoints, namespace=namespace)
    with store, store.candidate(ELECTION, config=QUICK).lead() as term:
        for member in fresh_cluster.members:
            member.pause()
        until(lambda: any("has not stopped by its deadline" in record.message for record in caplog.records))
        assert not term.is_leader
        for member in fresh_cluster.members:
            member.resume()
    [report] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert "test_work_that_outlives_its_deadline_is_reported_with_its_line" in report.message


def test_waiting_for_a_term_can_be_bounded_and_observed(store: blocking.Store) -> None:
    """Who gives up leaves nothing in the queue; who leads, and that nobody does, can be watched meanwhile."""
    a, b = (store.candidate(ELECTION, id=name, config=QUICK) for name in "ab")
    events = b.observe()
    assert next(events).kind is LeaderEventKind.VACATED
    with a.lead():
        elected = next(events)
        assert elected.leader is not None
        assert elected.leader.id == "a"
        with pytest.raises(TimeoutError, match=r"not elected within 0\.5 s"), b.lead(timeout_s=0.5):
            pass
        assert b.state == Following()
    assert next(events).kind is LeaderEventKind.VACATED
    events.close()  # type: ignore[attr-defined]
    b.leave()
    with pytest.raises(NotLeader, match="before it led"), b.lead():
        pass


def test_no_etcd_is_an_error_and_a_closed_store_is_one(namespace: str) -> None:
    """Of the same kinds as in the asyncio API."""
    store = blocking.connect("127.0.0.1:1", namespace=namespace)
    candidate = store.candidate(ELECTION)
    with pytest.raises(EtcdUnavailable), candidate.lead():
        pass
    store.close()
    store.close()
    with pytest.raises(ElectionError, match="closed"), candidate.lead():
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tasks that end where they are
@pytest.mark.parametrize("leads", [True, False])
def test_closing_a_store_lets_go_of_threads_that_still_use_it(
    etcd_cluster: EtcdCluster, namespace: str, leads: bool
) -> None:
    """An error in the main thread closes it at the end of its block; the program ends all the same."""
    errors: list[BaseException] = []
    with blocking.connect(etcd_cluster.endpoints, namespace=namespace) as other, other.candidate(ELECTION).lead():
        store = blocking.connect(etcd_cluster.endpoints, namespace=namespace)
        candidate = store.candidate("another" if leads else ELECTION, config=QUICK)

        def stand() -> None:
            try:
                candidate.run(lambda term: closed.wait(20))
            except ElectionError as error:
                errors.append(error)

        closed, thread = threading.Event(), threading.Thread(target=stand, daemon=True)
        thread.start()
        until(lambda: isinstance(candidate.state, Leading if leads else Campaigning))
        store.close()
        closed.set()
        thread.join(10)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == ["this was closed while it was used: end what uses it before"]


PROGRAM = """
import json, multiprocessing, os, signal, sys, time

from election import CandidateConfig, ElectionError, NotLeader, blocking

endpoints, namespace, what = sys.argv[1:]


def say(**what):
    print(json.dumps(what), flush=True)


def in_child(term, store):
    for name, act in (("check", term.check), ("write", lambda: store.fenced_put(term, b"/k", b"v"))):
        try:
            act()
            say(**{name: "done"})
        except ElectionError as error:
            say(**{name: type(error).__name__})
    say(leads=term.is_leader)


store = blocking.connect(endpoints, namespace=namespace)
candidate = store.candidate("demo", id="process", config=CandidateConfig(ttl_s=20))
if what == "leave":
    signal.signal(signal.SIGTERM, lambda *_: candidate.leave())
    loss = candidate.run(lambda term: (say(token=str(term.token)), term.wait_lost()))
    say(reason=loss.reason)
elif what == "interrupt":
    try:
        with candidate.lead() as term:
            say(token=str(term.token))
            time.sleep(60)
    except KeyboardInterrupt:
        say(reason=term.loss.reason)
elif what == "wait":
    try:
        say(waits=True)
        candidate.run(print)
    except KeyboardInterrupt:
        say(state=type(candidate.state).__name__)
elif what == "dropped":
    block, events = candidate.lead(), candidate.observe()
    say(token=str(block.__enter__().token), event=str(next(events).kind))
elif what == "exit":
    with candidate.lead() as term:
        say(token=str(term.token))
        sys.exit(7)
else:
    with candidate.lead() as term:
        say(token=str(term.token))
        if (child := os.fork()) == 0:
            in_child(term, store)  # and leaves the block, and the program, as the parent does
        else:
            _, status = os.waitpid(child, 0)
            term.check()
            say(parent=term.is_leader, child=os.waitstatus_to_exitcode(status))
"""


class Process:
    """A program of its own that uses the blocking API."""

    def __init__(self, store: blocking.Store, what: str) -> None:
        words = [",".join(store.config.endpoints), store.keyspace.namespace, what]
        self._process = subprocess.Popen(
            bound_to_this_process([sys.executable, "-c", PROGRAM, *words]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> dict[str, object]:
        """The next thing that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()
        return dict(json.loads(line))

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self, code: int = 0) -> list[dict[str, object]]:
        """What it says until it ends, with this code and without a traceback."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with self._process:
            out, err = self._process.stdout.read(), self._process.stderr.read()  # after what `line` has read ahead
            assert self._process.wait(20) == code, err
        assert "Traceback" not in err
        return [dict(json.loads(line)) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("what", "number", "code", "says"),
    [
        ("leave", signal.SIGTERM, 0, [{"reason": "resigned"}]),
        ("interrupt", signal.SIGINT, 0, [{"reason": "closed"}]),
        ("exit", 0, 7, []),
    ],
)
def test_a_signal_or_an_exit_releases_the_key(
    store: blocking.Store, what: str, number: int, code: int, says: list[dict[str, object]]
) -> None:
    """A handler of SIGTERM may leave; Ctrl-C and sys.exit leave the block; the next one leads at once."""
    process = Process(store, what)
    process.line()
    if number:
        process.signal(number)
    assert process.end(code) == says
    with store.candidate(ELECTION, config=QUICK).lead(timeout_s=3):  # the lease of the process was 20 s long
        pass


def test_ctrl_c_while_waiting_leaves_the_queue(store: blocking.Store) -> None:
    """A program that waits for its term can be ended."""
    with store.candidate(ELECTION, config=QUICK).lead():
        process = Process(store, "wait")
        process.line()
        until(lambda: standing(store) == 2)
        process.signal(signal.SIGINT)
        assert process.end() == [{"state": "Following"}]
        assert standing(store) == 1


def test_a_program_that_ends_in_the_middle_of_everything_ends(store: blocking.Store) -> None:
    """What it has left open is dropped with its last variables, when no thread is there any more to wait for."""
    [said] = Process(store, "dropped").end()
    assert said["event"] == "elected"


def test_a_forked_process_does_not_lead(store: blocking.Store) -> None:
    """Its copy of the term says no, its copy of the store is refused, and its end does not end the parent's term."""
    process = Process(store, "fork")
    process.line()
    assert process.end() == [
        {"check": "NotLeader"},
        {"write": "ElectionError"},
        {"leads": False},
        {"parent": True, "child": 0},
    ]
