"""What readers were told of who leads, against what etcd held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from election.drill.checker.eras import Terms, terms_in_etcd
from election.drill.checker.harm import times
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import Fact, History
from election.drill.vocabulary import Done, Told
from election.token import Token

READERS = "readers"
_SET_BACK_S = 1.0
"""Etcd may go on for so long after it is noted that it is set back."""


def readings(history: History, holes: Sequence[str]) -> Verdict:
    """The verdict on all answers, of all servers."""
    told = [fact for fact in history.told if fact.what == Told.SAW]
    found = [*_backwards(history, told), *_untrue(history, told), *_too_old(history, told)]
    return Verdict.of(READERS, len(told), found, holes)


def _backwards(history: History, told: Sequence[Fact]) -> Iterator[Violation]:
    """A smaller token after a larger one: of one server, asked one after the other, or within one watch.

    Several servers that stand in for each other have a name of their own; when asked, they may know less by turns.
    What a server knows begins anew when it is started, and when etcd is set back: nothing is compared across that.
    """
    set_back_s = times(history.facts, Done.SET_BACK)
    starts_s: dict[str, list[float]] = defaultdict(list)
    for fact in history.facts:
        if fact.what == Done.STARTED:
            starts_s[fact.more.get("slot", fact.who)].append(fact.at_s)
    highest: dict[tuple[object, ...], Fact] = {}
    for fact in told:
        if "token" not in fact.more:
            continue
        server, via = fact.more["server"], fact.more["via"]
        if via == "get" and server not in starts_s:
            continue
        breaks_s = (*set_back_s, *starts_s.get(server, ()))
        if any(fact.at_s <= break_s <= fact.more["ended_at_s"] for break_s in breaks_s):
            continue
        age = sum(break_s < fact.at_s for break_s in breaks_s)
        of = fact.more["process"], server, via, fact.more.get("session", 0), age
        before = highest.get(of)
        if before is not None and _token(fact) < _token(before):
            if via == "watch" or before.more["ended_at_s"] <= fact.at_s:
                yield _violation(fact, f"told {fact.more['token']} after {before.more['token']}")
        else:
            highest[of] = fact


def _untrue(history: History, told: Sequence[Fact]) -> Iterator[Violation]:
    """What was told for a revision is not what etcd held there, or the token is that of no term."""
    known = terms_in_etcd(history)
    real = {token for terms in known for token in terms.known}
    set_back_s = times(history.facts, Done.SET_BACK)
    for fact in told:
        if known and set_back_s and fact.more["ended_at_s"] > set_back_s[0] and fact.more["revision"] < known[-1].first:
            continue  # a revision from before, or one that nobody has seen
        eras = zip(known, set_back_s, strict=False)
        if any(_of_s(fact) <= at_s + _SET_BACK_S and fact.more["revision"] > era.last for era, at_s in eras):
            continue  # one that nobody has seen, whatever has its number now
        token = _token(fact) if "token" in fact.more else None
        there = [leading for terms in known if (leading := terms.at(fact.more["revision"])) is not None]
        if there and all(
            leading.token != token or (leading.candidate not in ("", fact.more.get("leader", ""))) for leading in there
        ):
            held = " or ".join(sorted({f"{each.candidate or 'nobody'} with {each.token}" for each in there}))
            yield _violation(fact, f"told {_who(fact)} for revision {fact.more['revision']}, which had {held}")
        elif not there and token is not None and token not in real and not _may_be_lost(token, known):
            yield _violation(fact, f"told {_who(fact)}, which never led")


def _may_be_lost(token: Token, known: Sequence[Terms]) -> bool:
    """Whether the term may have begun where nobody has watched: right before etcd was set back, or at the end."""
    return any(token.revision > terms.last for terms in known)


def _too_old(history: History, told: Sequence[Fact]) -> Iterator[Violation]:
    """A leader that was over by the moment that the answer is as of. Of a watch nobody can tell that."""
    over_at_s: dict[Token, float] = {}
    for terms in terms_in_etcd(history):  # a term may be there again when etcd was set back
        for token in terms.known:
            over_at_s[token] = terms.over_at_s.get(token, float("inf"))
    for fact in told:
        if fact.more["via"] != "get" or "token" not in fact.more:
            continue
        late_s = _of_s(fact) - over_at_s.get(_token(fact), float("inf"))
        if late_s > 0:
            text = f"told {_who(fact)} as of {fact.more['age_s']:.3f} s ago, which was over for {late_s:.3f} s by then"
            yield _violation(fact, text)


def _of_s(fact: Fact) -> float:
    """When that was true which was told, as the answer says."""
    return fact.at_s - float(fact.more["age_s"])


def _token(fact: Fact) -> Token:
    return Token.parse(fact.more["token"])


def _who(fact: Fact) -> str:
    return f"{fact.more.get('leader', '')} with {fact.more['token']}" if "token" in fact.more else "that nobody leads"


def _violation(fact: Fact, text: str) -> Violation:
    by = f"{fact.more['process']} was told by {fact.more['server']} ({fact.more['via']}): it has "
    return Violation(READERS, 0, "", by + text, fact.at_s)
