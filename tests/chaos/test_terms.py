"""One leads, it does nothing after its deadline, and tokens grow: what breaks that, and what only looks like it."""

from __future__ import annotations

from election.drill.checker.leaders import NO_ACT_AFTER, ONE_LEADER, TOKENS_GROW
from election.drill.checker.terms import terms
from election.drill.vocabulary import Done, Told
from election.token import Token
from tests.chaos.saga import TERM_S, Saga
from tests.chaos.verdicts import held, overlap, unknown, violated


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


def test_who_has_just_started_knows_of_no_leader_whose_lease_etcd_has_cut_short() -> None:
    """A member that led goes on, and ends the lease; who was there before has seen the leader alive, and waits."""

    def woken(started_before_s: float) -> Saga:
        story = Saga().leads("o1", 1)
        story.fact(Done.STARTED, "o2", role="orchestrator", slot="o2").goes_on("o1", started_before_s)
        return story.fact(Done.WOKEN, "m1").goes("o1").leads("o2").wait(0.2).loses("o1")

    held(woken(1), ONE_LEADER)
    violated(woken(5), ONE_LEADER, "o1 led with")


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
