"""Lists a prefix in pages, so that an answer fits into a message however much there is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from election.errors import AnswerTooLarge, Compacted, EtcdUnavailable
from election.etcd.client import EtcdClient
from election.keys import range_end
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

PAGE_KEYS = 500
"""The most keys that are asked for at once. Also for keys alone etcd reads the values."""

_FIRST_PAGE_KEYS = 16
_PAGE_BYTES = 4 * 1024 * 1024
_STEP = 8
_ATTEMPTS = 3


async def list_all(client: EtcdClient, prefix: bytes, *, keys_only: bool = False) -> rpc.RangeResponse:
    """All keys with a prefix, oldest first, linearizably, at one revision: that of the header.

    Raises:
        Compacted: etcd compacts that revision before everything is read, again and again.
        EtcdError: etcd could not be used.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _list(client, prefix, keys_only)
        except Compacted:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def _list(client: EtcdClient, prefix: bytes, keys_only: bool) -> rpc.RangeResponse:
    header: rpc.ResponseHeader | None = None
    kvs: list[kv.KeyValue] = []
    async with aclosing(list_pages(client, prefix, keys_only=keys_only)) as pages:
        async for page in pages:
            header = header or page.header
            kvs += page.kvs
    return rpc.RangeResponse(header=header, kvs=sorted(kvs, key=lambda found: found.create_revision), count=len(kvs))


async def list_pages(
    client: EtcdClient, prefix: bytes, *, keys_only: bool = False, revision: int = 0
) -> AsyncGenerator[rpc.RangeResponse]:
    """The keys by name, all as they were at a revision: that of the first page, linearizably, where none is given.

    Raises Compacted when etcd compacts that revision meanwhile.

    How large values are is known only when they are there. So pages begin small and grow; one that is too large, or
    that takes too long, is asked for again in smaller ones.
    """
    key, limit = prefix, _FIRST_PAGE_KEYS
    while True:
        request = rpc.RangeRequest(
            key=key, range_end=range_end(prefix), revision=revision, limit=limit, keys_only=keys_only
        )
        try:
            page = await client.range(request)
        except (AnswerTooLarge, EtcdUnavailable) as error:
            smallest = 1 if isinstance(error, AnswerTooLarge) else _FIRST_PAGE_KEYS
            if limit <= smallest:
                raise
            limit = max(limit // _STEP, smallest)
            continue
        yield page
        if not page.more:
            return
        key = page.kvs[-1].key + b"\0"
        revision = revision or page.header.revision
        fitting = _PAGE_BYTES * len(page.kvs) // max(page.ByteSize(), 1)
        limit = max(min(fitting, limit * _STEP, PAGE_KEYS), 1)
