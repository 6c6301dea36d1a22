"""etcd's KV requests on the store: what is refused, what is compared, what is done, and what is answered.

After etcd's server/etcdserver/api/v3rpc/key.go (what is refused unseen) and server/etcdserver/txn (the rest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc
from tests.fake import statuses
from tests.fake.leases import Lessor
from tests.fake.store import Interval, Store

MAX_TXN_OPS = 128

_SORT_KEYS: dict[int, Callable[[kv.KeyValue], Any]] = {
    rpc.RangeRequest.KEY: lambda found: found.key,
    rpc.RangeRequest.VERSION: lambda found: found.version,
    rpc.RangeRequest.CREATE: lambda found: found.create_revision,
    rpc.RangeRequest.MOD: lambda found: found.mod_revision,
    rpc.RangeRequest.VALUE: lambda found: found.value,
}


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The side of a transaction that its comparisons chose, and the same for the transactions in it."""

    succeeded: bool
    ops: list[tuple[rpc.RequestOp, _Chosen | None]]


class EtcdPanics(AssertionError):
    """Real members would end with a panic here, all of them, and again whenever they are started.

    A transaction can do that because its puts are checked against what was before it, and because etcd overlooks
    that a delete with range end `\\0` comprises the key of a put (seen with 3.4.23, 3.5.1 and 3.5.30).
    """


class KeyValues:
    """The KV service, without headers but for their revisions."""

    def __init__(self, store: Store, lessor: Lessor) -> None:
        self._store = store
        self._lessor = lessor

    def range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Answers a range as etcd's executeRange does, its order of filtering, sorting and cutting included."""
        _check_key(request.key)
        return self._range(request)

    def put(self, request: rpc.PutRequest) -> rpc.PutResponse:
        """Writes one key in a revision of its own."""
        _check_put(request)
        if self._store.full:
            raise statuses.NO_SPACE.error()
        if request.lease:
            self._lessor.find(request.lease)
        self._check_previous(request)
        with self._store.writing():
            return self._put(request)

    def delete_range(self, request: rpc.DeleteRangeRequest) -> rpc.DeleteRangeResponse:
        """Deletes an interval; no revision is made when nothing was there."""
        _check_key(request.key)
        with self._store.writing():
            return self._delete_range(request)

    def txn(self, request: rpc.TxnRequest) -> rpc.TxnResponse:
        """Compares, then does everything on one side, in one revision."""
        _check_txn(request, MAX_TXN_OPS)
        _check_overlaps(request.success)
        _check_overlaps(request.failure)
        if self._store.full and _puts_something(request):
            raise statuses.NO_SPACE.error()
        chosen = self._choose(request)
        self._check_chosen(chosen)
        with self._store.writing():
            answer = self._execute(chosen)
            answer.header.revision = self._store.seen_revision
        return answer

    # --- comparing: everything is compared, nested transactions too, before anything is done ---------------

    def _choose(self, request: rpc.TxnRequest) -> _Chosen:
        succeeded = all(self._holds(compare) for compare in request.compare)
        ops = list(request.success if succeeded else request.failure)
        nested = [self._choose(op.request_txn) if op.WhichOneof("request") == "request_txn" else None for op in ops]
        return _Chosen(succeeded, list(zip(ops, nested, strict=True)))

    def _holds(self, compare: rpc.Compare) -> bool:
        found = self._store.select(Interval(compare.key, compare.range_end))
        if not found:
            return compare.target != rpc.Compare.VALUE and _compares(compare, kv.KeyValue())
        return all(_compares(compare, value) for value in found)

    # --- checking, after the side was chosen and before anything is done -----------------------------------

    def _check_chosen(self, chosen: _Chosen) -> None:
        for op, nested in chosen.ops:
            if nested is not None:
                self._check_chosen(nested)
            elif op.WhichOneof("request") == "request_range":
                self._check_revision(op.request_range.revision)
            elif op.WhichOneof("request") == "request_put":
                self._check_previous(op.request_put)
                if op.request_put.lease:
                    self._lessor.find(op.request_put.lease)

    def _check_revision(self, revision: int) -> None:
        if revision > self._store.seen_revision:
            raise statuses.FUTURE_REVISION.error()
        if 0 < revision < self._store.compacted:
            raise statuses.COMPACTED.error()

    def _check_previous(self, request: rpc.PutRequest) -> None:
        if (request.ignore_value or request.ignore_lease) and self._store.get(request.key) is None:
            raise statuses.KEY_NOT_FOUND.error()

    # --- doing ---------------------------------------------------------------------------------------------

    def _execute(self, chosen: _Chosen) -> rpc.TxnResponse:
        answer = rpc.TxnResponse(header=rpc.ResponseHeader(), succeeded=chosen.succeeded)
        for op, nested in chosen.ops:
            done = answer.responses.add()
            if nested is not None:
                done.response_txn.CopyFrom(self._execute(nested))
            elif op.WhichOneof("request") == "request_range":
                done.response_range.CopyFrom(self._range(op.request_range))
            elif op.WhichOneof("request") == "request_put":
                done.response_put.CopyFrom(self._put(op.request_put))
            else:
                done.response_delete_range.CopyFrom(self._delete_range(op.request_delete_range))
        return answer

    def _put(self, request: rpc.PutRequest) -> rpc.PutResponse:
        old = self._store.get(request.key)
        if old is None and (request.ignore_value or request.ignore_lease):
            raise EtcdPanics("a transaction deletes a key and then puts it with ignore_value or ignore_lease")
        value, lease = request.value, request.lease
        if request.ignore_value and old is not None:
            value = old.value
        if request.ignore_lease and old is not None:
            lease = old.lease
        self._store.put(request.key, value, lease)
        return rpc.PutResponse(
            header=rpc.ResponseHeader(revision=self._store.seen_revision), prev_kv=old if request.prev_kv else None
        )

    def _delete_range(self, request: rpc.DeleteRangeRequest) -> rpc.DeleteRangeResponse:
        deleted = self._store.delete(Interval(request.key, request.range_end))
        return rpc.DeleteRangeResponse(
            header=rpc.ResponseHeader(revision=self._store.seen_revision),
            deleted=len(deleted),
            prev_kvs=deleted if request.prev_kv else (),
        )

    def _range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        self._check_revision(request.revision)
        at = request.revision if request.revision > 0 else None
        found = self._store.select(Interval(request.key, request.range_end), at)
        answer = rpc.RangeResponse(header=rpc.ResponseHeader(revision=self._store.seen_revision), count=len(found))
        if request.count_only:
            return answer
        kept = [value for value in _limited(found, request) if _in_bounds(value, request)]
        kept = _sorted(kept, request)
        if 0 < request.limit < len(kept):
            kept = kept[: request.limit]
            answer.more = True
        answer.kvs.extend(kept)
        if request.keys_only:
            for shown in answer.kvs:
                shown.value = b""
        return answer


def _puts_something(request: rpc.TxnRequest) -> bool:
    """Whether some side of a transaction needs space in the database."""
    return any(
        op.WhichOneof("request") == "request_put"
        or (op.WhichOneof("request") == "request_txn" and _puts_something(op.request_txn))
        for op in (*request.success, *request.failure)
    )


def _limited(found: list[kv.KeyValue], request: rpc.RangeRequest) -> list[kv.KeyValue]:
    """The first keys by name, one more than the limit, unless a sort order or a bound asks for all of them."""
    bounds = (
        request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision
    )  # fmt: skip
    if request.limit <= 0 or request.sort_order != rpc.RangeRequest.NONE or any(bounds):
        return found
    return found[: request.limit + 1]


def _in_bounds(found: kv.KeyValue, request: rpc.RangeRequest) -> bool:
    return not (
        0 != request.max_mod_revision < found.mod_revision
        or found.mod_revision < request.min_mod_revision
        or 0 != request.max_create_revision < found.create_revision
        or found.create_revision < request.min_create_revision
    )


def _sorted(found: list[kv.KeyValue], request: rpc.RangeRequest) -> list[kv.KeyValue]:
    if request.sort_order == rpc.RangeRequest.NONE and request.sort_target == rpc.RangeRequest.KEY:
        return found
    return sorted(
        found, key=_SORT_KEYS[request.sort_target], reverse=request.sort_order == rpc.RangeRequest.DESCEND
    )  # fmt: skip


def _compares(compare: rpc.Compare, found: kv.KeyValue) -> bool:
    is_: Any
    wanted: Any
    match compare.target:
        case rpc.Compare.VERSION:
            is_, wanted = found.version, compare.version
        case rpc.Compare.CREATE:
            is_, wanted = found.create_revision, compare.create_revision
        case rpc.Compare.MOD:
            is_, wanted = found.mod_revision, compare.mod_revision
        case rpc.Compare.VALUE:
            is_, wanted = found.value, compare.value
        case rpc.Compare.LEASE:
            is_, wanted = found.lease, compare.lease
    match compare.result:
        case rpc.Compare.EQUAL:
            return bool(is_ == wanted)
        case rpc.Compare.NOT_EQUAL:
            return bool(is_ != wanted)
        case rpc.Compare.GREATER:
            return bool(is_ > wanted)
        case _:
            return bool(is_ < wanted)


def _check_key(key: bytes) -> None:
    if not key:
        raise statuses.EMPTY_KEY.error()


def _check_put(request: rpc.PutRequest) -> None:
    _check_key(request.key)
    if request.ignore_value and request.value:
        raise statuses.VALUE_PROVIDED.error()
    if request.ignore_lease and request.lease:
        raise statuses.LEASE_PROVIDED.error()


def _check_txn(request: rpc.TxnRequest, max_ops: int) -> None:
    ops = max(len(request.compare), len(request.success), len(request.failure))
    if ops > max_ops:
        raise statuses.TOO_MANY_OPS.error()
    for compare in request.compare:
        _check_key(compare.key)
    for op in (*request.success, *request.failure):
        match op.WhichOneof("request"):
            case "request_range":
                _check_key(op.request_range.key)
            case "request_put":
                _check_put(op.request_put)
            case "request_delete_range":
                _check_key(op.request_delete_range.key)
            case "request_txn":
                _check_txn(op.request_txn, max_ops - ops)
            case _:
                raise statuses.KEY_NOT_FOUND.error()


def _check_overlaps(ops: Iterable[rpc.RequestOp]) -> tuple[set[bytes], list[Interval]]:
    """Refuses two puts of one key, and a put of a key that is deleted; the two sides of a nested Txn may overlap."""
    ops = list(ops)
    deletes = [
        Interval(op.request_delete_range.key, op.request_delete_range.range_end)
        for op in ops
        if op.WhichOneof("request") == "request_delete_range"
    ]
    puts: set[bytes] = set()
    for op in ops:
        if op.WhichOneof("request") != "request_txn":
            continue
        success, deleted_in_success = _check_overlaps(op.request_txn.success)
        failure, deleted_in_failure = _check_overlaps(op.request_txn.failure)
        for key in sorted(success | failure):
            _check_single_put(key, puts, deletes)
        puts |= success | failure
        deletes += deleted_in_success + deleted_in_failure
    for op in ops:
        if op.WhichOneof("request") == "request_put":
            _check_single_put(op.request_put.key, puts, deletes)
            puts.add(op.request_put.key)
    return puts, deletes


def _check_single_put(key: bytes, puts: set[bytes], deletes: list[Interval]) -> None:
    # A delete "from here on" (range end \0) is not seen by etcd's check: it reads it as an empty range.
    if key in puts or any(key == gone.key if not gone.end else gone.key <= key < gone.end for gone in deletes):
        raise statuses.DUPLICATE_KEY.error()
