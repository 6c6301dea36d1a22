"""The same for programs without asyncio: the names and the promises of the asyncio API, from any thread.

    with blocking.connect("10.0.0.1:2379") as store, store.candidate("scheduler").lead() as term:
        while jobs:
            term.check()
            run(jobs.pop(), token=term.token)

Each store has one thread with one event loop, on which its candidates campaign and renew, also while the program
computes or sleeps. Nothing can cancel a thread: when the term is lost, the work has to notice, by `term.check()` before
each step or by `term.lost`. The key is released only when the work has ended; work that is still there at its deadline
is reported in the log, with the line that it is at, and from then on only fencing protects.

Signals: `Candidate.leave` may be called from a signal handler; Ctrl-C in the work, or while waiting for the term,
resigns. SIGTERM ends a program that does not handle it without any of this, and the key stays until its lease ends.

Fork: a forked process does not lead, whatever its copies of a term say, and cannot use a store that was made before
the fork. gRPC does not outlive a fork: start processes that need a store of their own with multiprocessing's `spawn`.
What gRPC itself does after a fork would crash the child, so importing this package sets GRPC_ENABLE_FORK_SUPPORT=0
where it is not set; that counts if gRPC was not imported before.
"""

from __future__ import annotations

from election.blocking.candidate import Candidate
from election.blocking.leader_client import LeaderClient
from election.blocking.leader_routes import LeaderChannel, leader_channel
from election.blocking.store import Store, connect
from election.blocking.term import Term

__all__ = ["Candidate", "LeaderChannel", "LeaderClient", "Store", "Term", "connect", "leader_channel"]
