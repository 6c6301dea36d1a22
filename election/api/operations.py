"""The one place where what operators do with agents becomes messages of `election.v1` and back."""

from __future__ import annotations

from election.agent_control import Drained, Reaped, Remains
from election.agent_records import DrainMark
from election.agent_restore import Restored
from election.api import values
from election.api.agents import entry_from, entry_message, tombstone_from, tombstone_message
from election.pb.election.v1 import election_pb2 as pb


def drained_message(done: Drained, view: pb.View) -> pb.DrainAgentResponse:
    """Whether an agent drains now."""
    mark = done.mark or DrainMark("")
    return pb.DrainAgentResponse(
        view=view, draining=done.draining, changed=done.changed, by=values.text(mark.by), at=values.timestamp(mark.at)
    )


def reaped_message(done: Reaped, view: pb.View) -> pb.ReapAgentResponse:
    """What was made of a dead agent."""
    tombstones = map(tombstone_message, done.tombstones)
    return pb.ReapAgentResponse(view=view, incarnation=values.number(done.incarnation, 64), tombstones=tombstones)


def remains_message(found: Remains, view: pb.View) -> pb.ReapAgentResponse:
    """What would be collected of a dead agent."""
    return pb.ReapAgentResponse(
        view=view,
        incarnation=values.number(found.incarnation, 64),
        remains=map(entry_message, found.entries),
        draining=found.draining,
    )


def restored_message(done: Restored, view: pb.View) -> pb.RestoreAgentResponse:
    """What was put back."""
    return pb.RestoreAgentResponse(
        view=view,
        incarnation=values.number(done.incarnation, 64),
        written=map(values.text, done.written),
        unchanged=map(values.text, done.unchanged),
        alive=done.alive,
    )


def drained_from(agent: str, message: pb.DrainAgentResponse) -> Drained:
    """Whether an agent drains now."""
    at = values.time(message.at) if message.HasField("at") else None
    mark = DrainMark(message.by, at) if message.by or at else None
    return Drained(agent, message.draining, message.changed, mark, message.view.revision)


def reaped_from(agent: str, message: pb.ReapAgentResponse) -> Reaped:
    """What was made of a dead agent."""
    tombstones = tuple(map(tombstone_from, message.tombstones))
    return Reaped(agent, message.incarnation, tombstones, message.view.revision)


def remains_from(agent: str, message: pb.ReapAgentResponse) -> Remains:
    """What would be collected of a dead agent; without the record that it has left, which messages do not tell."""
    entries = tuple(map(entry_from, message.remains))
    return Remains(agent, message.incarnation, None, entries, message.draining, message.view.revision)


def restored_from(agent: str, message: pb.RestoreAgentResponse) -> Restored:
    """What was put back."""
    written, unchanged = tuple(message.written), tuple(message.unchanged)
    return Restored(agent, message.incarnation, written, unchanged, message.alive, message.view.revision)
