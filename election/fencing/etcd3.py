"""For programs that write to etcd by a client of the `etcd3` package: etcd refuses them once they are deposed.

    client.transaction(compare=[etcd3.guard(client, term), ...], success=[...], failure=[])

Nothing of that package is imported here.
"""

from __future__ import annotations

from typing import Any, Protocol

from election.token import Token


class Held(Protocol):
    """What is read of a `Term`."""

    @property
    def key(self) -> bytes:
        """The leader's key in etcd."""
        ...

    @property
    def token(self) -> Token:
        """Its create revision, and the epoch."""
        ...

    def check(self) -> None:
        """Raises NotLeader if the term is known to be over."""
        ...


def guard(client: Any, term: Held) -> Any:
    """The comparison that holds while the term's key is there, for a transaction of an `etcd3` client.

    A transaction that did not succeed does not say which of its comparisons did not hold: read `term.key` in its
    `failure` list where that matters. The package waits in the calling thread, and not in the event loop's one.

    Raises:
        NotLeader: the term is over, by the local clock.
    """
    term.check()
    return client.transactions.create(term.key) == term.token.revision
