"""What a refusal of etcd becomes: an error that says who was refused what, and what would help."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from election.errors import AccessDenied
from election.etcd import methods, txn
from election.etcd.failures import Asked, error_from
from election.etcd.transport import RpcFailed
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import rpc_pb2 as rpc

DENIED = RpcFailed(StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")


def refusal(failure: RpcFailed, *keys: bytes, user: str | None = "alice") -> str:
    error = error_from(failure, Asked("h:1", user, keys), wrote=False)
    assert isinstance(error, AccessDenied)
    assert "\n" not in str(error)
    return str(error).removeprefix("etcd at h:1 refused access: ")


def test_a_missing_permission_says_who_lacks_what_and_how_to_grant_it() -> None:
    """The prefix to grant is that of the namespace, whatever key in it was asked for."""
    assert refusal(DENIED, b"/election/ns/campaigns/demo/") == (
        "user 'alice' has no permission for /election/ns/campaigns/demo/: grant it to one of the user's roles "
        "(etcdctl role grant-permission --prefix=true ROLE readwrite /election/ns/)"
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([b"/election/ns/a", b"/election/ns/b"], "for /election/ns/a, /election/ns/b: grant.* /election/ns/\\)$"),
        ([b"/election/ns/a", b"/app/b"], "for /election/ns/a, /app/b: grant.* PREFIX\\)$"),
        ([b"/app/b", b"/app/b"], "for /app/b: grant.* PREFIX\\)$"),
        ([b"/election/ns/%d" % number for number in range(9)], "/0, /election/ns/1, /election/ns/2, \\.\\.\\.: "),
        ([b"/app/\xff"], "for /app/\ufffd: "),
        ([], "no permission for this, or for a key of this lease$"),
    ],
)
def test_of_several_keys_a_few_are_named(keys: list[bytes], says: str) -> None:
    """Which of them was refused, etcd does not tell."""
    with pytest.raises(AccessDenied, match=says):
        raise error_from(DENIED, Asked("h:1", "alice", keys), wrote=False)


@pytest.mark.parametrize(
    ("text", "user", "says"),
    [
        (
            "etcdserver: authentication failed, invalid user ID or password",
            "alice",
            "user 'alice' does not exist there, or the password is wrong",
        ),
        (
            "etcdserver: user name is empty",
            None,
            "it wants to know the user, and none is given: check --user, or the client certificate's name",
        ),
        (
            "etcdserver: authentication is not enabled",
            "alice",
            "it has no users (authentication is not enabled), and user 'alice' is given: leave it out",
        ),
        ("etcdserver: invalid auth token", "alice", "user 'alice': etcdserver: invalid auth token"),
    ],
)
def test_other_refusals_say_what_would_help(text: str, user: str | None, says: str) -> None:
    """A wrong password, a missing user, and a user where there are none."""
    assert refusal(RpcFailed(StatusCode.UNKNOWN, text), b"/election/ns/a", user=user) == says


def test_without_a_user_it_is_the_one_of_the_certificate() -> None:
    """etcd takes the name of the client certificate where no token comes with a call."""
    assert refusal(DENIED, b"/election/ns/a", user=None).startswith("the user of the client certificate has no")


def test_every_request_for_keys_says_which() -> None:
    """A transaction has those that it compares, and those that it touches either way."""
    a, b, c, d = b"a", b"b", b"c", b"d"
    both = rpc.TxnRequest(
        compare=[txn.absent(a)], success=[txn.put(b, b""), txn.delete(c)], failure=[txn.get(d), txn.delete_prefix(a)]
    )
    assert methods.keys_of(both) == [a, b, c, d, a]
    for request in (
        rpc.RangeRequest(key=a),
        rpc.PutRequest(key=a),
        rpc.DeleteRangeRequest(key=a),
        rpc.WatchCreateRequest(key=a),
        el.ProclaimRequest(leader=el.LeaderKey(key=a)),
        el.ResignRequest(leader=el.LeaderKey(key=a)),
    ):
        assert methods.keys_of(request) == [a]
    assert methods.keys_of(el.CampaignRequest(name=a)) == methods.keys_of(el.LeaderRequest(name=a)) == [b"a/"]
    assert methods.keys_of(rpc.LeaseGrantRequest(TTL=1)) == []
