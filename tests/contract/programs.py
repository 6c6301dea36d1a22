"""Random programs of etcd calls, and what came of them in a form that two etcds can be compared by.

Revisions are written relative to the one that a program began at, and leases by their number in the program, so
that the same program has the same outcome wherever it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from election.etcd import methods
from election.etcd.methods import Method
from election.etcd.transport import RpcFailed, Stream, Transport
from election.pb.etcd import election_pb2 as el
from election.pb.etcd import kv_pb2 as kv
from election.pb.etcd import rpc_pb2 as rpc

T = TypeVar("T")

_ANSWER_S = 10.0
_TTL_S = 600
_LEASES = 3
_EVERYTHING = b"\0"
_ELECTION = b"e"

REVISIONS = {
    "revision", "mod_revision", "create_revision", "rev", "start_revision", "compact_revision",
    "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision",
}  # fmt: skip
LEASES = {"lease", "ID"}
_UNSEEN = {"cluster_id", "member_id", "raft_term", "watch_id"}
_OF_ITS_OWN = 4
"""Revisions of programs that are this small and not 0 are relative; `_absolute` makes them absolute."""


@dataclass(frozen=True)
class Call:
    """One call. Its revisions and leases are relative to the run."""

    method: Method[Any, Any]
    request: Message

    def __repr__(self) -> str:
        return f"{self.method.path.rpartition('/')[2]}({' '.join(str(self.request).split())})"


Program = list[Call]
Outcome = list[Any]


class Run:
    """One run of a program: what its numbers stand for on this etcd."""

    def __init__(self, transport: Transport, first_lease: int) -> None:
        self._transport = transport
        self._first_lease = first_lease
        self._base = 0

    async def outcome(self, program: Program) -> Outcome:
        """Runs the program on an empty store, and returns its answers, all keys, and all events in the end."""
        everything = rpc.DeleteRangeRequest(key=_EVERYTHING, range_end=_EVERYTHING)
        await self._send(methods.DELETE_RANGE, everything)
        begun = await self._send(methods.PUT, rpc.PutRequest(key=b"begin"))
        self._base = begun.header.revision
        async with self._watching() as events_until:
            asked = [Call(methods.LEASE_TIME_TO_LIVE, _lease_time_to_live(lease + 1)) for lease in range(_LEASES)]
            outcome = [await self._answer(call) for call in (*program, *asked)]
            listed = await self._send(methods.RANGE, rpc.RangeRequest(key=_EVERYTHING, range_end=_EVERYTHING))
            outcome += [self._told(listed), await events_until(listed.header.revision)]
            for lease in range(1, _LEASES + 1):
                await self._answer(Call(methods.LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=lease)))
        return outcome

    async def _answer(self, call: Call) -> Any:
        request = type(call.request)()
        request.CopyFrom(call.request)
        self._make_absolute(request)
        try:
            return self._told(await self._send(call.method, request))
        except RpcFailed as failed:
            return (failed.code.name, failed.details)

    async def _send(self, method: Method[Any, Any], request: Message) -> Any:
        return await self._transport.unary(0, method, request, timeout_s=_ANSWER_S, metadata=())

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[Callable[[int], Awaitable[list[Any]]]]:
        """Watches everything from now on; the value returns what has happened until a revision."""
        create = rpc.WatchCreateRequest(key=_EVERYTHING, range_end=_EVERYTHING)
        stream = self._transport.stream(0, methods.WATCH, metadata=())

        async def events_until(last_revision: int) -> list[Any]:
            events: list[kv.Event] = []
            while not events or events[-1].kv.mod_revision < last_revision:
                if last_revision == self._base:
                    break
                events += (await self._read(stream)).events
            return [self._told(event) for event in events]

        try:
            await stream.write(rpc.WatchRequest(create_request=create))
            await self._read(stream)
            yield events_until
        finally:
            stream.cancel()

    async def _read(self, stream: Stream[rpc.WatchRequest, rpc.WatchResponse]) -> rpc.WatchResponse:
        async with asyncio.timeout(_ANSWER_S):
            answer = await stream.read()
        assert answer is not None
        assert not answer.canceled
        return answer

    def _make_absolute(self, message: Message) -> None:
        for owner, name, value in _numbers(message):
            if name in REVISIONS and value != 0:
                setattr(owner, name, self._base + value - _OF_ITS_OWN)
            elif name in LEASES and value != 0:
                setattr(owner, name, self._first_lease + value)

    def _told(self, message: Message) -> Any:
        """An answer as nested tuples, with relative numbers; what differs between clusters is left out."""
        told: list[Any] = [type(message).__name__]
        for field, value in message.ListFields():
            if field.name in _UNSEEN or field.name == "TTL":
                continue
            if _is_repeated(field):
                values = [self._told(each) if isinstance(each, Message) else each for each in value]
                told.append((field.name, sorted(values) if field.name == "keys" else values))
            elif isinstance(value, Message):
                told.append((field.name, self._told(value)))
            else:
                told.append((field.name, self._relative(field.name, value)))
        return tuple(told)

    def _relative(self, name: str, value: Any) -> Any:
        if name in REVISIONS:
            return value - self._base
        if name in LEASES:
            return value - self._first_lease
        return value


def _numbers(message: Message) -> Iterator[tuple[Message, str, int]]:
    """All numbers in a message and the messages in it."""
    for field, value in list(message.ListFields()):
        if isinstance(value, Message):
            yield from _numbers(value)
        elif _is_repeated(field):
            for each in value:
                if isinstance(each, Message):
                    yield from _numbers(each)
        elif isinstance(value, int):
            yield message, field.name, value


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _lease_time_to_live(lease: int) -> rpc.LeaseTimeToLiveRequest:
    return rpc.LeaseTimeToLiveRequest(ID=lease, keys=True)


# --- strategies ----------------------------------------------------------------------------------------------


def _mostly(usual: list[Any], *rare: Any) -> st.SearchStrategy[Any]:
    """One of the usual values, and now and then a rare one."""
    return st.sampled_from([*usual * (1 + 60 // len(usual)), *rare])


def _weighted(*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """One of several strategies; `one_of` would drop repeated ones."""
    drawn = [choice for weight, choice in choices for _ in range(weight)]
    return st.integers(0, len(drawn) - 1).flatmap(lambda i: drawn[i])


KEYS = _mostly([b"a", b"a/1", b"a/2", b"b", b"e/1"], b"")
ENDS = st.sampled_from([b"", b"", b"", b"a0", b"a/2", b"z", b"\0", b"A"])
VALUES = st.sampled_from([b"", b"1", b"2"])
LEASE_NUMBERS = _mostly([0, 1], 2, 3, 4)
AT = st.sampled_from([0] * 3 + list(range(_OF_ITS_OWN, _OF_ITS_OWN + 9)))
"""0, or a revision of the program. The smallest is the one that it began at."""
BOUNDS = _mostly([0], *range(_OF_ITS_OWN, _OF_ITS_OWN + 9))
FLAG = st.sampled_from([False, False, True])

RANGES = st.builds(
    rpc.RangeRequest,
    key=KEYS,
    range_end=ENDS,
    limit=st.sampled_from([0, 0, 1, 2]),
    sort_order=st.sampled_from([0, 1, 2]),
    sort_target=st.sampled_from([0, 1, 2, 3, 4]),
    keys_only=FLAG,
    count_only=FLAG,
    min_mod_revision=BOUNDS,
    max_mod_revision=BOUNDS,
    min_create_revision=BOUNDS,
    max_create_revision=BOUNDS,
)
PUTS = _weighted(
    (6, st.builds(rpc.PutRequest, key=KEYS, value=VALUES, lease=LEASE_NUMBERS, prev_kv=FLAG)),
    (
        1,
        st.builds(
            rpc.PutRequest, key=KEYS, value=_mostly([b""], b"1"), lease=LEASE_NUMBERS, ignore_value=st.just(True)
        ),
    ),
    (1, st.builds(rpc.PutRequest, key=KEYS, value=VALUES, lease=_mostly([0], 1), ignore_lease=st.just(True))),
)
DELETES = st.builds(rpc.DeleteRangeRequest, key=KEYS, range_end=ENDS, prev_kv=FLAG)
_HARMLESS_DELETES = DELETES.filter(lambda request: request.range_end != b"\0")
"""In a transaction, a delete without an end can make every member panic: see `EtcdPanics`."""


def _compare(target: int, field: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[rpc.Compare]:
    def build(value: Any, key: bytes, end: bytes, result: int) -> rpc.Compare:
        return rpc.Compare(target=target, result=result, key=key, range_end=end, **{field: value})  # type: ignore[arg-type]

    return st.builds(build, values, KEYS, ENDS, st.sampled_from([0, 1, 2, 3]))


COMPARES = st.one_of(
    _compare(rpc.Compare.VERSION, "version", st.integers(0, 3)),
    _compare(rpc.Compare.CREATE, "create_revision", AT),
    _compare(rpc.Compare.MOD, "mod_revision", AT),
    _compare(rpc.Compare.VALUE, "value", VALUES),
    _compare(rpc.Compare.LEASE, "lease", LEASE_NUMBERS),
)
_RANGE_OPS = st.builds(lambda request: rpc.RequestOp(request_range=request), RANGES)
_PUT_OPS = st.builds(lambda request: rpc.RequestOp(request_put=request), PUTS)
_DELETE_OPS = st.builds(lambda request: rpc.RequestOp(request_delete_range=request), _HARMLESS_DELETES)


def _txns(ops: st.SearchStrategy[rpc.RequestOp]) -> st.SearchStrategy[rpc.TxnRequest]:
    return st.builds(
        rpc.TxnRequest,
        compare=st.lists(COMPARES, max_size=2),
        success=st.lists(ops, max_size=3),
        failure=st.lists(ops, max_size=3),
    )


_FLAT_OPS = _weighted((1, _RANGE_OPS), (3, _PUT_OPS), (1, _DELETE_OPS))
_NESTED_OPS = st.builds(lambda request: rpc.RequestOp(request_txn=request), _txns(_FLAT_OPS))
TXNS = _txns(_weighted((3, _FLAT_OPS), (1, _NESTED_OPS)))

LEASE_IDS = st.integers(1, _LEASES)
LEADERS = st.builds(el.LeaderKey, name=st.just(_ELECTION), key=KEYS, rev=AT, lease=st.integers(1, 4))


def _calls(method: Method[Any, Any], requests: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(method), requests)


CALLS = _weighted(
    (2, _calls(methods.RANGE, RANGES)),
    (1, _calls(methods.RANGE, st.builds(rpc.RangeRequest, key=KEYS, range_end=ENDS, revision=AT))),
    (10, _calls(methods.PUT, PUTS)),
    (2, _calls(methods.DELETE_RANGE, DELETES)),
    (8, _calls(methods.TXN, TXNS)),
    (1, _calls(methods.LEASE_GRANT, st.builds(rpc.LeaseGrantRequest, TTL=st.just(_TTL_S), ID=LEASE_IDS))),
    (1, _calls(methods.LEASE_REVOKE, st.builds(rpc.LeaseRevokeRequest, ID=LEASE_IDS))),
    (1, _calls(methods.LEASE_TIME_TO_LIVE, st.builds(_lease_time_to_live, LEASE_IDS))),
    (1, _calls(methods.LEADER, st.just(el.LeaderRequest(name=_ELECTION)))),
    (1, _calls(methods.PROCLAIM, st.builds(el.ProclaimRequest, leader=LEADERS, value=VALUES))),
    (1, _calls(methods.RESIGN, st.builds(el.ResignRequest, leader=LEADERS))),
    (1, _calls(methods.COMPACT, st.builds(rpc.CompactionRequest, revision=st.integers(_OF_ITS_OWN, _OF_ITS_OWN + 9)))),
)
_GRANTED = [Call(methods.LEASE_GRANT, rpc.LeaseGrantRequest(TTL=_TTL_S, ID=1))]
PROGRAMS = st.lists(CALLS, min_size=10, max_size=40).map(lambda calls: [*_GRANTED, *calls])
