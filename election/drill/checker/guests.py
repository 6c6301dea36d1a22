"""An election whose candidates run already and write no history: what etcd and the readers tell of it."""

from __future__ import annotations

from collections.abc import Iterator

from election.drill.checker.eras import Leading, eras, terms_in_etcd
from election.drill.checker.leaders import TOKENS_GROW
from election.drill.checker.progress import PROGRESS, calms
from election.drill.checker.verdict import Verdict
from election.drill.checker.violation import Violation
from election.drill.history import History
from election.token import Token


def guests(history: History) -> Iterator[Verdict]:
    """The verdicts on it: tokens grow, and somebody leads again after every fault."""
    led = [(at_s, leading.token) for at_s, leading in changes(history)]
    terms = [(at_s, token) for at_s, token in led if token is not None]
    yield Verdict.of(TOKENS_GROW, len(terms), _shrunk(terms))
    bound_s = history.settings.takeover_bound_s
    examined, found = 0, []
    for calm in calms(history):
        until_s = min(calm.began_at_s + bound_s, calm.ended_at_s)
        before = [token for at_s, token in led if at_s <= calm.began_at_s][-1:]
        inside = [token for at_s, token in led if calm.began_at_s < at_s <= until_s]
        is_led = any(token is not None for token in (*before, *inside))
        if is_led or calm.ended_at_s - calm.began_at_s >= bound_s:
            examined += 1
        if not is_led and calm.ended_at_s - calm.began_at_s >= bound_s:
            text = f"nobody led within {bound_s:g} s after all was healed"
            found.append(Violation(PROGRESS, 0, "", text, calm.began_at_s))
    yield Verdict.of(PROGRESS, examined, found)


def changes(history: History) -> Iterator[tuple[float, Leading]]:
    """Each change of who leads, when it was seen."""
    for era, terms in zip(eras(history), terms_in_etcd(history), strict=True):
        seen_at_s = {revision.number: revision.seen_at_s for revision in era}
        for leading in terms.leading:
            if leading.revision in seen_at_s:
                yield seen_at_s[leading.revision], leading


def _shrunk(terms: list[tuple[float, Token]]) -> Iterator[Violation]:
    highest: Token | None = None
    for at_s, token in terms:
        if highest is not None and token < highest:
            yield Violation(TOKENS_GROW, 0, "", f"{token} leads after {highest}", at_s)
        highest = max(highest or token, token)
