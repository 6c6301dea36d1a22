"""etcd's Election API (server/etcdserver/api/v3election, client/v3/concurrency), its traps included.

A campaign puts its key and then only waits for older ones to go: it never looks at its own key again, and it
deletes the key when its call is cancelled before that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from election.etcd.transport import RpcFailed
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.kv import KeyValues
from tests.fake.leases import Lessor

_LEASE_OF_ITS_OWN_TTL_S = 60
_NO_SESSION = -1


@dataclass(eq=False, slots=True)
class Campaign:
    """One Campaign call that a member serves. It is over when it has an answer or an error."""

    member: int
    prefix: bytes
    leader: el.LeaderKey
    header: rpc.ResponseHeader
    answer: el.CampaignResponse | None = field(default=None)
    error: RpcFailed | None = field(default=None)

    @property
    def over(self) -> bool:
        """Whether the member has nothing more to do for it."""
        return self.answer is not None or self.error is not None


class Elections:
    """The Election service. Its requests go through the member's own KV client, as etcd's do."""

    def __init__(self, kvs: KeyValues, lessor: Lessor) -> None:
        self._kvs = kvs
        self._lessor = lessor
        self.waiting: list[Campaign] = []

    def campaign(self, member: int, request: el.CampaignRequest) -> Campaign:
        """Queues; the campaign may be over at once. `evaluate` ends it when its turn has come."""
        lease = self._session(request.lease)
        prefix = request.name + b"/"
        key = prefix + _hex(lease)
        own = rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
        queued = self._txn(rpc.Compare(target=rpc.Compare.CREATE, key=key), _put(key, request.value, lease), own)
        leader = el.LeaderKey(name=request.name, key=key, rev=queued.header.revision, lease=lease)
        if not queued.succeeded:
            there = queued.responses[0].response_range.kvs[0]
            leader.rev = there.create_revision
            if there.value != request.value:
                self._proclaim(leader, request.value, resign=True)
        campaign = Campaign(member, prefix, leader, queued.header)
        self.waiting.append(campaign)
        return campaign

    def evaluate(self, campaign: Campaign) -> None:
        """Ends the campaign if no older key is left; harmless when it is over."""
        if campaign.over:
            return
        older = rpc.RangeRequest(
            key=campaign.prefix,
            range_end=_prefix_end(campaign.prefix),
            max_create_revision=campaign.leader.rev - 1,
            keys_only=True,
        )
        # A bound of 0 would be none at all; no key was created before revision 2.
        if campaign.leader.rev <= 1 or not self._kvs.range(older).kvs:
            campaign.answer = el.CampaignResponse(header=campaign.header, leader=campaign.leader)
            self.waiting.remove(campaign)

    def cancel(self, campaign: Campaign) -> None:
        """The call was cancelled: the key goes, unless the campaign is over."""
        if not campaign.over:
            self.abandon(campaign, statuses.SOCKET_CLOSED.error())
            self._resign(campaign.leader)

    def abandon(self, campaign: Campaign, error: RpcFailed) -> None:
        """The campaign ends with an error, and the key stays in the queue."""
        if not campaign.over:
            campaign.error = error
            self.waiting.remove(campaign)

    def proclaim(self, request: el.ProclaimRequest) -> el.ProclaimResponse:
        """Writes the value if the key still has the create revision that the caller says."""
        if not request.HasField("leader"):
            raise statuses.MISSING_LEADER_KEY.error()
        leader = el.LeaderKey()
        leader.CopyFrom(request.leader)
        leader.lease = self._session(leader.lease)
        return el.ProclaimResponse(header=self._proclaim(leader, request.value))

    def resign(self, request: el.ResignRequest) -> el.ResignResponse:
        """Deletes the key if it still has the create revision that the caller says; OK either way."""
        if not request.HasField("leader"):
            raise statuses.MISSING_LEADER_KEY.error()
        self._session(request.leader.lease)
        return el.ResignResponse(header=self._resign(request.leader))

    def leader(self, request: el.LeaderRequest) -> el.LeaderResponse:
        """The oldest key."""
        prefix = request.name + b"/"
        oldest = rpc.RangeRequest(
            key=prefix,
            range_end=_prefix_end(prefix),
            limit=1,
            sort_target=rpc.RangeRequest.CREATE,
            sort_order=rpc.RangeRequest.ASCEND,
        )
        found = self._kvs.range(oldest)
        if not found.kvs:
            raise statuses.ELECTION_NO_LEADER.error()
        return el.LeaderResponse(header=found.header, kv=found.kvs[0])

    def _session(self, lease: int) -> int:
        """etcd makes a lease for a call without one, which nobody renews."""
        if lease:
            return lease
        return self._lessor.grant(0, _LEASE_OF_ITS_OWN_TTL_S).id

    def _proclaim(self, leader: el.LeaderKey, value: bytes, *, resign: bool = False) -> rpc.ResponseHeader:
        try:
            done = self._txn(_created(leader), _put(leader.key, value, leader.lease))
        except RpcFailed:
            if resign:
                self._resign(leader)
            raise
        if not done.succeeded:
            raise statuses.ELECTION_NOT_LEADER.error()
        return done.header

    def _resign(self, leader: el.LeaderKey) -> rpc.ResponseHeader:
        delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=leader.key))
        return self._txn(_created(leader), delete).header

    def _txn(
        self, compare: rpc.Compare, success: rpc.RequestOp, failure: rpc.RequestOp | None = None
    ) -> rpc.TxnResponse:
        request = rpc.TxnRequest(compare=[compare], success=[success], failure=[] if failure is None else [failure])
        return self._kvs.txn(request)


def _created(leader: el.LeaderKey) -> rpc.Compare:
    return rpc.Compare(target=rpc.Compare.CREATE, key=leader.key, create_revision=leader.rev)


def _put(key: bytes, value: bytes, lease: int) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def _hex(lease: int) -> bytes:
    return f"{lease:x}".encode()


def _prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + b"0"  # the prefix ends with a slash
