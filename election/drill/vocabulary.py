"""The words of a history: what the drill does to the system, and what its processes say of themselves.

Every line is a `Fact`: a time (`at_s`, of `CLOCK_BOOTTIME`), one of these words, whom it is about (`who`), and more.
What a process says has its own name as `more["process"]`, and a fencing token is written as its text, `EPOCH-REVISION`.
"""

from __future__ import annotations

from enum import StrEnum


class Done(StrEnum):
    """What the drill does, and finds: lines of `facts.jsonl`. They are written right before it is done."""

    INJECTED = "injected"
    """A fault begins. `who`: what it is done to. `number` (from 1, of this drill), `fault` (its name), `on` (whom)."""
    HARMED = "harmed"
    """The fault is in effect: `number`."""
    SKIPPED = "skipped"
    """A fault found nobody to be done to, and was not counted: `fault`, `why`."""
    HEALING = "healing"
    """The fault is about to be taken back: `number`."""
    HEALED = "healed"
    """The fault has been taken back, and what it was done to runs again: `number`."""
    ALL_HEALED = "all healed"
    """No fault is in effect, and etcd answers; until the next `injected` the system has to get well."""
    SETTLED = "settled"
    """The time to get well is over: faults go on, or the drill ends."""
    STARTED = "process started"
    """`who`: the process. `role`: orchestrator, blocking orchestrator, agent, collector, server, register, reader.
    `slot`: the name that it shares with its predecessors, which is also a candidate's or an agent's id; a collector's
    id is the process's name. `takeover`: an agent that may end the life of another one."""
    ENDED = "process ended"
    """Written after `who` was found to have ended, though nobody had told it to: `code`. It is started again."""
    KILLED = "process killed"
    """`who` gets SIGKILL."""
    GONE = "process gone"
    """Written right after a killed process has been waited for: by now it certainly does nothing. `who`."""
    PAUSED = "process paused"
    """`who` stands still (SIGSTOP). Written before."""
    RESUMED = "process resumed"
    """`who` goes on. Written before."""
    LEAVES = "process leaves"
    """`who` gets SIGTERM."""
    DISTURBED = "disturbed"
    """Something is done to etcd, or to what lies before it: `unwell` says whether any of that still lasts."""
    PROBED = "probed"
    """etcd was read: `ok`, and `ended_at_s`."""
    EVICTED = "agent evicted"
    """A stranger is about to delete the liveness key of `who`, an agent: `incarnation`."""
    WOKEN = "member woken"
    """A member of etcd that stood still is about to go on: `who`. One that led before may end leases that others have
    renewed meanwhile (etcd #15247)."""
    ROBBED = "candidate robbed"
    """A stranger is about to delete the key, or revoke the lease, of a candidate: `who` (its id), `token` (its key's
    create revision, with the epoch), `how`: key or lease."""
    SET_BACK = "etcd set back"
    """All members are about to be started from a snapshot: what etcd has acknowledged since is lost. `bumped`: whether
    the revisions go on above those that were handed out."""
    EPOCH_RAISED = "epoch raised"
    """The operator raises the epoch after etcd was set back: `epoch`."""
    CONTENT = "register content"
    """What a register holds at the end, in the order in which it was written: `who` (the register's name), `rows`: a
    list of [token, n, by]."""
    LEASES = "leases"
    """Every lease that etcd holds after all processes have left: `leases`: a list of keys for each."""
    LEFT_OVER = "left over"
    """Found after everything has ended: `texts`: a list of texts, one for each thing that should not be there."""


class Told(StrEnum):
    """What the processes say: lines of `processes/NAME.jsonl`. `at_s` is from before they asked or did it."""

    RUNS = "runs"
    """The process runs: its first line. One that never says anything leaves a hole in the history."""
    TERM_BEGAN = "term began"
    """An orchestrator's work begins: `token`, `deadline_s`. `who`: the candidate's id."""
    DEADLINE = "deadline moved"
    """`token`, `deadline_s`: the moment after which it will not act."""
    ACTED = "acted"
    """`check` has passed: the term was believed at some moment from `at_s` to `ended_at_s`. `token`."""
    TERM_ENDED = "term ended"
    """The work has ended: nothing is done in this term any more. `token`."""
    TERM_LOST = "term lost"
    """Why it ended, as the candidate tells: `token`, `reason`, `noticed_at_s`, `remained_s`."""
    WRITES = "writes"
    """About to write `n` (a number that no other write of this process has) to `register`: `token`; `late` when it
    knows that the term is over, to try the fence."""
    WROTE = "wrote"
    """The register has confirmed it: `register`, `token`, `n`, `ended_at_s`; `at_s` is from before the write."""
    REFUSED = "refused"
    """The register has refused the token, so that nothing was written: as WROTE, and `why`."""
    UNSURE = "unsure"
    """The write failed, and may or may not have been done: as WROTE, and `why`."""
    SAW = "saw"
    """A reader was told who leads: `server` (its process's name), `via`: get or watch, `token` (absent for a vacancy),
    `leader` (the candidate's id), `age_s` (how old the answer says it is, at most), `revision`, `ended_at_s`; `session`
    counts the connections of a watch: within one, nothing goes back."""
    UNTOLD = "untold"
    """A reader was refused an answer: `server`, `via`, `why`, `ended_at_s`."""
