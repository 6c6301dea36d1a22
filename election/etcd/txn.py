"""The comparisons and operations of a transaction, as short words."""

from __future__ import annotations

from collections.abc import Sequence

from election.keys import range_end
from election.pb.etcd import rpc_pb2 as rpc


def created_at(key: bytes, revision: int) -> rpc.Compare:
    """Holds when the key's create revision is this one; 0 stands for a key that is absent."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.CREATE, key=key, create_revision=revision)


def absent(key: bytes) -> rpc.Compare:
    """Holds when the key does not exist."""
    return created_at(key, 0)


def present(key: bytes) -> rpc.Compare:
    """Holds when the key exists."""
    return rpc.Compare(result=rpc.Compare.GREATER, target=rpc.Compare.CREATE, key=key, create_revision=0)


def rewritten(key: bytes) -> rpc.Compare:
    """Holds when the key exists and was written again since it was created."""
    return rpc.Compare(result=rpc.Compare.GREATER, target=rpc.Compare.VERSION, key=key, version=1)


def modified_at(key: bytes, revision: int) -> rpc.Compare:
    """Holds when the key's last change was at this revision; 0 stands for a key that is absent."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=revision)


def nothing_newer(prefix: bytes, revision: int) -> rpc.Compare:
    """Holds when no key with the prefix was changed after this revision, and when there is none at all.

    It does not see deletions.
    """
    return rpc.Compare(
        result=rpc.Compare.LESS,
        target=rpc.Compare.MOD,
        key=prefix,
        range_end=range_end(prefix),
        mod_revision=revision + 1,
    )


def none_older(prefix: bytes, revision: int) -> rpc.Compare:
    """Holds when no key with the prefix was created before this revision."""
    return rpc.Compare(
        result=rpc.Compare.GREATER,
        target=rpc.Compare.CREATE,
        key=prefix,
        range_end=range_end(prefix),
        create_revision=revision - 1,
    )


def get_prefix(prefix: bytes) -> rpc.RequestOp:
    """Reads all keys with a prefix, by name."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=prefix, range_end=range_end(prefix)))


def put(key: bytes, value: bytes, *, lease: int = 0, keep_lease: bool = False) -> rpc.RequestOp:
    """Writes a key. With `keep_lease` it must exist, and stays on its lease."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease, ignore_lease=keep_lease))


def get(key: bytes) -> rpc.RequestOp:
    """Reads a key."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))


def names(prefix: bytes, *, limit: int = 0) -> rpc.RequestOp:
    """Reads the keys with the prefix without their values, the first so many; 0 for all."""
    return rpc.RequestOp(
        request_range=rpc.RangeRequest(key=prefix, range_end=range_end(prefix), limit=limit, keys_only=True)
    )


def head(key: bytes) -> rpc.RequestOp:
    """Reads what etcd knows of a key, without its value."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, keys_only=True))


def oldest(prefix: bytes) -> rpc.RequestOp:
    """Reads the key with the prefix that was created first."""
    return rpc.RequestOp(
        request_range=rpc.RangeRequest(
            key=prefix,
            range_end=range_end(prefix),
            limit=1,
            sort_target=rpc.RangeRequest.CREATE,
            sort_order=rpc.RangeRequest.ASCEND,
        )
    )


def delete(key: bytes) -> rpc.RequestOp:
    """Deletes a key."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


def delete_prefix(prefix: bytes) -> rpc.RequestOp:
    """Deletes all keys with a prefix, in one operation."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=prefix, range_end=range_end(prefix)))


def nested(
    compare: Sequence[rpc.Compare], success: Sequence[rpc.RequestOp], failure: Sequence[rpc.RequestOp] = ()
) -> rpc.RequestOp:
    """A transaction inside of one. Its comparisons look at what was before the whole."""
    return rpc.RequestOp(request_txn=rpc.TxnRequest(compare=compare, success=success, failure=failure))
