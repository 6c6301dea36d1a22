"""Each invariant is violated by a history that breaks it, held by those that only look like it, else unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from election.cli.main import cli
from election.drill.checker import State, Verdict, all_held, check
from election.drill.checker.agents import INVARIANTS
from election.drill.checker.fences import FENCE, NO_WRITE_LOST
from election.drill.checker.judge import NOTHING_LEFT
from election.drill.checker.leaders import NO_ACT_AFTER, ONE_LEADER, TOKENS_GROW
from election.drill.checker.progress import PROGRESS
from election.drill.checker.readings import READERS
from election.drill.history import FACTS, LATER, REVISIONS, History, Journal, write_settings
from election.drill.vocabulary import Done
from tests.chaos.saga import Saga
from tests.chaos.story import SETTINGS
from tests.chaos.verdicts import BOUND_S, held, of_guests, overlap, unknown, verdict, violated, whole


def test_a_drill_in_which_all_goes_well_holds_everything() -> None:
    """Deaths, handovers, reads, writes, refusals that are right, and agents that are reaped."""
    verdicts = check(whole().history())
    assert all_held(verdicts), [each for each in verdicts if each.state is not State.HELD]
    assert [each.invariant for each in verdicts] == [
        *(ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW, FENCE, NO_WRITE_LOST, READERS),
        *INVARIANTS,
        *(PROGRESS, NOTHING_LEFT),
    ]


def test_nothing_is_known_of_what_never_happened() -> None:
    """A drill that has proved nothing does not succeed."""
    history = History(SETTINGS, ())
    verdicts = check(history)
    assert {each.state for each in verdicts} == {State.UNKNOWN}
    assert not all_held(verdicts)


def test_a_violation_counts_even_where_something_is_missing() -> None:
    """A hole makes what held unknown, and what was violated no better."""
    [violation] = verdict(overlap(), ONE_LEADER).violations
    assert Verdict.of(ONE_LEADER, 1, [violation], ["a hole"]).state is State.VIOLATED
    assert Verdict.of(ONE_LEADER, 1, [], ["a hole"]).state is State.UNKNOWN


@pytest.mark.parametrize("invariant", [ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW, FENCE, NO_WRITE_LOST, PROGRESS])
def test_an_orchestrator_that_says_nothing_is_a_hole(invariant: str) -> None:
    """It may have led, and acted, and written, for all we know; one that has just started is none."""

    def silent(for_s: float) -> History:
        story = whole()
        story.fact(Done.STARTED, "o4", role="orchestrator").wait(for_s).fact(Done.KILLED, "o4")
        return story.history()

    unknown(silent(20), invariant, "o4 has said nothing in 20 s")
    assert verdict(silent(2), invariant).state is State.HELD


# --- agents, progress, and what is left -----------------------------------------------------------------------------


def test_agents_have_one_verdict_for_each_rule() -> None:
    """The rules are shown in test_checker.py; here, that each comes to its verdict."""
    rules: Iterable[tuple[str, Callable[[Saga], object]]] = [
        ("only the dead are reaped", lambda story: story.lives("w2").reap("w2")),
        ("agents write as they live", lambda story: story.lives("w2").say("wrote", "w2", key="status")),
        ("the dead are reaped in time", lambda story: story.lives("w2").dies("w2").wait(SETTINGS.bound_s + 3).beat()),
    ]
    for invariant, do in rules:
        story = whole()
        do(story)
        assert verdict(story, invariant).state is State.VIOLATED
        assert [each.invariant for each in check(story.history()) if each.state is State.VIOLATED] == [invariant]
    story = whole()
    story.lives("w2").keeps("w2").dies("w2").wait(2).beat().reap("w2").register("w2")
    assert verdict(story, "what is kept is put back").state is State.VIOLATED
    unknown(Saga().leads("o1"), "what is kept is put back", "nothing to examine")


def test_agents_are_judged_until_etcd_is_set_back() -> None:
    """What they were told before, and what they say afterwards, etcd may not know of."""
    story = whole()
    story.set_back(story.revision - 5)
    story.say("wrote", "w2", key="status", at_s=story.now_s - 1).say("acted", "w1", at_s=story.now_s)
    assert all(verdict(story, invariant).state is State.HELD for invariant in INVARIANTS)


def calm(for_s: float, **does: bool) -> Saga:
    """A leader that is healed, and what it does after that."""
    story = Saga().leads("o1", 1).writes("o1").fault("pause", "o1").heals().healed().wait(0.1)
    if does.get("leads"):
        story.goes_on("o1", 0.5)
    if does.get("writes"):
        story.writes("o1")
    story.wait(for_s).fact(Done.INJECTED, number=2, fault="kill", on="o1").fact(Done.HEALED, number=2)
    return story


def test_somebody_leads_and_writes_once_all_is_healed() -> None:
    """Within the bound, if the calm lasts as long; otherwise nothing is known."""
    held(calm(BOUND_S + 6, leads=True, writes=True), PROGRESS)
    held(calm(BOUND_S + 1, leads=True), PROGRESS)
    violated(calm(BOUND_S + 6, leads=True), PROGRESS, "nothing was written to register sqlite in")
    violated(calm(BOUND_S + 1), PROGRESS, "nobody led within 11 s")
    unknown(calm(1), PROGRESS, "nothing to examine")


def test_every_fault_is_taken_back() -> None:
    """Or the drill is not over."""
    story = calm(BOUND_S + 1, leads=True)
    story.fact(Done.INJECTED, number=3, fault="cut off", on="o2")
    violated(story, PROGRESS, "fault 3 (cut off) was never healed")


def test_nothing_is_left_over() -> None:
    """The runner has looked once, and has found nothing; and etcd holds nothing that is to be gone."""
    held(Saga(), NOTHING_LEFT)
    history = Saga().history()
    without = tuple(fact for fact in history.facts if fact.what != Done.LEFT_OVER)
    unknown(replace(history, facts=without), NOTHING_LEFT, "nothing to examine")
    story = Saga()
    story.fact(Done.LEFT_OVER, texts=["process 7"])
    violated(story, NOTHING_LEFT, "process 7")
    story = Saga().leads("o1")
    story.ends()
    violated(story, NOTHING_LEFT, "is left at the end")


# --- candidates that are not of the drill ---------------------------------------------------------------------------


def test_of_candidates_that_tell_nothing_etcd_tells() -> None:
    """Their tokens, and that somebody leads again; nothing is said of what they believed."""
    story = of_guests().wins("o2").heals().healed().wait(BOUND_S + 1).sees("o2")
    assert {each.invariant: each.state for each in check(story.history())} == {
        TOKENS_GROW: State.HELD,
        PROGRESS: State.HELD,
        READERS: State.HELD,
        NOTHING_LEFT: State.HELD,
    }


def test_candidates_that_tell_nothing_are_to_lead_again_all_the_same() -> None:
    """With a larger token, and within the bound; of a shorter calm nothing is known."""
    violated(of_guests().heals().healed().wait(BOUND_S + 1), PROGRESS, "nobody led within 11 s")
    unknown(of_guests().heals().healed().wait(1), PROGRESS, "nothing to examine")
    story = of_guests()
    story.epoch = 1
    story.wins("o2").goes("o2").epoch = 0
    violated(story.wins("o3"), TOKENS_GROW, "leads after 1-")


# --- a saved history ------------------------------------------------------------------------------------------------


def test_a_folder_can_be_judged_again(tmp_path: Path) -> None:
    """By the command, which exits with 0 only when everything held."""

    def save(story: Saga, folder: Path) -> object:
        history = story.history()
        folder.mkdir()
        write_settings(folder, history.settings)
        Journal(folder / REVISIONS).write(*history.revisions)
        Journal(folder / FACTS).write(*history.facts)
        Journal(folder / "agents" / "all.jsonl").write(*history.said)
        Journal(folder / "processes" / "all.jsonl").write(*history.told)
        if history.later:
            Journal(folder / LATER).write(*history.later)
        assert check(History.load(folder)) == check(json_round(history))
        return CliRunner().invoke(cli, ["drill", "--check", str(folder)], standalone_mode=False).return_value

    assert save(whole(), tmp_path / "good") == 0
    assert save(overlap(), tmp_path / "bad") == 1
    back = whole()
    back.set_back(back.revision)
    assert save(back, tmp_path / "back") == 0


def json_round(history: History) -> History:
    """The history with its lines in the order in which they are loaded."""
    said = tuple(sorted(history.said, key=lambda each: each.at_s))
    facts = tuple(replace(fact, more=json.loads(json.dumps(fact.more))) for fact in history.facts)
    return replace(history, said=said, facts=facts)
