"""The state machine, exhaustively: every state with every event, and long random lives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from election.errors import LossReason
from election.leadership import (
    AttemptFailed,
    Campaigning,
    CampaignReturned,
    Closed,
    DeadlinePassed,
    Departed,
    Event,
    Following,
    Leading,
    LeaseGranted,
    LeaseLost,
    Leaving,
    ProofRefused,
    Proved,
    QueueSeen,
    Released,
    Renewed,
    State,
    Stopped,
    UndefinedTransition,
    WatchSilent,
    WorkFailed,
    WorkReturned,
    step,
)
from election.token import Token

BOOM = RuntimeError("boom")
TOKEN = Token(3, 20)
CAMPAIGNING = Campaigning(lease=7, deadline_s=100.0, created=20, is_oldest=True)
LEADING = Leading(lease=7, deadline_s=100.0, token=TOKEN)
LEAVING = Leaving(lease=7, token=TOKEN, reason=LossReason.EXPIRED, noticed_at_s=50.0, margin_s=50.0)
STATES: dict[str, State] = {
    "Following": Following(),
    "Campaigning": CAMPAIGNING,
    "Leading": LEADING,
    "Leaving": LEAVING,
    "Closed": Closed(),
}
EVENTS: dict[str, Event] = {
    "LeaseGranted": LeaseGranted(7, 100.0),
    "QueueSeen": QueueSeen(at_s=50.0, revision=20, created=20, is_oldest=True),
    "CampaignReturned": CampaignReturned(20),
    "AttemptFailed": AttemptFailed(50.0, BOOM),
    "Proved": Proved(50.0, TOKEN),
    "ProofRefused": ProofRefused(50.0),
    "Renewed": Renewed(110.0, 0.001),
    "LeaseLost": LeaseLost(50.0),
    "DeadlinePassed": DeadlinePassed(100.0),
    "WatchSilent": WatchSilent(50.0),
    "WorkReturned": WorkReturned(50.0),
    "WorkFailed": WorkFailed(50.0, BOOM),
    "Stopped": Stopped(50.0, LossReason.STEPPED_DOWN),
    "Released": Released(),
    "Departed": Departed(),
}


def left(
    token: Token | None, reason: LossReason, margin_s: float = 50.0, error: BaseException | None = None
) -> Leaving:
    return Leaving(7, token, reason, 100.0 - margin_s, margin_s, error)


SAME = "same"
EXPECTED: dict[tuple[str, str], Any] = {
    ("Following", "LeaseGranted"): Campaigning(7, 100.0),
    ("Following", "AttemptFailed"): SAME,
    ("Following", "Stopped"): SAME,
    ("Following", "Departed"): Closed(),
    ("Campaigning", "QueueSeen"): SAME,
    ("Campaigning", "CampaignReturned"): SAME,
    ("Campaigning", "AttemptFailed"): SAME,
    ("Campaigning", "Proved"): LEADING,
    ("Campaigning", "ProofRefused"): left(None, LossReason.KEY_DELETED),
    ("Campaigning", "Renewed"): replace(CAMPAIGNING, deadline_s=110.0),
    ("Campaigning", "LeaseLost"): left(None, LossReason.EXPIRED),
    ("Campaigning", "DeadlinePassed"): left(None, LossReason.EXPIRED, 0.0),
    ("Campaigning", "Stopped"): left(None, LossReason.STEPPED_DOWN),
    ("Leading", "QueueSeen"): SAME,
    ("Leading", "CampaignReturned"): SAME,
    ("Leading", "AttemptFailed"): SAME,
    ("Leading", "Proved"): SAME,
    ("Leading", "ProofRefused"): left(TOKEN, LossReason.KEY_DELETED),
    ("Leading", "Renewed"): replace(LEADING, deadline_s=110.0),
    ("Leading", "LeaseLost"): left(TOKEN, LossReason.EXPIRED),
    ("Leading", "DeadlinePassed"): left(TOKEN, LossReason.EXPIRED, 0.0),
    ("Campaigning", "WatchSilent"): SAME,
    ("Leading", "WatchSilent"): left(TOKEN, LossReason.EXPIRED),
    ("Leading", "WorkReturned"): left(TOKEN, LossReason.RESIGNED),
    ("Leading", "WorkFailed"): left(TOKEN, LossReason.WORK_FAILED, error=BOOM),
    ("Leading", "Stopped"): left(TOKEN, LossReason.STEPPED_DOWN),
    ("Leaving", "Released"): Following(),
    ("Closed", "Stopped"): SAME,
    ("Closed", "Departed"): SAME,
    **{
        ("Leaving", event): SAME
        for event in EVENTS
        if event not in ("LeaseGranted", "Released", "Departed")
    },
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_state_with_every_event(state: str, event: str) -> None:
    """A pair is either in the table, with exactly this result, or it raises."""
    expected = EXPECTED.get((state, event))
    if expected is None:
        with pytest.raises(UndefinedTransition, match=f"{event} in {state}"):
            step(STATES[state], EVENTS[event])
    else:
        assert step(STATES[state], EVENTS[event]) == (STATES[state] if expected is SAME else expected)


def test_states_are_immutable_values() -> None:
    """A state that somebody holds cannot change under them."""
    with pytest.raises(AttributeError):
        LEADING.token = Token(3, 21)  # type: ignore[misc]


def test_own_key_that_is_not_the_oldest_may_not_be_proven() -> None:
    """Being in the queue is not being first in it."""
    state = step(Campaigning(7, 100.0), QueueSeen(50.0, revision=25, created=20, is_oldest=False))
    assert state == Campaigning(7, 100.0, created=20, is_oldest=False)
    assert isinstance(state, Campaigning)
    assert not state.may_prove


@pytest.mark.parametrize("state", [CAMPAIGNING, LEADING])
def test_a_watch_that_has_not_come_to_the_own_key_says_nothing_about_it(state: State) -> None:
    """The RPC can be faster than the watch, which then still shows the time before the key."""
    assert step(state, QueueSeen(50.0, revision=19, created=0, is_oldest=False)) == state


def test_a_record_that_the_predecessor_has_proven_leads_at_once() -> None:
    """The handover was a compare-and-set on the own key; but only while the lease is alive, and the key the oldest."""
    seen = QueueSeen(50.0, revision=30, created=20, is_oldest=True, epoch=3)
    assert step(Campaigning(7, 100.0), seen) == LEADING
    assert step(Campaigning(7, 50.0), seen) == Leaving(7, None, LossReason.EXPIRED, 50.0, 0.0)
    behind = step(Campaigning(7, 100.0), replace(seen, is_oldest=False))
    assert behind == left(None, LossReason.KEY_DELETED)


@pytest.mark.parametrize("state", [CAMPAIGNING, LEADING])
@pytest.mark.parametrize("created", [0, 21])
def test_own_key_deleted_or_replaced_loses_at_once(state: State, created: int) -> None:
    """A key of the same name that somebody made anew is not the key that won."""
    after = step(state, QueueSeen(50.0, revision=30, created=created, is_oldest=bool(created)))
    assert isinstance(after, Leaving)
    assert after.reason is LossReason.KEY_DELETED


def test_a_proof_that_comes_after_the_deadline_elects_nobody() -> None:
    """The write may have been slow: the deadline counts, not the answer."""
    after = step(CAMPAIGNING, Proved(at_s=100.0, token=TOKEN))
    assert after == left(None, LossReason.EXPIRED, 0.0)


def test_a_proof_for_another_key_is_a_mistake() -> None:
    """Nobody proves a key that is not the own one."""
    with pytest.raises(UndefinedTransition):
        step(CAMPAIGNING, Proved(at_s=50.0, token=Token(3, 19)))


def test_a_call_that_breaks_before_the_key_was_seen_ends_the_attempt() -> None:
    """Its lease is not used again: etcd may delete the key of a broken call later."""
    after = step(Campaigning(7, 100.0), AttemptFailed(50.0, BOOM))
    assert after == left(None, LossReason.KEY_DELETED, error=BOOM)


@pytest.mark.parametrize("state", [CAMPAIGNING, LEADING])
def test_a_renewal_never_moves_the_deadline_back(state: State) -> None:
    """Answers can be overtaken by later ones."""
    assert step(state, Renewed(90.0, 0.001)) == state


@pytest.mark.parametrize("state", [CAMPAIGNING, LEADING])
def test_a_watchman_who_woke_too_early_does_nothing(state: State) -> None:
    """The deadline may have moved while he slept."""
    assert step(state, DeadlinePassed(99.9)) == state


times = st.floats(0, 1_000, allow_nan=False)
revisions = st.integers(1, 8)
tokens = st.builds(Token, st.just(3), revisions)
events = st.one_of(
    st.builds(LeaseGranted, lease=st.just(7), deadline_s=times),
    st.builds(
        QueueSeen,
        at_s=times,
        revision=revisions,
        created=st.integers(0, 8),
        is_oldest=st.booleans(),
        epoch=st.none() | st.just(3),
    ),
    st.builds(CampaignReturned, created=revisions),
    st.builds(AttemptFailed, at_s=times, error=st.just(BOOM)),
    st.builds(Proved, at_s=times, token=tokens),
    st.builds(ProofRefused, at_s=times),
    st.builds(Renewed, deadline_s=times, latency_s=st.just(0.001)),
    st.builds(LeaseLost, at_s=times),
    st.builds(DeadlinePassed, at_s=times),
    st.builds(WatchSilent, at_s=times),
    st.builds(WorkReturned, at_s=times),
    st.builds(WorkFailed, at_s=times, error=st.just(BOOM)),
    st.builds(Stopped, at_s=times, reason=st.sampled_from(LossReason)),
    st.just(Released()),
    st.just(Departed()),
)


@given(st.lists(events, max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_lives_keep_the_rules(life: list[Event]) -> None:
    """Nobody leads without a proof of that very key before the deadline, and nobody leads again after a loss."""
    state: State = Following()
    for event in life:
        try:
            after = step(state, event)
        except UndefinedTransition:
            continue
        if isinstance(after, Leading) and not isinstance(state, Leading):
            assert isinstance(event, Proved | QueueSeen)
            assert isinstance(event, Proved) or (event.is_oldest and event.created == after.token.revision)
            assert isinstance(state, Campaigning)
            assert isinstance(event, QueueSeen) or event.token == after.token
            assert state.created in (0, after.token.revision)
            assert event.at_s < after.deadline_s
        if isinstance(state, Leading) and isinstance(after, Leading):
            assert (after.token, after.lease) == (state.token, state.lease)
            assert after.deadline_s >= state.deadline_s
        if isinstance(state, Leading) and not isinstance(after, Leading):
            assert isinstance(after, Leaving)
            assert after.token == state.token
        if isinstance(state, Leaving):
            assert after == state or (isinstance(event, Released) and after == Following())
        if isinstance(state, Closed):
            assert after == state
        state = after
