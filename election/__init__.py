"""Leader election, fencing and stale-agent cleanup for fleets of orchestrators, on etcd.

A name is imported when it is first used: the command line starts fast that way, and can set how much gRPC writes to
stderr, which gRPC reads when it is imported.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# What gRPC does after a fork crashes the child (SIGSEGV) of a process that uses it from asyncio. Without it, a child
# that leaves gRPC alone is fine. gRPC reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if TYPE_CHECKING:
    from election.agents import Agent
    from election.candidate import Candidate
    from election.client.client import Client, dial
    from election.client.leader_channel import LeaderChannel, leader_channel
    from election.client.leader_client import LeaderClient
    from election.client.leader_errors import LeaderChanged, NotSent
    from election.client.servers import ServerUnavailable
    from election.client.session import Session
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
        HighWaterError,
        LimitExceeded,
        LossReason,
        NoLeader,
        NoSpace,
        NotLeader,
        PermissionDenied,
        RolledBack,
        Unauthenticated,
        ViewStale,
    )
    from election.fencing.highwater_etcd import EtcdHighWater
    from election.fencing.highwater_sqlite import SqliteHighWater
    from election.fencing.rpc import claim_of
    from election.fencing.rpc_client import aio_client_fence, client_fence
    from election.fencing.rpc_server import ServerFence
    from election.fencing.rpc_server_aio import AioServerFence
    from election.fencing.txn import fenced_delete, fenced_put, fenced_txn, guard
    from election.highwater import FileHighWater, MemoryHighWater
    from election.reader import Reader
    from election.store import Store, connect
    from election.term import Loss, Term
    from election.token import Token
    from election.views import View

__all__ = [
    "AccessDenied",
    "Agent",
    "AgentConfig",
    "AgentExists",
    "AgentLost",
    "AioServerFence",
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
    "EtcdHighWater",
    "EtcdUnavailable",
    "FileHighWater",
    "HighWaterError",
    "LeaderChanged",
    "LeaderChannel",
    "LeaderClient",
    "LimitExceeded",
    "Loss",
    "LossReason",
    "MemoryHighWater",
    "NoLeader",
    "NoSpace",
    "NotLeader",
    "NotSent",
    "PermissionDenied",
    "Reader",
    "RolledBack",
    "ServerFence",
    "ServerUnavailable",
    "Session",
    "SqliteHighWater",
    "Store",
    "Term",
    "TlsConfig",
    "Token",
    "Unauthenticated",
    "View",
    "ViewStale",
    "aio_client_fence",
    "claim_of",
    "client_fence",
    "connect",
    "dial",
    "fenced_delete",
    "fenced_put",
    "fenced_txn",
    "guard",
    "leader_channel",
]

_PARTS = (
    "agents candidate client.client collector.collector config errors highwater fencing.highwater_etcd fencing.rpc "
    "fencing.rpc_client fencing.rpc_server fencing.rpc_server_aio fencing.txn client.leader_client "
    "client.leader_errors client.leader_channel reader client.servers client.session store term token views "
    "fencing.highwater_sqlite"  # the last one: a Python can be without sqlite3
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in (import_module(f"{__name__}.{part}") for part in _PARTS.split()):
            if getattr(getattr(module, name, None), "__module__", None) == module.__name__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
