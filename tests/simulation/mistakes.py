"""Known mistakes, that the explorer has to catch: each is made in the library's code for a while, and taken back.

A mistake is a change of a few words in the source of one function, so that it stays what it says it is: where the words
are not there any more, or there twice, it cannot be made.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from election import attempt, candidate, work
from election.collector import burial, observer, reaper
from election.etcd import lease, watch
from election.etcd.lease import Lease
from election.fencing import txn


async def lease_again(standing: Any) -> Lease | None:
    """The lease of the last attempt, if it is still there; for `lease-reused`."""
    last: Lease | None = getattr(standing, "_reused", None)
    if last is None:
        return None
    sent_at_s = standing.clock.now_s()
    left_s = (await standing._client.lease_time_to_live(last.id)).TTL
    return replace(last, deadline_s=sent_at_s + left_s - last.margin_s) if left_s > last.margin_s else None


@dataclass(frozen=True, slots=True)
class Edit:
    """Other words in a function, that is found in its class or module."""

    owner: Any
    function: str
    right: str
    wrong: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """Makes the change, and takes it back."""
        original = vars(self.owner)[self.function]
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.right) == 1, f"{self.function} has no, or more than one: {self.right}"
        wrong: dict[str, Any] = {}
        text = "from __future__ import annotations\n" + source.replace(self.right, self.wrong)
        exec(compile(text, f"<{self.function} with a mistake>", "exec"), original.__globals__, wrong)
        right, original.__code__ = original.__code__, wrong[self.function].__code__  # also where it is imported by name
        try:
            yield
        finally:
            original.__code__ = right


@dataclass(frozen=True, slots=True)
class Mistake:
    """A mistake that somebody could make, or has made elsewhere."""

    name: str
    what: str
    edits: tuple[Edit, ...]

    @contextmanager
    def made(self) -> Iterator[None]:
        """The library makes it for a while."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.made())
            yield


_ALL = (
    Mistake(
        "no-margin",
        "the deadline of a lease is its end by the own clock",
        (
            Edit(
                lease,
                "grant",
                "check_lease_relations(answer.TTL, margin_s, renew_s)",
                "margin_s = 0.0",
            ),
        ),
    ),
    Mistake(
        "no-proof",
        "whoever seems to be the oldest leads, without a write that proves it",
        (Edit(attempt.Attempt, "_prove", "await self._write_proof(token)", "True"),),
    ),
    Mistake(
        "robbed-not-waited-for",
        "whoever is the oldest leads at once, also where the old leader's key has gone before its lease could end",
        (Edit(attempt.Attempt, "_prove", "await self._candidacy.predecessor.stopped()", "pass"),),
    ),
    Mistake(
        "own-key-not-watched",
        "a leader does not look at what the watch says of its key",
        (
            Edit(
                attempt.Attempt,
                "_look",
                "own = queue.get(self.key)\n",
                "own = queue.get(self.key)\n    if isinstance(self._machine.state, Leading):\n        return\n",
            ),
        ),
    ),
    Mistake(
        "lease-reused",
        "the next attempt is made with the lease of the last one, whose key is deleted",
        (
            Edit(
                attempt.Attempt,
                "_release",
                "await let_go(self._client, self._lease.id, whose=self._candidacy.who)",
                "await self._client.delete(self.key)\n    except EtcdError:\n        pass",
            ),
            Edit(
                candidate.Candidate,
                "_stand",
                "lease = await grant(",
                "from tests.simulation.mistakes import lease_again\n"
                "    self._reused = lease = await lease_again(self) or await grant(",
            ),
        ),
    ),
    Mistake(
        "work-not-joined",
        "the key is released when the work has been cancelled, and before it has ended",
        (Edit(work, "_join", "while not working.done():", "while False:"),),
    ),
    Mistake(
        "reap-without-liveness",
        "a reap does not compare that the liveness key is absent",
        (Edit(burial.Planner, "_burial", "txn.absent(self.keyspace.alive(suspect.agent)),", ""),),
    ),
    Mistake(
        "reap-without-leadership",
        "a reap does not compare that its collector leads",
        (Edit(reaper, "reap", "await fenced_txn(\n            client,\n            term,", "await client.txn("),),
    ),
    Mistake(
        "no-reconcile",
        "the collector relies on events alone, and lists nothing anew",
        (Edit(observer.Observer, "run", "self._config.reconcile_s)", "None)"),),
    ),
    Mistake(
        "resume-at-header",
        "a watch resumes behind the revision of an answer's header, rather than that of its last event",
        (Edit(watch, "watch", "if isinstance(item, Changes):", "if True:"),),
    ),
    Mistake(
        "ttl-from-receipt",
        "the TTL counts from when the answer came, rather than from when the request was sent",
        (
            Edit(lease, "renewals", "yield Renewal(sent_at_s +", "yield Renewal(clock.now_s() +"),
            Edit(lease, "grant", "deadline_s = sent_at_s +", "deadline_s = client.clock.now_s() +"),
        ),
    ),
    Mistake(
        "unfenced-write",
        "a fenced write does not compare that the leader's key is there",
        (Edit(txn, "fenced_txn", "client.txn([guard(term)]", "client.txn([]"),),
    ),
)

MISTAKES = {mistake.name: mistake for mistake in _ALL}
