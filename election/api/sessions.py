"""The one place where what sessions say becomes messages of `election.v1` and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from election.agent_records import AgentRecord
from election.api.resources import agent_id
from election.api.statuses import error_from, name_of, reason_of
from election.config import AgentConfig, check_labels
from election.errors import BadField, ConfigError, ElectionError, EtcdError
from election.held_session import Opening
from election.pb.election.v1 import election_pb2 as pb
from election.registration import checked

SHORTEST_TTL_S, LONGEST_TTL_S = 5, 3600
"""Of the lease of a session: what is shorter would not survive that an agent goes on at another server."""
SHORTEST_SECRET, LONGEST_SECRET = 16, 64
"""In bytes."""


def opening_from(message: pb.SessionRequest.Open) -> Opening:
    """What a caller asks for who opens a session; raises BadField for what cannot be asked for."""
    if not SHORTEST_SECRET <= len(message.secret) <= LONGEST_SECRET:
        raise BadField(
            f"the secret has {len(message.secret)} bytes: use {SHORTEST_SECRET} to {LONGEST_SECRET} random ones",
            field="open.secret",
        )
    if message.incarnation < 0:
        raise BadField(f"{message.incarnation} is not an incarnation", field="open.incarnation")
    agent = agent_id(message.agent, field="open.agent")
    try:
        record = checked(AgentRecord(agent, message.address, check_labels(message.labels)))
    except ConfigError as error:
        raise BadField(str(error), field="open.labels") from None
    ttl_s = _ttl_s(message.ttl) if message.HasField("ttl") else AgentConfig().ttl_s
    return Opening(record, message.secret, ttl_s, message.takeover, message.incarnation)


def check_ttl(ttl_s: float) -> int:
    """The TTL, if the lease of a session can have it; raises ConfigError."""
    if ttl_s != int(ttl_s) or not SHORTEST_TTL_S <= ttl_s <= LONGEST_TTL_S:
        raise ConfigError(
            f"a TTL of {ttl_s:g} s cannot be had in a session: use whole seconds, {SHORTEST_TTL_S} to {LONGEST_TTL_S}"
        )
    return int(ttl_s)


def failure_message(error: ElectionError) -> pb.Failure:
    """Why one message could not be acted on."""
    indefinite = isinstance(error, EtcdError) and error.indefinite
    return pb.Failure(reason=reason_of(error), message=" ".join(str(error).split()), indefinite=indefinite)


def failure_from(message: pb.Failure) -> ElectionError:
    """The error that a failure stands for."""
    error = error_from(StatusCode.INTERNAL, message.message, name_of(message.reason))
    if not message.indefinite:
        return error
    kind = type(error) if isinstance(error, EtcdError) else EtcdError
    return kind(message.message, indefinite=True)


def _ttl_s(message: Duration) -> int:
    try:
        return check_ttl(message.seconds + message.nanos / 1e9)
    except ConfigError as error:
        raise BadField(str(error), field="open.ttl") from None
