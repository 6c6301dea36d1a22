"""Notices that etcd's history was set back, and keeps tokens growing all the same: by the epoch.

An etcd that is restored from a snapshot, or whose keys were copied to another one, hands out revisions that were
tokens before. So whoever stands remembers the highest (epoch, revision) that it has seen: in memory, in the namespace
in etcd, and in a local folder where it is given one. An etcd that is behind that is not led in until an operator
raises the epoch, or its revision has passed what was seen: `etcdutl snapshot restore --bump-revision --mark-compacted`
sees to that, and lets every watch begin anew, so that nobody goes on with keys that are gone.

What is known of etcd is asked for through raft (the grant of the candidate's lease), since a linearizable read can be
stale after a process pause (etcd #20418) and would look like a history that was set back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from election.errors import ElectionError, EtcdError, HighWaterError, RolledBack
from election.etcd import txn
from election.etcd.client import EtcdClient, Repeat
from election.highwater import AsyncHighWater
from election.keys import Keyspace
from election.pb.etcd import rpc_pb2 as rpc
from election.pb.etcd.kv_pb2 import KeyValue
from election.records import EpochRecord
from election.token import Token

logger = logging.getLogger("election")

_NOTHING = Token(0, 0)


@dataclass(frozen=True, slots=True)
class Epoch:
    """The epoch of a namespace, as it was read: a transaction can compare that it still is."""

    number: int
    key: bytes
    mod_revision: int

    @property
    def unchanged(self) -> rpc.Compare:
        """Holds until the epoch is raised, or somebody has reported that history was set back."""
        return txn.modified_at(self.key, self.mod_revision)


class EpochGuard:
    """Lets candidates of one namespace stand only while tokens grow; shared by all of a connection."""

    def __init__(self, client: EtcdClient, keyspace: Keyspace, *, memory: AsyncHighWater | None = None) -> None:
        self._client = client
        self._keyspace = keyspace
        self._memory = memory
        self._highest = _NOTHING

    async def admit(self, election: str, revision: int, *, who: str) -> Epoch:
        """The present epoch, for a candidate to whom etcd has answered at `revision`, through raft.

        What this process knows better than the namespace does is written there, so that others refuse as well.

        Raises:
            RolledBack: etcd's history is behind what was seen.
            EtcdError: etcd could not be asked.
            ConfigError: the memory cannot be used.
        """
        # What is known is taken before etcd is read: what others learn meanwhile may be ahead of `revision`.
        known = max(await self._remember(_NOTHING), self._highest)
        record, epoch, last, read_at = await self._read(election)
        now = Token(record.epoch, max(revision, read_at))
        reported = Token(record.epoch, record.revision)
        highest = max(known, reported, last)
        if now < highest:
            if highest > reported:
                await self._report(epoch, highest, who)
            raise RolledBack(
                f"etcd's history was set back: it is at {now}, and {highest} has been seen in namespace "
                f"{self._keyspace.namespace!r}, so tokens would shrink and nobody may lead; once nothing acts on the "
                "old tokens any more, run `election epoch raise`, or restore etcd again with --bump-revision and "
                "--mark-compacted"
            )
        await self.keep(now)
        return epoch

    async def keep(self, token: Token) -> None:
        """Keeps a token that was seen, for as long as the memory lasts."""
        if token <= self._highest:
            return
        self._highest = token
        try:
            await self._remember(token)
        except ElectionError as error:
            logger.warning("the highest token cannot be kept in the state folder: %s", error)

    async def _remember(self, token: Token) -> Token:
        if self._memory is None:
            return _NOTHING
        try:
            return await self._memory.advance(self._keyspace.namespace, token)
        except HighWaterError as error:
            logger.warning("the highest token cannot be kept in the state folder: %s", error)
            return _NOTHING

    async def _read(self, election: str) -> tuple[EpochRecord, Epoch, Token, int]:
        epoch_key, highest_key = self._keyspace.epoch, self._keyspace.highest(election)
        answer = await self._client.txn([], [txn.get(epoch_key), txn.get(highest_key)], repeat=Repeat.SAFE)
        epochs, highests = (response.response_range.kvs for response in answer.responses)
        record = _record(self._keyspace, epochs[0] if epochs else None)
        last = decode_highest(highests[0].value) if highests else _NOTHING
        epoch = Epoch(record.epoch, epoch_key, epochs[0].mod_revision if epochs else 0)
        return record, epoch, last, answer.header.revision

    async def _report(self, epoch: Epoch, highest: Token, who: str) -> None:
        record = EpochRecord(highest.epoch, highest.revision, by=who, at=self._client.clock.wall())
        try:
            await self._client.txn([epoch.unchanged], [txn.put(epoch.key, record.encode())], repeat=Repeat.SAFE)
        except EtcdError as error:
            logger.warning("%s cannot write to etcd that its history was set back: %s", who, error)


async def read_epoch(client: EtcdClient, keyspace: Keyspace) -> EpochRecord:
    """The epoch of a namespace, and what was reported of it; raises EtcdError, also for a record that is not ours."""
    found, _ = await client.get(keyspace.epoch)
    return _record(keyspace, found)


async def raise_epoch(client: EtcdClient, keyspace: Keyspace, *, by: str) -> EpochRecord:
    """Raises the epoch of a namespace by one, and returns the new one.

    Every later token is larger than any of the epochs before, whatever etcd's revision is. Terms that last go on
    under their old token, until a resource sees a newer one.

    Raises:
        EtcdError: `indefinite` when the epoch may have been raised all the same: read it before trying again.
        ConfigError: the epoch cannot be raised any more.
    """
    while True:
        found, _ = await client.get(keyspace.epoch)
        before = (EpochRecord.decode(found.value) if found else None) or EpochRecord()
        after = EpochRecord(Token(before.epoch + 1, 0).epoch, by=by, at=client.clock.wall())
        unchanged = txn.modified_at(keyspace.epoch, found.mod_revision if found else 0)
        if (await client.txn([unchanged], [txn.put(keyspace.epoch, after.encode())])).succeeded:
            return after


def _record(keyspace: Keyspace, found: KeyValue | None) -> EpochRecord:
    record = EpochRecord.decode(found.value) if found else EpochRecord()
    if record is None:
        raise EtcdError(f"{keyspace.epoch.decode()} in etcd is not an epoch: run `election epoch raise`")
    return record


def encode_highest(token: Token) -> bytes:
    """An election's last token as stored beside its campaign, by the transaction that proves the term."""
    return str(token).encode()


def decode_highest(value: bytes) -> Token:
    """The last token; the smallest one when the value is not ours."""
    try:
        return Token.parse(value.decode("ascii", "replace"))
    except ElectionError:
        return _NOTHING
