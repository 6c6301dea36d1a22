"""A process that stands for an election, and prints its key whenever it leads; what `etcdctl elect` does.

SIGTERM makes it hand over and end, SIGUSR1 hand over and stand again.

    python -m tests.bench.orchestrator ELECTION ID TTL_S
"""

from __future__ import annotations

import asyncio
import signal
import sys

from election import CandidateConfig, Term
from election.dev.child import connect_from_environment


async def main(election: str, id: str, ttl_s: int) -> None:
    """Stands until SIGTERM."""
    async with connect_from_environment() as store:
        candidate = store.candidate(election, id=id, config=CandidateConfig(ttl_s=ttl_s))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, candidate.leave)
        loop.add_signal_handler(signal.SIGUSR1, candidate.hand_over)
        await candidate.lead(_work)


async def _work(term: Term) -> None:
    sys.stdout.write(term.key.decode() + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
