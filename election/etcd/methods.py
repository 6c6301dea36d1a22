"""The calls of etcd's v3 API that this project makes, one name each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Resp]):
    """One RPC: its path on the wire and the types of its messages."""

    path: str
    request: type[Req]
    response: type[Resp]


RANGE = Method("/etcdserverpb.KV/Range", rpc.RangeRequest, rpc.RangeResponse)
PUT = Method("/etcdserverpb.KV/Put", rpc.PutRequest, rpc.PutResponse)
DELETE_RANGE = Method("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest, rpc.DeleteRangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", rpc.CompactionRequest, rpc.CompactionResponse)

LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest, rpc.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest, rpc.LeaseRevokeResponse)
LEASE_TIME_TO_LIVE = Method(
    "/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest, rpc.LeaseTimeToLiveResponse
)
LEASE_LEASES = Method("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest, rpc.LeaseLeasesResponse)

CAMPAIGN = Method("/v3electionpb.Election/Campaign", el.CampaignRequest, el.CampaignResponse)
PROCLAIM = Method("/v3electionpb.Election/Proclaim", el.ProclaimRequest, el.ProclaimResponse)
LEADER = Method("/v3electionpb.Election/Leader", el.LeaderRequest, el.LeaderResponse)
RESIGN = Method("/v3electionpb.Election/Resign", el.ResignRequest, el.ResignResponse)

MEMBER_LIST = Method("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest, rpc.MemberListResponse)
MEMBER_ADD = Method("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest, rpc.MemberAddResponse)
MEMBER_REMOVE = Method("/etcdserverpb.Cluster/MemberRemove", rpc.MemberRemoveRequest, rpc.MemberRemoveResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", rpc.StatusRequest, rpc.StatusResponse)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest, rpc.AlarmResponse)
DEFRAGMENT = Method("/etcdserverpb.Maintenance/Defragment", rpc.DefragmentRequest, rpc.DefragmentResponse)
MOVE_LEADER = Method("/etcdserverpb.Maintenance/MoveLeader", rpc.MoveLeaderRequest, rpc.MoveLeaderResponse)

AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", rpc.AuthenticateRequest, rpc.AuthenticateResponse)
AUTH_ENABLE = Method("/etcdserverpb.Auth/AuthEnable", rpc.AuthEnableRequest, rpc.AuthEnableResponse)
USER_ADD = Method("/etcdserverpb.Auth/UserAdd", rpc.AuthUserAddRequest, rpc.AuthUserAddResponse)
USER_CHANGE_PASSWORD = Method(
    "/etcdserverpb.Auth/UserChangePassword", rpc.AuthUserChangePasswordRequest, rpc.AuthUserChangePasswordResponse
)
USER_GRANT_ROLE = Method(
    "/etcdserverpb.Auth/UserGrantRole", rpc.AuthUserGrantRoleRequest, rpc.AuthUserGrantRoleResponse
)
ROLE_ADD = Method("/etcdserverpb.Auth/RoleAdd", rpc.AuthRoleAddRequest, rpc.AuthRoleAddResponse)
ROLE_GRANT_PERMISSION = Method(
    "/etcdserverpb.Auth/RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest, rpc.AuthRoleGrantPermissionResponse
)

# Streams in both directions.
WATCH = Method("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse)
LEASE_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse)


def keys_of(request: Message) -> list[bytes]:
    """The keys and prefixes that a request says it reads or writes; none for one that is about a lease or a member."""
    match request:
        case rpc.RangeRequest() | rpc.PutRequest() | rpc.DeleteRangeRequest() | rpc.WatchCreateRequest():
            return [request.key]
        case rpc.TxnRequest():
            chosen = [getattr(op, op.WhichOneof("request") or "") for op in (*request.success, *request.failure)]
            return [*(each.key for each in request.compare), *(key for each in chosen for key in keys_of(each))]
        case el.CampaignRequest() | el.LeaderRequest():
            return [request.name + b"/"]
        case el.ProclaimRequest() | el.ResignRequest():
            return [request.leader.key]
    return []
