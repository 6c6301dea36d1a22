"""The one place where elections become messages of `election.v1` and back."""

from __future__ import annotations

from election.api import values
from election.api.resources import candidate_name, election_name, leader_name
from election.errors import BadField, LossReason
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Answer, LeaderEvent, LeaderEventKind, Source
from election.records import Candidate, Election, Leader
from election.token import Token

VIEW_METADATA = "election-view-bin"
"""The trailing metadata of a NOT_FOUND that holds the View: also the answer that there is nothing has an age."""

_LOSSES = {reason: pb.LossReason.Value(f"LOSS_REASON_{reason.name}") for reason in LossReason}
_LONGEST_S = 315_576_000_000.0
"""The longest Duration that protobuf defines, some 10,000 years."""

_LEADER_KINDS = {
    LeaderEventKind.ELECTED: pb.WatchLeaderResponse.KIND_ELECTED,
    LeaderEventKind.UPDATED: pb.WatchLeaderResponse.KIND_UPDATED,
    LeaderEventKind.VACATED: pb.WatchLeaderResponse.KIND_VACATED,
    LeaderEventKind.RESET: pb.WatchLeaderResponse.KIND_RESET,
    LeaderEventKind.HEARTBEAT: pb.WatchLeaderResponse.KIND_HEARTBEAT,
}

_MOST_LEADERS = 1_000
"""Of so many elections a message is kept."""

SHORTEST_HEARTBEAT_S, LONGEST_HEARTBEAT_S = 1.0, 300.0

# --- records to messages -------------------------------------------------------------------------------------


def view_message(source: Source, namespace: str = "") -> pb.View:
    """Where an answer comes from."""
    age_s = min(max(source.age_s, 0.0), _LONGEST_S)
    age = values.seconds(age_s)
    return pb.View(cluster_id=source.cluster_id, revision=source.revision, age=age, namespace=namespace)


def leader_message(leader: Leader) -> pb.Leader:
    """The candidate that leads."""
    return pb.Leader(
        election=leader.election,
        id=values.text(leader.id),
        address=values.text(leader.address),
        token=int(leader.token),
        key=values.text(leader.key),
        lease=leader.lease,
        elected_at=values.timestamp(leader.elected_at),
        labels=values.labels(leader.labels),
        priority=values.number(leader.priority, 32),
        proven=leader.proven,
        name=leader_name(leader.election),
    )


def candidate_message(candidate: Candidate) -> pb.Candidate:
    """A candidate in its queue."""
    return pb.Candidate(
        election=candidate.election,
        id=values.text(candidate.id),
        address=values.text(candidate.address),
        key=values.text(candidate.key),
        create_revision=candidate.created,
        lease=candidate.lease,
        labels=values.labels(candidate.labels),
        priority=values.number(candidate.priority, 32),
        elected_at=values.timestamp(candidate.elected_at),
        foreign=candidate.foreign,
        token=int(candidate.token) if candidate.token else 0,
        name=candidate_name(candidate.election, candidate.lease),
    )


def election_message(election: Election) -> pb.Election:
    """An election with its leader, if there is one."""
    leader = leader_message(election.leader) if election.leader else None
    return pb.Election(
        name=election_name(election.name), id=election.name, candidates=election.candidates, leader=leader
    )


class LeaderMessages:
    """The messages of leaders, made once each: many ask for the same one, or watch it, and it changes seldom."""

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace
        self._leaders: dict[str, tuple[Leader, pb.Leader]] = {}
        self._answered: dict[str, tuple[Leader, Source, pb.GetLeaderResponse]] = {}
        self._told: tuple[LeaderEvent, pb.WatchLeaderResponse] | None = None

    def leader(self, leader: Leader | None) -> pb.Leader | None:
        """The candidate that leads, as `leader_message` has it."""
        if leader is None:
            return None
        made = self._leaders.get(leader.election)
        if made is None or made[0] is not leader:
            if len(self._leaders) >= _MOST_LEADERS:
                self._leaders.clear()
                self._answered.clear()
            made = self._leaders[leader.election] = leader, leader_message(leader)
        return made[1]

    def answer(self, answer: Answer[Leader | None]) -> pb.GetLeaderResponse:
        """The answer of GetLeader: the same one to all who ask within one step of the view's age."""
        leader, source = answer.value, answer.source
        if leader is None:
            return pb.GetLeaderResponse(view=view_message(source, self._namespace))
        made = self._answered.get(leader.election)
        if made is None or made[0] is not leader or made[1] != source:
            view, told = view_message(source, self._namespace), self.leader(leader)
            made = leader, source, pb.GetLeaderResponse(view=view, leader=told)
            self._answered[leader.election] = made
        return made[2]

    def event(self, event: LeaderEvent) -> pb.WatchLeaderResponse:
        """One message of WatchLeader."""
        if self._told is None or self._told[0] is not event:
            view, leader = view_message(event.source, self._namespace), self.leader(event.leader)
            self._told = event, pb.WatchLeaderResponse(view=view, kind=_LEADER_KINDS[event.kind], leader=leader)
        return self._told[1]


def loss_message(reason: LossReason) -> pb.LossReason.ValueType:
    """Why a term ended."""
    return _LOSSES[reason]


# --- messages to records -------------------------------------------------------------------------------------


def source_from(message: pb.View) -> Source:
    """Where an answer comes from."""
    return Source(message.cluster_id, message.revision, message.age.ToNanoseconds() / 1e9)


def leader_from(message: pb.Leader) -> Leader:
    """The candidate that leads."""
    return Leader(
        election=message.election,
        id=message.id,
        address=message.address,
        token=Token.of_int(message.token),
        key=message.key,
        lease=message.lease,
        elected_at=values.time(message.elected_at) if message.HasField("elected_at") else None,
        labels=dict(message.labels),
        priority=message.priority,
        proven=message.proven,
    )


def candidate_from(message: pb.Candidate) -> Candidate:
    """A candidate in its queue."""
    return Candidate(
        election=message.election,
        key=message.key,
        created=message.create_revision,
        lease=message.lease,
        id=message.id,
        address=message.address,
        labels=dict(message.labels),
        priority=message.priority,
        elected_at=values.time(message.elected_at) if message.HasField("elected_at") else None,
        token=Token.of_int(message.token) if message.token else None,
        foreign=message.foreign,
    )


def election_from(message: pb.Election) -> Election:
    """An election with its leader, if there is one."""
    leader = leader_from(message.leader) if message.HasField("leader") else None
    return Election(message.id, message.candidates, leader)


def heartbeat_from(request: pb.WatchLeaderRequest | pb.WatchAgentsRequest) -> float | None:
    """How often a watch is to give a sign of life, in seconds; raises BadField for what is too often or too seldom."""
    if not request.HasField("heartbeat"):
        return None
    heartbeat_s = request.heartbeat.seconds + request.heartbeat.nanos / 1e9
    if not SHORTEST_HEARTBEAT_S <= heartbeat_s <= LONGEST_HEARTBEAT_S:
        between = f"{SHORTEST_HEARTBEAT_S:g} s and {LONGEST_HEARTBEAT_S:g} s"
        raise BadField(f"a heartbeat every {heartbeat_s:g} s cannot be: it is between {between}", field="heartbeat")
    return heartbeat_s


def leader_event_from(message: pb.WatchLeaderResponse) -> LeaderEvent:
    """One message of WatchLeader; raises ElectionError for a kind that this version does not know."""
    leader = leader_from(message.leader) if message.HasField("leader") else None
    return LeaderEvent(values.known(_LEADER_KINDS, message.kind, "leader event"), leader, source_from(message.view))


def loss_from(sent: pb.LossReason.ValueType) -> LossReason | None:
    """Why a term ended; None where nothing is said, or something that this version does not know."""
    return next((reason for reason, each in _LOSSES.items() if each == sent), None)
