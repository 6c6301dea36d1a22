"""The highest tokens seen, in etcd: for a resource that runs as several servers, which then refuse as one."""

from __future__ import annotations

from election.errors import ConfigError, HighWaterError
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.pb.etcd import kv_pb2 as kv
from election.token import Token

_TRIES = 100
"""Each one that fails means that somebody else has raised the mark."""


class EtcdHighWater:
    """Marks in etcd, one key PREFIX + name for each, in text form. An AsyncHighWater for the client's event loop.

    Costs one linearizable read, and one write when the mark rises. It is no better than etcd's own history: marks
    are set back by the restore of an old snapshot like everything else, and a linearizable read can be stale after
    the pause of a member of etcd before 3.5.28 and 3.6.9.
    """

    def __init__(self, client: EtcdClient, prefix: bytes) -> None:
        self._client = client
        self._prefix = prefix

    async def advance(self, name: str, token: Token) -> Token:
        """See `HighWater`; raises EtcdError when etcd cannot be reached."""
        key = self._prefix + name.encode()
        for _ in range(_TRIES):
            found, _header = await self._client.get(key)
            mark = None if found is None else _mark(found)
            if mark is not None and mark >= token:
                return mark
            unchanged = txn.absent(key) if found is None else txn.modified_at(key, found.mod_revision)
            # A repetition of one that went unnoticed fails its comparison, and the mark is read again.
            put = txn.put(key, str(token).encode())
            answer = await self._client.txn([unchanged], [put], repeat=Repeat.SAFE)
            if answer.succeeded:
                return token
        raise HighWaterError(f"the highest token seen at {key!r} has changed {_TRIES} times in a row")


def _mark(found: kv.KeyValue) -> Token:
    try:
        return Token.parse(found.value.decode(errors="replace"))
    except ConfigError as error:
        raise ConfigError(f"the highest token seen at {found.key!r} is damaged: {error}") from None
