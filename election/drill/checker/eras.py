"""What etcd held of one election, from one time that it was set back to the next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from election.drill.history import History, Revision, Stored
from election.keys import CandidateKey, Keyspace
from election.records import CandidateRecord
from election.token import Token

_FIRST = 2
"""The number of the first revision of an etcd that was new, and empty before it."""


def eras(history: History) -> list[list[Revision]]:
    """The revisions, as etcd has counted them without a break; each era but the first begins with all that it held."""
    found = [list(history.revisions)] if history.revisions else []
    expected = 0
    for revision in history.later:
        if revision.number != expected:
            found.append([])
        found[-1].append(revision)
        expected = revision.number + 1
    return found


@dataclass(frozen=True, slots=True)
class Leading:
    """Who leads from a revision on, as etcd tells: nobody before the proof, and after the key is gone."""

    revision: int
    token: Token | None
    candidate: str


@dataclass
class Terms:
    """The terms that etcd has known in one era; `over_at_s` is when the end of each was seen, where it was."""

    first: int
    last: int
    leading: list[Leading] = field(default_factory=list)
    over_at_s: dict[Token, float] = field(default_factory=dict)
    known: set[Token] = field(default_factory=set)

    def at(self, revision: int) -> Leading | None:
        """Who led at a revision; None for one that is not of this era."""
        if not self.first <= revision <= self.last:
            return None
        return self.leading[bisect_right(self.leading, revision, key=lambda each: each.revision) - 1]


def terms_in_etcd(history: History) -> list[Terms]:
    """Those of the drill's election, for each era."""
    keyspace, election = Keyspace(history.settings.namespace), history.settings.election
    found = []
    for era in eras(history):
        terms = Terms(0 if era[0].number == _FIRST else era[0].number, era[-1].number, [Leading(0, None, "")])
        queue: dict[bytes, Stored] = {}
        for revision in era:
            for change in revision.changes:
                parsed = keyspace.parse(change.key)
                if not isinstance(parsed, CandidateKey) or parsed.election != election:
                    continue
                before = queue.pop(change.key, None)
                if change.after is not None:
                    queue[change.key] = change.after
                if before is not None and (change.after is None or change.after.created != before.created):
                    terms.over_at_s.update((token, revision.seen_at_s) for token in _token(before))
            now = _leading(revision.number, queue)
            if (now.token, now.candidate) != (terms.leading[-1].token, terms.leading[-1].candidate):
                terms.leading.append(now)
            if now.token is not None:
                terms.known.add(now.token)
        found.append(terms)
    return found


def _leading(revision: int, queue: dict[bytes, Stored]) -> Leading:
    oldest = min(queue.values(), key=lambda each: each.created, default=None)
    if oldest is None:
        return Leading(revision, None, "")
    record = CandidateRecord.decode(oldest.value)
    if record is None:  # another program's: the oldest leads, and nobody has checked it
        return Leading(revision, Token(0, oldest.created), "")
    token = next(_token(oldest), None)
    return Leading(revision, token, record.id if token else "")


def _token(stored: Stored) -> Iterator[Token]:
    record = CandidateRecord.decode(stored.value)
    if record is not None and record.elected_at:
        yield Token(record.epoch, stored.created)
