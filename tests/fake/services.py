"""etcd's calls of one request and one answer, by their path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from election.etcd import methods
from election.etcd.methods import Method
from election.etcd.transport import RpcFailed
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses

if TYPE_CHECKING:
    from tests.fake.etcd import FakeEtcd

VERSION = "3.5.30"


class Services:
    """Finds what executes a call. Headers are left with their revision, or empty, for the cluster to complete."""

    def __init__(self, etcd: FakeEtcd) -> None:
        self._etcd = etcd
        kvs, elections = etcd.kvs, etcd.elections
        self._handlers: dict[str, Callable[[int, Any], Any]] = {
            methods.RANGE.path: self._range,
            methods.PUT.path: lambda _, request: kvs.put(request),
            methods.DELETE_RANGE.path: lambda _, request: kvs.delete_range(request),
            methods.TXN.path: lambda _, request: kvs.txn(request),
            methods.COMPACT.path: self._compact,
            methods.LEASE_GRANT.path: self._lease_grant,
            methods.LEASE_REVOKE.path: self._lease_revoke,
            methods.LEASE_TIME_TO_LIVE.path: self._lease_time_to_live,
            methods.LEASE_LEASES.path: self._lease_leases,
            methods.PROCLAIM.path: lambda _, request: elections.proclaim(request),
            methods.LEADER.path: lambda _, request: elections.leader(request),
            methods.RESIGN.path: lambda _, request: elections.resign(request),
            methods.MEMBER_LIST.path: self._member_list,
            methods.STATUS.path: self._status,
            methods.ALARM.path: self._alarm,
            methods.MOVE_LEADER.path: self._move_leader,
            methods.AUTHENTICATE.path: self._authenticate,
        }

    def execute(self, member: int, method: Method[Any, Any], request: Message) -> tuple[Message, rpc.ResponseHeader]:
        """Executes one call; returns the answer and the header in it."""
        try:
            answer = self._handlers[method.path](member, request)
        except RpcFailed as failed:
            raise statuses.as_unknown(failed) if method.path.startswith("/v3electionpb.") else failed from None
        answer.header.SetInParent()
        return answer, answer.header

    def _range(self, member: int, request: rpc.RangeRequest) -> rpc.RangeResponse:
        applied = self._etcd.applied(member)
        if not request.serializable or request.revision or applied == self._etcd.store.revision:
            return self._etcd.kvs.range(request)
        then = rpc.RangeRequest()
        then.CopyFrom(request)
        then.revision = applied
        answer = self._etcd.kvs.range(then)
        answer.header.revision = applied
        return answer

    def _compact(self, _: int, request: rpc.CompactionRequest) -> rpc.CompactionResponse:
        self._etcd.store.compact(request.revision)
        return rpc.CompactionResponse()

    def _lease_grant(self, _: int, request: rpc.LeaseGrantRequest) -> rpc.LeaseGrantResponse:
        lease = self._etcd.lessor.grant(request.ID, request.TTL)
        return rpc.LeaseGrantResponse(ID=lease.id, TTL=lease.ttl_s)

    def _lease_revoke(self, _: int, request: rpc.LeaseRevokeRequest) -> rpc.LeaseRevokeResponse:
        self._etcd.lessor.revoke(request.ID)
        return rpc.LeaseRevokeResponse()

    def _lease_time_to_live(self, _: int, request: rpc.LeaseTimeToLiveRequest) -> rpc.LeaseTimeToLiveResponse:
        try:
            lease = self._etcd.lessor.find(request.ID)
        except RpcFailed:
            return rpc.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        return rpc.LeaseTimeToLiveResponse(
            ID=lease.id,
            TTL=self._etcd.lessor.remaining_s(lease),
            grantedTTL=lease.ttl_s,
            keys=self._etcd.store.keys_of(lease.id) if request.keys else (),
        )

    def _lease_leases(self, _: int, request: rpc.LeaseLeasesRequest) -> rpc.LeaseLeasesResponse:
        del request
        return rpc.LeaseLeasesResponse(leases=[rpc.LeaseStatus(ID=lease.id) for lease in self._etcd.lessor.by_expiry()])

    def _member_list(self, _: int, request: rpc.MemberListRequest) -> rpc.MemberListResponse:
        del request
        return rpc.MemberListResponse(
            members=[
                rpc.Member(ID=member.id, name=member.name, clientURLs=[f"http://{member.endpoint}"])
                for member in self._etcd.members
            ]
        )

    def _status(self, member: int, request: rpc.StatusRequest) -> rpc.StatusResponse:
        del request
        header = self._etcd.header(member)
        has_leader = self._etcd.has_leader(member)
        return rpc.StatusResponse(
            version=VERSION,
            dbSize=20_480,
            dbSizeInUse=16_384,
            leader=self._etcd.members[self._etcd.leader].id if has_leader else 0,
            raftIndex=header.revision,
            raftAppliedIndex=header.revision,
            raftTerm=header.raft_term,
            errors=[
                *([] if has_leader else [statuses.NO_LEADER.text]),
                *(f"memberID:{owner} alarm:{rpc.AlarmType.Name(kind)} " for owner, kind in self._etcd.alarms),
            ],
        )

    def _alarm(self, _: int, request: rpc.AlarmRequest) -> rpc.AlarmResponse:
        alarms = self._etcd.alarms
        if request.action == rpc.AlarmRequest.ACTIVATE:
            alarms[request.memberID, request.alarm] = None
        elif request.action == rpc.AlarmRequest.DEACTIVATE:
            alarms.pop((request.memberID, request.alarm), None)
        self._etcd.store.full = any(kind == rpc.NOSPACE for _, kind in alarms)
        return rpc.AlarmResponse(alarms=[rpc.AlarmMember(memberID=owner, alarm=kind) for owner, kind in alarms])

    def _move_leader(self, member: int, request: rpc.MoveLeaderRequest) -> rpc.MoveLeaderResponse:
        if member != self._etcd.leader:
            raise statuses.NOT_LEADER.error()
        for i, target in enumerate(self._etcd.members):
            if target.id == request.targetID and self._etcd.has_leader(i):
                self._etcd.change_leader(i)
                return rpc.MoveLeaderResponse()
        raise statuses.BAD_TRANSFEREE.error()

    def _authenticate(self, _: int, request: rpc.AuthenticateRequest) -> rpc.AuthenticateResponse:
        if not self._etcd.users:
            raise statuses.AUTH_NOT_ENABLED.error()
        if self._etcd.users.get(request.name) != request.password:
            raise statuses.AUTH_FAILED.error()
        return rpc.AuthenticateResponse(token=f"token of {request.name}")
