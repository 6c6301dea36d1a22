"""A process of the demo: campaigns, and hands out tasks to the agents while it leads.

`python -m election.dev.orchestrator ELECTION ID TTL`; the connection comes from ELECTION_ENDPOINTS and
ELECTION_NAMESPACE. Prints one JSON object per event.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing

from election.candidate import Candidate
from election.config import CandidateConfig
from election.dev.child import connect_from_environment, emit
from election.dev.tasks import Ledger
from election.errors import EtcdError, ViewStale
from election.leadership import Leading, Leaving
from election.published import TooSlow
from election.store import Store
from election.term import Term
from election.views import View

OPEN_TASKS = 8
TURN_S = 1.0


async def main(election: str, id: str, ttl_s: int) -> None:
    """Runs until SIGTERM."""
    async with connect_from_environment() as store:
        candidate = store.candidate(
            election, id=id, labels={"pid": str(os.getpid())}, config=CandidateConfig(ttl_s=ttl_s)
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, candidate.leave)
        telling = asyncio.create_task(_tell(candidate))
        try:
            await candidate.lead(lambda term: hand_out(store, term))
        finally:
            telling.cancel()


async def hand_out(store: Store, term: Term) -> None:
    """The leader's work: a round each second, and at once when something became of an agent."""
    async with store.view(store.keyspace.agents) as view, asyncio.TaskGroup() as group:
        changed = asyncio.Event()
        ledger = Ledger(store, view, term, open_tasks=OPEN_TASKS)
        group.create_task(_watch(view, ledger, changed, by=term.id))
        while True:
            changed.clear()
            try:
                for step in await ledger.turn():
                    emit(step.event, task=step.task, agent=step.agent, formerly=step.formerly, by=term.id)
            except (EtcdError, ViewStale) as error:
                emit("delayed", by=term.id, error=str(error))
            try:
                async with asyncio.timeout(TURN_S):
                    await changed.wait()
            except TimeoutError:
                continue


async def _watch(view: View, ledger: Ledger, changed: asyncio.Event, *, by: str) -> None:
    """Tells the ledger what becomes of agents, from where the last leader has stopped."""
    while True:
        try:
            async with aclosing(view.watch_agents(after=await ledger.begin())) as events:
                async for event in events:
                    await ledger.see(event)
                    changed.set()
        except (EtcdError, ViewStale, TooSlow) as error:
            emit("delayed", by=by, error=str(error))
            await asyncio.sleep(TURN_S)


async def _tell(candidate: Candidate) -> None:
    leads = False
    async with aclosing(candidate.transitions()) as transitions:
        async for transition in transitions:
            match transition.state:
                case Leading(token=token) if not leads:
                    leads = True
                    emit("leads", id=candidate.id, token=str(token))
                case Leaving(token=token, reason=reason, margin_s=margin_s) if leads:
                    leads = False
                    emit("lost", id=candidate.id, token=str(token), reason=reason.value, margin_s=round(margin_s, 3))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
