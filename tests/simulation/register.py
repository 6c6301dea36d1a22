"""A register in etcd that leaders write to behind the fence: each write adds one to its number."""

from __future__ import annotations

from dataclasses import dataclass

from election.etcd import txn
from election.etcd.client import EtcdClient
from election.fencing.txn import fenced_txn
from election.term import Term
from election.token import Token

KEY = b"register"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is in the register: who wrote it, and how many writes there were."""

    token: Token
    number: int

    def encode(self) -> bytes:
        """The entry as stored."""
        return f"{self.token} {self.number}".encode()

    @classmethod
    def decode(cls, value: bytes) -> Entry:
        """The entry of a stored value."""
        token, number = value.decode().split()
        return cls(Token.parse(token), int(number))


async def append(client: EtcdClient, term: Term) -> tuple[int, Entry] | None:
    """Writes once; the revision and what was written, or None where the register has changed meanwhile."""
    found, _ = await client.get(KEY)
    entry = Entry(term.token, Entry.decode(found.value).number + 1 if found else 1)
    unchanged = txn.modified_at(KEY, found.mod_revision if found else 0)
    answer = await fenced_txn(client, term, [unchanged], [txn.put(KEY, entry.encode())])
    return (answer.header.revision, entry) if answer.succeeded else None
