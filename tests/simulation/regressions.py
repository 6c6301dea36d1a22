"""What was once found to break a promise: the plan that has shown it, shrunk, and what was wrong.

Plans and not seeds are kept, since a seed stands for another plan as soon as there is one kind of fault more.
"""

from __future__ import annotations

from tests.simulation.plan import COLLECTOR, Plan, Step

KEPT = {
    # The queue showed a key of the history that was set back, whose deletion nobody will ever hear of, and the call to
    # Campaign, which knows better, was broken.
    "nobody leads when a Campaign breaks after a restore that was not marked as compacted": Plan(
        seed=2,
        candidates=4,
        collectors=1,
        agents=1,
        rates=(1.0,) * 7,
        latencies_s=(0.001,) * 7,
        grace_s=1.5,
        breaker=False,
        reports_ahead=False,
        steps=(
            Step(at_s=0.8, kind="hand over", node=COLLECTOR, rank=24190),
            Step(at_s=0.87, kind="restore and bump, unmarked", for_s=1.92),
            Step(at_s=7.26, kind="kill a member", for_s=0.54, rank=14595),
        ),
    ),
}
"""The names of what was wrong, and the plans that have found it."""
