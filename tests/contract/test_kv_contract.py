"""What the project relies on of etcd's ranges, puts and deletes."""

from __future__ import annotations

import pytest

from election.errors import Compacted, EtcdError, LeaseNotFound
from election.etcd import methods
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import Subject, contract

NO_LEASE = ("NOT_FOUND", "etcdserver: requested lease not found")
NO_KEY = ("INVALID_ARGUMENT", "etcdserver: key is not provided")
NOT_THERE = ("INVALID_ARGUMENT", "etcdserver: key not found")


@contract
async def test_a_put_makes_one_revision_and_the_key_tells_its_history(etcd: Subject) -> None:
    first = await etcd.put("k", b"1")
    second = await etcd.put("k", b"2")
    assert second == first + 1
    found, header = await etcd.client.get(etcd.key("k"))
    assert found is not None
    assert (found.value, found.create_revision, found.mod_revision, found.version) == (b"2", first, second, 2)
    assert header.revision >= second


@contract
async def test_a_key_that_comes_again_is_a_new_one(etcd: Subject) -> None:
    await etcd.put("k")
    await etcd.client.delete(etcd.key("k"))
    assert await etcd.get("k") is None
    again = await etcd.put("k")
    found = await etcd.get("k")
    assert found is not None
    assert (found.create_revision, found.version) == (again, 1)


@contract
async def test_a_list_has_the_oldest_key_first_and_the_revision_it_was_read_at(etcd: Subject) -> None:
    for name in ("c", "a", "b"):
        last = await etcd.put(name)
    await etcd.put("c", b"newer, but not younger")
    listed = await etcd.client.list(etcd.prefix)
    assert [found.key[-1:] for found in listed.kvs] == [b"c", b"a", b"b"]
    assert listed.header.revision >= last + 1


@contract
async def test_a_prefix_ends_where_it_says(etcd: Subject) -> None:
    for name in ("a", "a.", "a/", "a/x", "a/\x7f", "a0", "b"):
        await etcd.put(name)
    listed = await etcd.client.list(etcd.key("a/"))
    assert sorted(found.key.removeprefix(etcd.prefix) for found in listed.kvs) == [b"a/", b"a/x", b"a/\x7f"]


@contract
async def test_a_range_is_sorted_as_asked(etcd: Subject) -> None:
    await etcd.put("c", b"1")
    await etcd.put("b", b"2")
    await etcd.put("a", b"3")
    for _ in range(2):
        await etcd.put("c", b"1")
    await etcd.put("b", b"2")
    orders = {
        rpc.RangeRequest.KEY: "abc",
        rpc.RangeRequest.VERSION: "abc",
        rpc.RangeRequest.CREATE: "cba",
        rpc.RangeRequest.MOD: "acb",
        rpc.RangeRequest.VALUE: "cba",
    }
    for target, ascending in orders.items():
        expected = {
            rpc.RangeRequest.NONE: ascending,
            rpc.RangeRequest.ASCEND: ascending,
            rpc.RangeRequest.DESCEND: ascending[::-1],
        }
        for order, names in expected.items():
            found = await etcd.client.range(etcd.range(sort_target=target, sort_order=order))
            assert "".join(chr(each.key[-1]) for each in found.kvs) == names, (target, order)


@contract
async def test_a_limit_cuts_after_sorting_and_the_count_is_of_all(etcd: Subject) -> None:
    for name in ("c", "a", "b"):
        await etcd.put(name, b"value")
    oldest = etcd.range(limit=1, sort_target=rpc.RangeRequest.CREATE, sort_order=rpc.RangeRequest.ASCEND)
    found = await etcd.client.range(oldest)
    assert ([each.key[-1:] for each in found.kvs], found.more, found.count) == ([b"c"], True, 3)
    found = await etcd.client.range(etcd.range(limit=3))
    assert (len(found.kvs), found.more, found.count) == (3, False, 3)
    found = await etcd.client.range(etcd.range(keys_only=True))
    assert [(each.key[-1:], each.value) for each in found.kvs] == [(b"a", b""), (b"b", b""), (b"c", b"")]
    found = await etcd.client.range(etcd.range(count_only=True, limit=1))
    assert (len(found.kvs), found.more, found.count) == (0, False, 3)


@contract
async def test_a_limit_without_an_order_cuts_before_sorting(etcd: Subject) -> None:
    for name in ("d", "c", "b", "a"):
        await etcd.put(name)
    found = await etcd.client.range(etcd.range(limit=1, sort_target=rpc.RangeRequest.CREATE))
    assert [each.key[-1:] for each in found.kvs] == [b"b"]  # the older of the first two by name, not the oldest
    assert found.more


@contract
async def test_a_range_may_be_bounded_by_revisions(etcd: Subject) -> None:
    revisions = [await etcd.put(name) for name in ("a", "b", "c")]
    changed = await etcd.put("a")

    async def names(**bounds: int) -> str:
        found = await etcd.client.range(etcd.range(**bounds))
        return "".join(chr(each.key[-1]) for each in found.kvs)

    assert await names(max_create_revision=revisions[1]) == "ab"
    assert await names(min_create_revision=revisions[1]) == "bc"
    assert await names(max_mod_revision=revisions[2]) == "bc"
    assert await names(min_mod_revision=changed) == "a"


@contract
async def test_a_range_at_a_revision_shows_the_past(etcd: Subject) -> None:
    first = await etcd.put("k", b"1")
    await etcd.put("k", b"2")
    await etcd.client.delete(etcd.key("k"))
    then = await etcd.client.range(etcd.range(revision=first))
    assert [found.value for found in then.kvs] == [b"1"]
    assert then.header.revision > first  # that of the answer, not of what it shows
    future = await etcd.refusal(methods.RANGE, etcd.range(revision=then.header.revision + 1_000_000))
    assert future == ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision")


@contract
async def test_a_compacted_revision_is_gone(etcd: Subject) -> None:
    first = await etcd.put("k", b"1")
    second = await etcd.put("k", b"2")
    third = await etcd.put("k", b"3")
    await etcd.client.compact(second)
    with pytest.raises(Compacted):
        await etcd.client.range(etcd.range(revision=first))
    kept = await etcd.client.range(etcd.range(revision=second))
    assert [found.value for found in kept.kvs] == [b"2"]
    gone = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
    assert await etcd.refusal(methods.COMPACT, rpc.CompactionRequest(revision=second)) == gone
    future = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision")
    assert await etcd.refusal(methods.COMPACT, rpc.CompactionRequest(revision=third + 1_000_000)) == future


@contract
async def test_intervals(etcd: Subject) -> None:
    for name in ("a", "b", "c"):
        await etcd.put(name)

    async def names(first: str, end: bytes) -> str:
        found = await etcd.client.range(rpc.RangeRequest(key=etcd.key(first), range_end=end))
        return "".join(chr(each.key[-1]) for each in found.kvs if each.key.startswith(etcd.prefix))

    assert await names("b", b"") == "b"
    assert await names("a", etcd.key("c")) == "ab"
    assert await names("b", b"\0") == "bc"
    assert await names("b", etcd.key("b")) == ""
    assert await names("c", etcd.key("a")) == ""


@contract
async def test_a_put_with_a_lease_that_is_not_there_is_refused(etcd: Subject) -> None:
    put = rpc.PutRequest(key=etcd.key("k"), lease=4711)
    assert await etcd.refusal(methods.PUT, put) == NO_LEASE
    with pytest.raises(LeaseNotFound) as refused:
        await etcd.put("k", lease=4711)
    assert not refused.value.indefinite
    assert await etcd.get("k") is None


@contract
async def test_a_put_can_keep_the_value_or_the_lease(etcd: Subject) -> None:
    lease = await etcd.grant()
    await etcd.put("k", b"old", lease=lease)
    await etcd.raw(methods.PUT, rpc.PutRequest(key=etcd.key("k"), value=b"new", ignore_lease=True))
    found = await etcd.get("k")
    assert found is not None
    assert (found.value, found.lease) == (b"new", lease)
    answer = await etcd.raw(methods.PUT, rpc.PutRequest(key=etcd.key("k"), ignore_value=True, prev_kv=True))
    assert answer.prev_kv == found
    found = await etcd.get("k")
    assert found is not None
    assert (found.value, found.lease, found.version) == (b"new", 0, 3)


@contract
async def test_a_put_that_keeps_something_needs_the_key(etcd: Subject) -> None:
    absent = etcd.key("k")
    assert await etcd.refusal(methods.PUT, rpc.PutRequest(key=absent, ignore_lease=True, value=b"v")) == NOT_THERE
    assert await etcd.refusal(methods.PUT, rpc.PutRequest(key=absent, ignore_value=True)) == NOT_THERE
    both = rpc.PutRequest(key=absent, ignore_value=True, value=b"v")
    assert await etcd.refusal(methods.PUT, both) == ("INVALID_ARGUMENT", "etcdserver: value is provided")
    both = rpc.PutRequest(key=absent, ignore_lease=True, lease=4711)
    assert await etcd.refusal(methods.PUT, both) == ("INVALID_ARGUMENT", "etcdserver: lease is provided")
    with pytest.raises(EtcdError) as refused:
        await etcd.client.call(methods.PUT, rpc.PutRequest(key=absent, ignore_lease=True))
    assert not refused.value.indefinite


@contract
async def test_a_delete_returns_what_was_there_and_makes_no_revision_for_nothing(etcd: Subject) -> None:
    for name in ("b", "a"):
        revision = await etcd.put(name, name.encode())
    request = rpc.DeleteRangeRequest(key=etcd.prefix, range_end=etcd.prefix[:-1] + b"0", prev_kv=True)
    deleted = await etcd.raw(methods.DELETE_RANGE, request)
    assert (deleted.deleted, [old.value for old in deleted.prev_kvs]) == (2, [b"a", b"b"])
    assert deleted.header.revision == revision + 1
    deleted = await etcd.raw(methods.DELETE_RANGE, request)
    assert (deleted.deleted, list(deleted.prev_kvs)) == (0, [])
    assert deleted.header.revision == revision + 1


@contract
async def test_a_request_without_a_key_is_refused(etcd: Subject) -> None:
    assert await etcd.refusal(methods.RANGE, rpc.RangeRequest()) == NO_KEY
    assert await etcd.refusal(methods.PUT, rpc.PutRequest(value=b"v")) == NO_KEY
    assert await etcd.refusal(methods.DELETE_RANGE, rpc.DeleteRangeRequest(range_end=b"x")) == NO_KEY


@contract
async def test_a_request_that_is_too_large_is_refused(etcd: Subject) -> None:
    put = rpc.PutRequest(key=etcd.key("k"), value=bytes(1_600_000))
    assert await etcd.refusal(methods.PUT, put) == ("INVALID_ARGUMENT", "etcdserver: request is too large")


@contract
async def test_answers_name_the_cluster_the_member_and_the_term(etcd: Subject) -> None:
    members = await etcd.raw(methods.MEMBER_LIST, rpc.MemberListRequest(linearizable=True))
    status = await etcd.client.status(0)
    _, header = await etcd.client.get(etcd.key("k"))
    assert len(members.members) == len(etcd.transport.endpoints)
    assert header.member_id in {member.ID for member in members.members}
    assert status.leader in {member.ID for member in members.members}
    assert status.raftTerm == header.raft_term == etcd.client.raft_term > 0
    assert status.header.cluster_id == header.cluster_id != 0
    assert status.version.startswith("3.")


@contract
async def test_a_cluster_without_authentication_says_so(etcd: Subject) -> None:
    request = rpc.AuthenticateRequest(name="root", password="x")
    refusal = ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled")
    assert await etcd.refusal(methods.AUTHENTICATE, request) == refusal
