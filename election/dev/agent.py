"""A process of the demo: an agent that works on the tasks that it finds in its state.

`python -m election.dev.agent ID TTL`; the connection comes from ELECTION_ENDPOINTS and ELECTION_NAMESPACE.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from election.agents import Agent
from election.clock import Clock
from election.config import AgentConfig
from election.dev.child import connect_from_environment, emit
from election.dev.tasks import PREFIX
from election.errors import AgentLost, EtcdError

TURN_S = 0.5
SHORTEST_S, LONGEST_S = 10.0, 30.0


async def main(id: str, ttl_s: int) -> None:
    """Runs until SIGTERM."""
    config = AgentConfig(ttl_s=ttl_s)
    labels = {"pid": str(os.getpid())}
    async with connect_from_environment() as store, store.agent(id, labels=labels, config=config) as agent:
        working = asyncio.create_task(work(agent, store.client.clock))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, working.cancel)
        await asyncio.wait({working})


async def work(agent: Agent, clock: Clock) -> None:
    """Does each task for a while, and deletes it."""
    ends_at_s: dict[str, float] = {}
    done = 0
    while True:
        try:
            tasks = {name for name in await agent.items() if name.startswith(PREFIX)}
            for name in tasks - ends_at_s.keys():
                ends_at_s[name] = clock.now_s() + random.uniform(SHORTEST_S, LONGEST_S)
            for name in [name for name, at_s in ends_at_s.items() if at_s <= clock.now_s()]:
                if name in tasks:
                    await agent.delete(name)
                    done += 1
                    await agent.put("done", str(done))
                del ends_at_s[name]
        except (AgentLost, EtcdError) as error:
            emit("delayed", by=agent.id, error=str(error))
        await clock.sleep_s(TURN_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
