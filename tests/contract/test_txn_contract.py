"""What the project relies on of etcd's transactions."""

from __future__ import annotations

from itertools import product

import pytest

from election.errors import LeaseNotFound
from election.etcd import methods
from election.etcd.txn import absent, created_at, delete, delete_prefix, get, nothing_newer, put
from election.keys import range_end
from election.pb.etcd import rpc_pb2 as rpc
from tests.contract.subject import Subject, contract

EQUAL, GREATER, LESS, NOT_EQUAL = (
    rpc.Compare.EQUAL, rpc.Compare.GREATER, rpc.Compare.LESS, rpc.Compare.NOT_EQUAL
)  # fmt: skip
DUPLICATE = ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request")
TOO_MANY = ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request")


async def holds(etcd: Subject, *compares: rpc.Compare) -> bool:
    return (await etcd.client.txn(compares, [])).succeeded


def nested(
    compare: list[rpc.Compare], success: list[rpc.RequestOp], failure: list[rpc.RequestOp] | None = None
) -> rpc.RequestOp:
    return rpc.RequestOp(request_txn=rpc.TxnRequest(compare=compare, success=success, failure=failure or []))


@contract
async def test_every_target_compares_in_every_way(etcd: Subject) -> None:
    lease = await etcd.grant()
    await etcd.put("k", b"m", lease=lease)
    await etcd.put("k", b"m", lease=lease)
    found = await etcd.get("k")
    assert found is not None
    key = etcd.key("k")
    for difference, result in product((-1, 0, 1), (EQUAL, GREATER, LESS, NOT_EQUAL)):
        is_less, is_equal = difference > 0, difference == 0  # the key's value, beside the one it is compared with
        expected = {
            EQUAL: is_equal, NOT_EQUAL: not is_equal, LESS: is_less, GREATER: not is_less and not is_equal
        }[result]  # fmt: skip
        compares = (
            rpc.Compare(target=rpc.Compare.VERSION, version=found.version + difference),
            rpc.Compare(target=rpc.Compare.CREATE, create_revision=found.create_revision + difference),
            rpc.Compare(target=rpc.Compare.MOD, mod_revision=found.mod_revision + difference),
            rpc.Compare(target=rpc.Compare.VALUE, value=bytes([ord("m") + difference])),
            rpc.Compare(target=rpc.Compare.LEASE, lease=lease + difference),
        )
        for compare in compares:
            compare.key, compare.result = key, result
            assert await holds(etcd, compare) == expected, compare


@contract
async def test_an_absent_key_is_all_zeros_but_has_no_value(etcd: Subject) -> None:
    key = etcd.key("absent")
    assert await holds(etcd, absent(key))
    for target in (rpc.Compare.VERSION, rpc.Compare.CREATE, rpc.Compare.MOD, rpc.Compare.LEASE):
        assert await holds(etcd, rpc.Compare(target=target, key=key))
        assert not await holds(etcd, rpc.Compare(target=target, key=key, result=NOT_EQUAL))
        assert not await holds(etcd, rpc.Compare(target=target, key=key, result=GREATER))
    for result in (EQUAL, NOT_EQUAL, LESS, GREATER):
        for value in (b"", b"x"):
            compare = rpc.Compare(target=rpc.Compare.VALUE, key=key, result=result, value=value)
            assert not await holds(etcd, compare), compare


@contract
async def test_a_compare_of_a_range_holds_for_all_of_its_keys(etcd: Subject) -> None:
    first = await etcd.put("p/a")
    assert await holds(etcd, nothing_newer(etcd.key("p/"), first))
    second = await etcd.put("p/b")
    assert not await holds(etcd, nothing_newer(etcd.key("p/"), first))
    assert await holds(etcd, nothing_newer(etcd.key("p/"), second))


@contract
async def test_a_compare_of_an_empty_range_is_one_of_an_absent_key(etcd: Subject) -> None:
    prefix = etcd.key("nobody/")
    assert await holds(etcd, nothing_newer(prefix, 1))
    assert await holds(etcd, rpc.Compare(target=rpc.Compare.CREATE, key=prefix, range_end=range_end(prefix)))
    created = rpc.Compare(target=rpc.Compare.CREATE, key=prefix, range_end=range_end(prefix), create_revision=5)
    assert not await holds(etcd, created)
    value = rpc.Compare(target=rpc.Compare.VALUE, key=prefix, range_end=range_end(prefix), result=NOT_EQUAL, value=b"x")
    assert not await holds(etcd, value)


@contract
async def test_all_compares_must_hold(etcd: Subject) -> None:
    revision = await etcd.put("k")
    assert await holds(etcd)
    assert await holds(etcd, created_at(etcd.key("k"), revision), absent(etcd.key("other")))
    assert not await holds(etcd, created_at(etcd.key("k"), revision), absent(etcd.key("k")))


@contract
async def test_a_transaction_is_one_revision_and_answers_in_order(etcd: Subject) -> None:
    before = await etcd.put("gone", b"old")
    done = await etcd.client.txn(
        [absent(etcd.key("a"))],
        [get(etcd.key("a")), put(etcd.key("a"), b"1"), get(etcd.key("a")), delete(etcd.key("gone"))],
    )
    assert done.succeeded
    assert done.header.revision == before + 1
    empty, written, seen, deleted = done.responses
    assert empty.response_range.count == 0
    assert written.response_put.header.revision == before + 1
    assert [found.mod_revision for found in seen.response_range.kvs] == [before + 1]
    assert deleted.response_delete_range.deleted == 1


@contract
async def test_a_transaction_that_changes_nothing_makes_no_revision(etcd: Subject) -> None:
    before = await etcd.put("k")
    done = await etcd.client.txn([absent(etcd.key("k"))], [put(etcd.key("k"), b"")], [delete(etcd.key("nothing"))])
    assert not done.succeeded
    assert done.header.revision == before
    assert done.responses[0].response_delete_range.deleted == 0


@contract
async def test_the_other_side_is_done_where_a_compare_fails(etcd: Subject) -> None:
    await etcd.put("k", b"there")
    done = await etcd.client.txn([absent(etcd.key("k"))], [put(etcd.key("k"), b"new")], [get(etcd.key("k"))])
    assert not done.succeeded
    assert [found.value for found in done.responses[0].response_range.kvs] == [b"there"]


@contract
async def test_nested_compares_look_at_what_was_before_the_transaction(etcd: Subject) -> None:
    key = etcd.key("k")
    done = await etcd.client.txn(
        [],
        [
            put(key, b"outer"),
            nested([absent(key)], [put(etcd.key("yes"), b"")], [put(etcd.key("no"), b"")]),
            nested([created_at(key, 5)], [], [nested([], [get(etcd.key("yes"))])]),
        ],
    )
    assert done.succeeded
    assert done.responses[1].response_txn.succeeded
    assert not done.responses[2].response_txn.succeeded
    innermost = done.responses[2].response_txn.responses[0].response_txn
    assert innermost.responses[0].response_range.count == 1
    assert sorted(await etcd.names()) == ["k", "yes"]


@contract
async def test_a_delete_of_a_prefix_is_one_operation(etcd: Subject) -> None:
    for name in ("p/a", "p/b", "q"):
        await etcd.put(name)
    done = await etcd.client.txn([], [delete_prefix(etcd.key("p/"))])
    assert done.responses[0].response_delete_range.deleted == 2
    assert await etcd.names() == ["q"]


@contract
async def test_a_key_is_written_once_in_a_transaction(etcd: Subject) -> None:
    key, other = etcd.key("p/k"), etcd.key("p/other")

    async def refusal(*ops: rpc.RequestOp) -> tuple[str, str]:
        return await etcd.refusal(methods.TXN, rpc.TxnRequest(success=ops))

    assert await refusal(put(key, b"1"), put(key, b"2")) == DUPLICATE
    assert await refusal(put(key, b"1"), delete(key)) == DUPLICATE
    assert await refusal(delete_prefix(etcd.key("p/")), put(key, b"1")) == DUPLICATE
    assert await refusal(put(key, b"1"), nested([], [put(key, b"2")])) == DUPLICATE
    assert await refusal(nested([], [put(key, b"1")]), nested([], [], [put(key, b"2")])) == DUPLICATE
    failure = rpc.TxnRequest(failure=[put(key, b"1"), put(key, b"2")])
    assert await etcd.refusal(methods.TXN, failure) == DUPLICATE
    await etcd.client.txn([], [nested([], [put(key, b"1")], [put(key, b"2")]), delete(other), delete(other)])


@contract
async def test_a_transaction_has_at_most_128_operations_of_a_kind(etcd: Subject) -> None:
    compares = [absent(etcd.key(f"c{i}")) for i in range(128)]
    puts = [put(etcd.key(f"p{i}"), b"") for i in range(128)]
    assert (await etcd.client.txn(compares, puts, puts)).succeeded
    for request in (
        rpc.TxnRequest(compare=[*compares, absent(etcd.key("one more"))]),
        rpc.TxnRequest(success=[*puts, put(etcd.key("one more"), b"")]),
        rpc.TxnRequest(failure=[*puts, put(etcd.key("one more"), b"")]),
        rpc.TxnRequest(success=[*puts[1:], nested([], puts[:2])]),
    ):
        assert await etcd.refusal(methods.TXN, request) == TOO_MANY


@contract
async def test_what_is_not_allowed_prevents_everything_but_only_on_the_side_that_is_done(etcd: Subject) -> None:
    unknown = put(etcd.key("b"), b"", lease=4711)
    with pytest.raises(LeaseNotFound) as refused:
        await etcd.client.txn([], [put(etcd.key("a"), b""), unknown])
    assert not refused.value.indefinite
    assert await etcd.names() == []
    assert (await etcd.client.txn([], [put(etcd.key("a"), b"")], [unknown])).succeeded
    kept = rpc.RequestOp(request_put=rpc.PutRequest(key=etcd.key("absent"), ignore_lease=True))
    refusal = await etcd.refusal(methods.TXN, rpc.TxnRequest(success=[kept]))
    assert refusal == ("INVALID_ARGUMENT", "etcdserver: key not found")
    refusal = await etcd.refusal(methods.TXN, rpc.TxnRequest(compare=[rpc.Compare()]))
    assert refusal == ("INVALID_ARGUMENT", "etcdserver: key is not provided")
    assert await etcd.names() == ["a"]


@contract
async def test_a_handover_puts_the_successors_record_and_keeps_its_lease(etcd: Subject) -> None:
    mine, theirs = await etcd.grant(), await etcd.grant()
    first = await etcd.put("mine", lease=mine)
    second = await etcd.put("theirs", b"waiting", lease=theirs)
    elected = rpc.PutRequest(key=etcd.key("theirs"), value=b"elected", ignore_lease=True)
    done = await etcd.client.txn(
        [created_at(etcd.key("mine"), first), created_at(etcd.key("theirs"), second)],
        [delete(etcd.key("mine")), rpc.RequestOp(request_put=elected)],
    )
    assert done.succeeded
    found = await etcd.get("theirs")
    assert found is not None
    assert (found.value, found.lease, found.create_revision) == (b"elected", theirs, second)
    assert await etcd.names() == ["theirs"]
