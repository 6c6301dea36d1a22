"""Leader election, fencing and stale-agent cleanup for fleets of orchestrators, on etcd."""

from election.agents import Agent
from election.candidate import Candidate, Loss, Term
from election.client import Client, dial
from election.collector import Collector
from election.config import AgentConfig, CandidateConfig, CollectorConfig, EtcdConfig, TlsConfig
from election.errors import (
    AccessDenied,
    AgentExists,
    AgentLost,
    ConfigError,
    Deposed,
    ElectionError,
    EtcdError,
    EtcdUnavailable,
    LossReason,
    NoSpace,
    NotLeader,
    ViewStale,
)
from election.fencing import fenced_txn, guard
from election.reader import Reader
from election.store import Store, connect
from election.views import View

__all__ = [
    "AccessDenied",
    "Agent",
    "AgentConfig",
    "AgentExists",
    "AgentLost",
    "Candidate",
    "CandidateConfig",
    "Client",
    "Collector",
    "CollectorConfig",
    "ConfigError",
    "Deposed",
    "ElectionError",
    "EtcdConfig",
    "EtcdError",
    "EtcdUnavailable",
    "Loss",
    "LossReason",
    "NoSpace",
    "NotLeader",
    "Reader",
    "Store",
    "Term",
    "TlsConfig",
    "View",
    "ViewStale",
    "connect",
    "dial",
    "fenced_txn",
    "guard",
]
