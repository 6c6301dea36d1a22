"""Each invariant is violated by a history that breaks it, held by those that only look like it, else unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from election.drill.checker import State, Verdict, all_held, check
from election.drill.checker.__main__ import main
from election.drill.checker.agents import INVARIANTS
from election.drill.checker.fences import FENCE, NO_WRITE_LOST
from election.drill.checker.judge import NOTHING_LEFT
from election.drill.checker.leaders import NO_ACT_AFTER, ONE_LEADER, TOKENS_GROW
from election.drill.checker.progress import PROGRESS
from election.drill.checker.readings import READERS
from election.drill.checker.terms import terms
from election.drill.history import FACTS, LATER, REVISIONS, History, Journal, write_settings
from election.drill.vocabulary import Done, Told
from election.drill.workload.registers import ETCD
from election.token import Token
from tests.chaos.saga import TERM_S, Saga
from tests.chaos.story import SETTINGS

BOUND_S = SETTINGS.takeover_bound_s


def verdict(story: Saga | History, invariant: str) -> Verdict:
    history = story if isinstance(story, History) else story.history()
    return next(each for each in check(history) if each.invariant == invariant)


def held(story: Saga, *invariants: str) -> None:
    """These invariants hold."""
    history = story.history()
    for invariant in invariants:
        found = verdict(history, invariant)
        assert found.state is State.HELD, found


def violated(story: Saga, invariant: str, *words: str) -> None:
    """The invariant is violated, and each text of it has one of the words."""
    found = verdict(story, invariant)
    assert found.state is State.VIOLATED
    texts = [each.text for each in found.violations]
    assert all(any(word in text for word in words) for text in texts), texts
    assert all(any(word in text for text in texts) for word in words), texts
    assert all(each.at_s > 0 for each in found.violations)


def unknown(story: Saga | History, invariant: str, why: str) -> None:
    found = verdict(story, invariant)
    assert found.state is State.UNKNOWN
    assert why in found.why


def whole() -> Saga:
    """A drill in which everything happens and nothing goes wrong."""
    story = Saga()
    story.lives("w1").dies("w1").wait(2).beat().reap("w1")
    story.leads("o1", 1).writes("o1").writes("o1", ETCD).sees("o1").sees("o1", "watch")
    story.fault("hand over", "o1").loses("o1").goes("o1").leads("o2", 1).heals().sees("o2").writes("o2", ETCD)
    story.fault("kill", "o2").kills("o2").wait(TERM_S + 1).goes("o2").leads("o3", 1).heals().healed()
    story.goes_on("o3", BOUND_S + 6).writes("o3").refused("o1", "sqlite", story.tokens["o1"])
    story.writes("o3", ETCD).fact(Done.LEAVES, "o3").loses("o3").goes("o3").sees("")
    return story


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


# --- terms --------------------------------------------------------------------------------------------------------


def overlap() -> Saga:
    """o1 has acted after o2 had begun."""
    return Saga().leads("o1", 1).goes("o1").leads("o2").wait(0.1).acts("o1")


def test_two_that_act_at_a_time_are_too_many() -> None:
    """The first acts on after the second has begun; it makes no difference which of them is told first."""
    violated(overlap(), ONE_LEADER, "o1 led with 0-4 for 0.1")


def test_a_leader_must_have_noticed_before_its_successor_begins() -> None:
    """It does nothing, but believes: until it notices, and no longer than its deadline."""
    violated(Saga().leads("o1", 1).goes("o1").leads("o2").wait(0.5).loses("o1"), ONE_LEADER, "for 0.5")
    story = Saga().leads("o1", 1).goes("o1")
    story.leads("o2").wait(TERM_S + 1).loses("o1", "expired")
    violated(story, ONE_LEADER, "o1 led with")


def test_a_handover_at_once_is_no_overlap() -> None:
    """The second begins in the moment in which the first has ended."""
    held(Saga().leads("o1", 1).loses("o1").goes("o1").leads("o2", 1), ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW)


def test_a_pause_beyond_the_deadline_is_no_overlap() -> None:
    """The first stands still, the second begins after the deadline, and the first notices only then."""
    story = Saga().leads("o1", 1).fault("pause", "o1").fact(Done.PAUSED, "o1").wait(TERM_S + 0.5)
    story.goes("o1").leads("o2", 1).fact(Done.RESUMED, "o1")
    held(story.heals().loses("o1", "expired").goes_on("o2", 1), ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW)


def test_one_that_stands_still_believes_until_its_deadline() -> None:
    """Whoever begins before that, begins too early."""
    story = Saga().leads("o1", 1).fact(Done.PAUSED, "o1").wait(0.5)
    story.goes("o1").leads("o2", 3).fact(Done.RESUMED, "o1")
    violated(story.loses("o1", "expired"), ONE_LEADER, "o1 led with")


def test_the_dead_believe_nothing() -> None:
    """One that was killed has no deadline any more, whoever begins; what it did before counts."""
    held(Saga().leads("o1", 1).kills("o1").goes("o1").leads("o2", 1), ONE_LEADER)
    violated(Saga().leads("o1", 1).goes("o1").leads("o2").acts("o1").kills("o1").goes_on("o2", 1), ONE_LEADER, "o1 led")


def test_one_whose_work_begins_after_its_deadline_never_led() -> None:
    """It was paused between its proof and its work; it may not act, and does not."""
    story = Saga().wins("o1")
    late_s = story.now_s + 0.5
    story.wait(TERM_S).goes("o1").leads("o2")
    story.tell(Told.TERM_BEGAN, "o1", token=str(story.tokens["o1"]), deadline_s=late_s)
    held(story.goes_on("o2", 1), ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW)
    assert [term.process for term in terms(story.history())] == ["o2"]
    violated(story.acts("o1"), NO_ACT_AFTER, "o1 acted with")


def test_a_leader_that_is_robbed_may_learn_of_it_late_and_not_too_late() -> None:
    """Its successor may have begun; five seconds are enough, unless it stands still meanwhile."""

    def robbed(for_s: float) -> Saga:
        story = Saga().leads("o1", 1).fault("steal the key", "o1").robs("o1").leads("o2")
        until_s = story.now_s + for_s
        while story.now_s < until_s:
            story.renews("o1").acts("o1").renews("o2").acts("o2").wait(0.5)
        return story

    held(robbed(1).loses("o1", "key gone").heals(), ONE_LEADER)
    violated(robbed(6).loses("o1", "key gone").heals(), ONE_LEADER, "o1 led with")
    story = robbed(1)
    story.fact(Done.PAUSED, "o1").wait(6).fact(Done.RESUMED, "o1")
    held(story.loses("o1", "key gone").heals(), ONE_LEADER)
    held(robbed(1).heals().fault("cut off", "o1").renews("o1").goes_on("o2", 6).acts("o1"), ONE_LEADER)
    violated(
        Saga().leads("o1", 1).robs("o1").leads("o2").goes_on("o2", 6).renews("o1").acts("o1"),
        ONE_LEADER,
        "o1 led with",
    )


def test_what_is_done_to_others_keeps_no_robbed_leader_from_learning_of_it() -> None:
    """A fault of another process is no excuse; one of etcd is."""

    def meanwhile(on: str) -> Saga:
        story = Saga().leads("o1", 1).fault("steal the key", "o1").robs("o1").leads("o2").heals()
        return story.fault("cut off", on).goes_on("o2", 6).renews("o1").acts("o1").heals()

    violated(meanwhile("o3"), ONE_LEADER, "o1 led with")
    held(meanwhile("m1, m2"), ONE_LEADER)
    held(meanwhile("o1 from m3"), ONE_LEADER)
    held(meanwhile("o1, o3"), ONE_LEADER)


def test_the_robbery_of_another_is_no_excuse() -> None:
    """Only the term whose key was deleted may overlap."""
    story = Saga().leads("o1", 1)
    story.fact(Done.ROBBED, "o3", token="0-3", how="key")
    violated(story.goes("o1").leads("o2").wait(0.2).loses("o1"), ONE_LEADER, "o1 led with")


def test_a_robbery_excuses_nothing_that_was_before() -> None:
    """Two overlap, and one of them is robbed later."""
    story = Saga().leads("o1", 1).goes("o1").leads("o2").acts("o1")
    violated(story.robs("o1").loses("o1").goes_on("o2", 1), ONE_LEADER, "o1 led with")


def test_whoever_led_when_etcd_was_set_back_may_do_so_until_its_deadline() -> None:
    """It learns of it late; two that begin afterwards have no excuse."""

    def back() -> Saga:
        story = Saga().leads("o1", 1)
        story.set_back(story.revision - 3).epoch = 1
        return story.leads("o2").acts("o1")

    held(back().loses("o1"), ONE_LEADER, TOKENS_GROW, NO_ACT_AFTER)
    violated(back().leads("o3").acts("o2"), ONE_LEADER, "o2 led with")
    violated(back().wait(TERM_S).acts("o1"), NO_ACT_AFTER, "o1 acted with")


def test_nothing_is_done_after_the_deadline() -> None:
    """A renewal moves it; one that is written down a moment later counts."""
    violated(Saga().leads("o1", 1).wait(TERM_S).acts("o1"), NO_ACT_AFTER, "o1 acted with 0-4")
    held(Saga().leads("o1").wait(TERM_S - 0.3).acts("o1").renews("o1").wait(TERM_S - 0.3).acts("o1"), NO_ACT_AFTER)
    story = Saga().leads("o1").wait(TERM_S + 0.1).acts("o1")
    story.now_s += 0.1
    held(story.renews("o1"), NO_ACT_AFTER)
    story = Saga().leads("o1").wait(TERM_S + 0.1).acts("o1")
    story.now_s += 1
    violated(story.renews("o1"), NO_ACT_AFTER, "o1 acted with")


def test_tokens_grow_from_term_to_term() -> None:
    """Not smaller, not the same of two processes; an epoch is larger than any revision."""

    def second(token: Token) -> Saga:
        story = Saga().leads("o1", 1).loses("o1").goes("o1").wins("o2")
        story.tokens["o2"] = token
        return story.begins("o2")

    violated(second(Token(0, 3)), TOKENS_GROW, "o2 began with 0-3 after o1 had begun with 0-4")
    violated(second(Token(0, 4)), TOKENS_GROW, "o2 led with 0-4, which was that of o1")
    held(second(Token(1, 2)), TOKENS_GROW)
    unknown(Saga(), TOKENS_GROW, "nothing to examine")


@pytest.mark.parametrize("invariant", [ONE_LEADER, NO_ACT_AFTER, TOKENS_GROW, FENCE, NO_WRITE_LOST, PROGRESS])
def test_an_orchestrator_that_says_nothing_is_a_hole(invariant: str) -> None:
    """It may have led, and acted, and written, for all we know; one that has just started is none."""

    def silent(for_s: float) -> History:
        story = whole()
        story.fact(Done.STARTED, "o4", role="orchestrator").wait(for_s).fact(Done.KILLED, "o4")
        return story.history()

    unknown(silent(20), invariant, "o4 has said nothing in 20 s")
    assert verdict(silent(2), invariant).state is State.HELD


# --- registers ----------------------------------------------------------------------------------------------------


def two(register: str = "sqlite") -> Saga:
    """o1 has written, and then o2 with a larger token."""
    story = Saga().leads("o1", 1).writes("o1", register).loses("o1").goes("o1")
    return story.leads("o2", 1).writes("o2", register)


@pytest.mark.parametrize("register", ["sqlite", "grpc", ETCD])
def test_a_fence_lets_no_smaller_token_through(register: str) -> None:
    """Neither into what it holds nor into what it confirms; the same token may write again."""
    held(two(register).writes("o2", register), FENCE, NO_WRITE_LOST)
    violated(
        two(register).writes("o1", register), FENCE, "took 0-4 of o1 after", "took write 2 of o1 with 0-4 after it"
    )
    violated(two(register).writes("o1", register, holds=False), FENCE, "after it had confirmed")


def test_what_two_write_at_a_time_may_come_in_any_order() -> None:
    """A smaller token may be confirmed later than a larger one, when it was begun before that was confirmed."""
    story = Saga().leads("o1", 1)
    at_s, (number, token) = story.now_s, story.tries("o1", "sqlite")
    story.holds("sqlite", token, number, "o1").goes("o1").leads("o2").writes("o2")
    more = {"register": "sqlite", "token": token, "n": number, "ended_at_s": story.now_s}
    held(story.tell(Told.WROTE, "o1", at_s=at_s, **more), FENCE, NO_WRITE_LOST)


def test_a_fence_refuses_nobody_who_has_the_largest_token() -> None:
    """One that was only tried is reason enough; etcd also refuses one whose key is gone."""
    old, new = (two().tokens[process] for process in ("o1", "o2"))
    held(two().refused("o1", "sqlite", old), FENCE)
    violated(two().refused("o2", "sqlite", new), FENCE, "nobody had come with a larger token")
    new = two(ETCD).tokens["o2"]
    held(two(ETCD).goes("o2").refused("o2", ETCD, new), FENCE)  # its key is gone, and that is what etcd compares
    violated(two(ETCD).refused("o2", ETCD, new), FENCE, "nobody had come with a larger token")
    story = Saga().leads("o1", 1).goes("o1").leads("o2")
    story.tries("o2", "sqlite")
    held(story.refused("o1", "sqlite", old).writes("o2"), FENCE)


def test_a_register_in_etcd_may_go_back_with_etcd_and_no_other_may() -> None:
    """What is confirmed before is lost, a smaller token may be next, and no write is lost that came after."""

    def back(register: str) -> Saga:
        story = two(register)
        story.set_back(2)
        if register == ETCD:
            story.content[ETCD] = []
        return story.writes("o1", register)

    held(back(ETCD), FENCE, NO_WRITE_LOST)
    story = two(ETCD).writes("o2", ETCD).writes("o2", ETCD, holds=False)  # nobody has seen the revision of the last one
    story.set_back(2)
    story.content[ETCD] = []
    held(story.writes("o1", ETCD), FENCE, NO_WRITE_LOST)
    violated(back("sqlite"), FENCE, "took 0-4 of o1 after", "after it had confirmed")
    violated(back(ETCD).writes("o2", ETCD, holds=False), NO_WRITE_LOST, "does not hold it")


def test_what_etcd_is_set_back_to_was_not_written_again() -> None:
    """The key is there with the value of before; a write of after is larger, or the fence is broken."""
    story = two(ETCD)
    story.set_back(story.revision)
    held(story.writes("o2", ETCD), FENCE, NO_WRITE_LOST)
    violated(story.writes("o1", ETCD), FENCE, "took 0-4 of o1 after", "after it had confirmed")
    story = two(ETCD)
    story.set_back(story.revision)
    violated(story.writes("o1", ETCD), FENCE, "took 0-4 of o1 after 0-8 of o2")


def test_etcd_refuses_whose_key_it_has_lost() -> None:
    """It was made after the snapshot; a term that is still there is not refused, and no other register forgets."""

    def back(register: str, to: int) -> Saga:
        story = two(register)
        story.set_back(to)
        return story.refused("o2", register, story.tokens["o2"])

    held(back(ETCD, 5), FENCE)
    violated(back(ETCD, two(ETCD).revision), FENCE, "nobody had come with a larger token")
    violated(back("sqlite", 5), FENCE, "nobody had come with a larger token")


def test_what_nobody_has_seen_is_not_missed() -> None:
    """Between the moment that etcd is set back and the first revision that is seen again, anything may be written."""

    def story(after_s: float) -> Saga:
        story = two(ETCD)
        story.set_back(story.revision)
        first = story.revisions[0]
        story.now_s = first.seen_at_s + after_s
        return story.writes("o2", ETCD, holds=False).wait(2).writes("o2", ETCD)

    held(story(-0.5), NO_WRITE_LOST, FENCE)
    violated(story(0.1), NO_WRITE_LOST, "does not hold it")


def test_no_confirmed_write_is_lost() -> None:
    """Nor doubled, nor invented, nor there although it was refused."""
    violated(two().writes("o2", holds=False), NO_WRITE_LOST, "does not hold it")
    violated(two().holds("sqlite", "0-7", 1, "o2"), NO_WRITE_LOST, "holds write 1 of o2 2 times")
    violated(two().holds("sqlite", "9-9", 7, "o2"), NO_WRITE_LOST, "with 9-9, which it never tried")
    story = two()
    violated(
        story.refused("o1", "sqlite", story.tokens["o1"]).holds("sqlite", "0-4", 2, "o1"),
        NO_WRITE_LOST,
        "has refused write 2 of o1",
    )


def test_a_write_that_may_have_been_done_may_be_there_or_not() -> None:
    """Nothing is said of it but that it was tried."""
    story = two()
    story.tries("o2", "sqlite")
    held(story, NO_WRITE_LOST)
    number, token = story.tries("o2", "grpc")
    held(story.holds("grpc", token, number, "o2").writes("o2", "grpc"), NO_WRITE_LOST)


def test_what_the_register_of_etcd_says_is_what_its_revisions_say() -> None:
    """Two sources that disagree are a violation."""
    story = two(ETCD)
    story.content[ETCD].reverse()
    violated(story, NO_WRITE_LOST, "other writes than etcd's revisions tell")


def test_a_register_without_content_is_a_hole() -> None:
    """Nobody knows what it took."""
    story = two()
    story.content.clear()
    for invariant in (FENCE, NO_WRITE_LOST):
        unknown(story, invariant, "the content of register sqlite is missing")
    unknown(Saga().leads("o1"), NO_WRITE_LOST, "nothing to examine")


# --- readers ------------------------------------------------------------------------------------------------------


def changed() -> Saga:
    """o1 has led, and o2 leads."""
    return Saga().leads("o1", 1).sees("o1").loses("o1").goes("o1").leads("o2", 1)


def test_readers_are_told_who_led_at_a_revision() -> None:
    """Vacancies too; not somebody else's name, and no term that never was."""
    story = changed()
    held(story.sees("o1", revision=story.revision - 3, age_s=1.5).sees("o2", "watch"), READERS)
    held(changed().loses("o2").goes("o2").sees(""), READERS)
    violated(changed().sees("", revision=changed().revision), READERS, "told that nobody leads for revision")
    story = changed()
    story.tokens["o3"] = Token(3, 3)
    violated(story.sees("o3"), READERS, "told o3 with 3-3 for revision")


def test_within_one_watch_or_server_nothing_goes_back() -> None:
    """Of another session, another server, or a server that was started anew, nothing is said."""
    old = changed().revision - 3
    for via in ("get", "watch"):
        violated(changed().sees("o2", via).sees("o1", via, revision=old, age_s=2), READERS, "told 0-4 after 0-7")
        story = changed().sees("o2", via)
        story.fact(Done.STARTED, "s1", role="server").wait(0.1)
        held(story.sees("o1", via, revision=old, age_s=2), READERS)
    held(changed().sees("o2", "watch").sees("o1", "watch", revision=old, session=2), READERS)


def test_servers_that_stand_in_for_each_other_may_know_less_by_turns() -> None:
    """A watch of them goes on where it was; an answer is that of the one that was asked."""
    old = changed().revision - 3

    def back(via: str) -> Saga:
        return changed().sees("o2", via, server="any").sees("o1", via, revision=old, age_s=2, server="any")

    held(back("get"), READERS)
    violated(back("watch"), READERS, "told 0-4 after 0-7")


def test_an_answer_is_not_older_than_it_says() -> None:
    """What was over for longer was not to be told; while something is wrong, for some seconds more."""
    old = changed().revision - 3

    def late(wait_s: float, age_s: float, fault: str = "") -> Saga:
        story = changed()
        if fault:
            story.fault(fault)
        return story.goes_on("o2", wait_s).sees("o1", revision=old, age_s=age_s)

    held(late(3, 3.5), READERS)
    violated(late(3, 0.5), READERS, "told o1 with 0-4 as of 0.500 s ago, which was over for")
    held(late(3, 0.5, "member cut off"), READERS)
    violated(late(7, 0.5, "member cut off"), READERS, "which was over for")


def test_readers_go_back_with_etcd() -> None:
    """A term that was over is there again, with its key, and may be told; after what was lost as well."""
    story = changed().sees("o2")
    story.set_back(story.revision - 3)
    story.wait(1)
    held(story.sees("o1"), READERS)
    violated(story.sees("", revision=story.revision), READERS, "told that nobody leads")
    story = changed().sees("o2", "watch")
    at_s = story.now_s
    story.set_back(story.revision - 3)
    held(story.wait(1).sees("o1", "watch", at_s=at_s), READERS)  # it has waited all the time
    story = changed().sees("o2")
    story.set_back(story.revision - 3)
    held(story.wait(1).sees("o2", revision=story.revision - 1), READERS)  # one that nobody has seen


def test_a_reader_that_says_nothing_is_a_hole() -> None:
    """And without readers nothing is known."""
    story = whole()
    story.fact(Done.STARTED, "r2", role="reader").wait(20)
    unknown(story, READERS, "r2 has said nothing")
    unknown(Saga().leads("o1"), READERS, "nothing to examine")


# --- agents, progress, and what is left ---------------------------------------------------------------------------


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


# --- candidates that are not of the drill ----------------------------------------------------------------------------


def of_guests() -> Saga:
    """`o1` has led, and has been cut off; its process tells nothing."""
    story = Saga(replace(SETTINGS, whole=False, hurts="drill")).wins("o1").sees("o1").fault("cut off", "o1")
    return story.goes("o1").wait(2)


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


# --- a saved history ----------------------------------------------------------------------------------------------


def test_a_folder_can_be_judged_again(tmp_path: Path) -> None:
    """By the command, which exits with 0 only when everything held."""

    def save(story: Saga, folder: Path) -> int:
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
        return CliRunner().invoke(main, [str(folder)]).exit_code

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
