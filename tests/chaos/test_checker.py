"""The checker says no: to each history that breaks a promise, and for the right reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from election.agent_records import AgentRecord, StateEntry
from election.drill.checker.agents import violations as check
from election.drill.checker.deadlines import collected, stale_times
from election.drill.checker.health import well
from election.drill.history import FACTS, REVISIONS, SETTINGS, Change, History, Journal, Revision, write_settings
from election.drill.vocabulary import Done
from election.keys import REGISTRATION
from election.token import Token
from tests.chaos.story import KEYS, Story
from tests.chaos.story import SETTINGS as TOLD

STATUS = KEYS.state("w1", "status")


def refused(story: Story, *words: str) -> None:
    """The checker finds something, and all that it finds has one of these texts."""
    texts = [str(violation) for violation in check(story.history())]
    assert texts
    for text in texts:
        assert any(word in text for word in words), text
    for word in words:
        assert any(word in text for text in texts), word


def dead() -> Story:
    """w1 is gone, and its grace is over."""
    return Story().lives("w1").dies("w1").wait(2).beat()


# --- what is right ----------------------------------------------------------------------------------------------


def test_a_history_in_which_all_is_well_is_accepted() -> None:
    """Deaths that are reaped, leaves of both kinds, an own delete, a return in time, a stranger, an eviction."""
    story = dead().reap("w1")
    story.register("w1").write("w1").say("deletes", "w1", key="status").do((STATUS, None))
    story.lives("w2").leaves_without_state("w2")
    story.lives("w3").dies("w3").register("w3").write("w3")
    story.do((KEYS.state("s1", "task"), b'{"by": "stranger"}')).beat().wait(2).beat().reap("s1")
    story.lives("w4").fact(Done.EVICTED, "w4", incarnation=story.incarnations["w4"]).vanish("w4").say("acted", "w4")
    story.register("w4").write("w4")
    story.collector("c2")
    for agent in ("w1", "w3", "w4"):
        story.dies(agent).wait(2).beat().reap(agent)
    story.leaves_without_state("beat")
    assert check(story.history()) == []


def test_a_tombstone_in_parts_is_accepted() -> None:
    """Each part holds what its own transaction has deleted."""
    story = dead().beat()
    whole = story.tombstone("w1")
    story.do((STATUS, None), (KEYS.tombstone("w1", whole.incarnation), replace(whole, agent_record=None).encode()))
    story.reap("w1", [replace(whole, collected=(), part=1)])
    assert check(story.history()) == []


def test_a_saved_history_is_judged_as_the_one_in_memory(tmp_path: Path) -> None:
    """What a drill writes into its folder is all that the checker needs."""
    history = dead().reap("w1", []).history()
    write_settings(tmp_path, history.settings)
    Journal(tmp_path / REVISIONS).write(*history.revisions)
    Journal(tmp_path / FACTS).write(*history.facts)
    Journal(tmp_path / "agents" / "w1-1.jsonl").write(*history.said)
    assert History.load(tmp_path) == replace(history, said=tuple(sorted(history.said, key=lambda each: each.at_s)))
    assert (tmp_path / SETTINGS).exists()
    assert check(History.load(tmp_path)) == check(history) != []


# --- reaps --------------------------------------------------------------------------------------------------------


def test_nobody_is_reaped_alive() -> None:
    """The liveness key is there right before the reap: also when it came back at the last moment."""
    refused(Story().lives("w1").reap("w1"), "it was reaped while incarnation")
    story = dead()
    tombstone = story.tombstone("w1")
    refused(story.register("w1").reap("w1", [tombstone]), "it was reaped while incarnation")


def test_a_reap_and_a_return_in_one_revision_are_no_reap_of_the_dead() -> None:
    """A transaction that deletes the state may not be the one that ends the agent."""
    story = Story().lives("w1")
    refused(story.reap("w1", besides=[(KEYS.alive("w1"), b"")]), "it was reaped while incarnation")


def test_what_is_deleted_is_in_the_tombstone_and_nothing_else_is() -> None:
    """Missing, too much, twice, another value, another revision."""
    story = dead()
    right = story.tombstone("w1")
    [entry] = right.collected
    wrong = {
        "were deleted and are in no tombstone": [replace(right, collected=())],
        "were not deleted": [replace(right, collected=(entry, StateEntry("other", b"x", 3)))],
        "in the tombstones twice": [right, replace(right, part=1)],
        "with another value": [replace(right, collected=(replace(entry, value=b"other"),))],
        "another value or revision": [replace(right, collected=(replace(entry, mod_revision=2),))],
        "its registration was deleted": [replace(right, agent_record=None)],
        "its registration said": [replace(right, agent_record=AgentRecord("w1"))],
    }
    for text, tombstones in wrong.items():
        refused(dead().reap("w1", tombstones), text)


def test_a_tombstone_is_not_overwritten() -> None:
    """It is all that is left of what was deleted before."""
    story = Story().beat()
    for _ in range(2):
        story.do((KEYS.state("s1", "task"), b'{"by": "stranger"}')).beat().wait(2).beat().reap("s1")
    refused(story, "an earlier tombstone was overwritten")


def test_only_the_proven_leader_of_the_collectors_reaps() -> None:
    """Not under a token that never was, not under an old one, not in another's name, not before the proof."""
    right = dead().tombstone("w1")
    refused(dead().reap("w1", [replace(right, token=Token(0, 2 + right.token.revision))]), "the proven collector was")
    refused(dead().reap("w1", [replace(right, collector="c9")]), "reaped by ('c9'")
    story = dead().collector("c2")
    refused(story.reap("w1", [replace(story.tombstone("w1"), token=right.token, collector="c1")]), "reaped by ('c1'")
    story = dead()
    story.do(*[(key, None) for key in story.stored if key.startswith(KEYS.campaigns)])
    story.do((KEYS.candidate("_collector", 7), b'{"v": 1, "id": "c2"}')).beat()
    refused(story.reap("w1"), "the proven collector was None")


def test_tokens_never_go_back() -> None:
    """A reap under a smaller token than an earlier one comes from a collector that was deposed."""
    story = Story().lives("w1", "w2").beat().vanish("w1").vanish("w2").wait(2).beat()
    old = story.tombstone("w2")
    story.collector("c2").reap("w1")
    refused(story.reap("w2", [old]), "after one under", "the proven collector was")


def test_a_reap_waits_for_the_grace() -> None:
    """Counted from when the liveness key vanished, or a stranger wrote what no agent stands for."""
    refused(Story().lives("w1").dies("w1").wait(1).beat().reap("w1"), "s after it vanished; the grace is 2 s")
    story = Story().beat().do((KEYS.state("s1", "task"), b"x")).beat()
    texts = [violation.text for violation in check(story.reap("s1").history())]
    assert any("s after it vanished" in text for text in texts)


def test_an_operator_may_shorten_the_grace() -> None:
    """A request to reap now goes with the reap."""
    story = Story().lives("w1").dies("w1").do((KEYS.reap_request("w1"), b"{}"))
    state = [(key, None) for key in story.stored if key.startswith(KEYS.states("w1"))]
    tombstone = story.tombstone("w1")
    put = (KEYS.tombstone("w1", tombstone.incarnation), tombstone.encode())
    assert check(story.do(*state, put, (KEYS.reap_request("w1"), None)).history()) == []


def test_nothing_is_reaped_while_the_breaker_is_open() -> None:
    """From the revision on that opened it."""
    refused(dead().breaker(open=True).reap("w1"), "while the breaker was open")
    assert check(dead().breaker(open=True).breaker(open=False).reap("w1").history()) == []


# --- who writes and deletes -----------------------------------------------------------------------------------------


def test_state_is_not_deleted_by_somebody_unknown() -> None:
    """Of the living without its word, of the dead without a tombstone, as if it had left."""
    refused(Story().lives("w1").do((STATUS, None)), "never said so")
    refused(dead().do((STATUS, None)), "no tombstone was put")
    story = Story().lives("w1")
    story.do((KEYS.alive("w1"), None), (STATUS, None), (KEYS.state("w1", REGISTRATION), None))
    refused(story, "w1-1 never left")
    story = Story().lives("w1").say("deletes", "w1", key="status").do((STATUS, None)).write("w1").do((STATUS, None))
    refused(story, "never said so")


def test_nobody_writes_as_an_incarnation_that_is_over() -> None:
    """After its reap, while nobody is alive, while its successor is, and in another's name."""
    refused(dead().reap("w1").write("w1"), "which was reaped before; alive was nobody")
    refused(dead().write("w1"), "alive was nobody")
    story = Story().lives("w1")
    old = story.incarnations["w1"]
    story.vanish("w1").register("w1").write("w1", incarnation=old)
    refused(story, f"as incarnation {old}; alive was w1-1 as incarnation")
    refused(Story().lives("w1").write("w1", by="w1-2"), "was written by w1-2")
    refused(Story().lives("w1").do((KEYS.state("w1", REGISTRATION), b"{}")), "by nobody who registers or leaves")


def test_nobody_takes_itself_for_alive_once_it_is_not() -> None:
    """It asked its own clock after etcd was seen to have ended it; being told by hand it cannot know."""
    story = Story().lives("w1").vanish("w1").wait(0.1).say("acted", "w1")
    refused(story, "took itself for alive 0.1")


def test_an_incarnation_that_etcd_has_cut_short_is_believed_until_its_deadline() -> None:
    """By a member that led, stood still and goes on: so soon after it, and for no longer than a lease lasts."""

    def cut_short(after_s: float) -> Story:
        return Story().lives("w1").fact(Done.WOKEN, "m1").wait(after_s).vanish("w1")

    ttl_s = Story().history().settings.ttl_s
    assert check(cut_short(0.1).wait(ttl_s - 0.1).say("acted", "w1").history()) == []
    refused(cut_short(0.1).wait(ttl_s + 0.1).say("acted", "w1"), "took itself for alive")
    refused(cut_short(3.0).wait(0.1).say("acted", "w1"), "took itself for alive 0.1")
    refused(Story().lives("w1").vanish("w1").wait(0.1).fact(Done.WOKEN, "m1").say("acted", "w1"), "alive 0.1")


def test_a_write_that_was_confirmed_is_there() -> None:
    """Or etcd has lost it, or the observer has not seen everything."""
    refused(Story().lives("w1").say("wrote", "w1", key="status"), "and it was not")


def test_what_is_kept_is_put_back_after_a_reap_and_only_then() -> None:
    """In the transaction that registers it again; nothing where its state is still there."""

    def kept() -> Story:
        return Story().lives("w1").keeps("w1").dies("w1").wait(2).beat()

    assert check(kept().reap("w1").register("w1", put_back="memory").history()) == []
    assert check(kept().register("w1").history()) == []
    refused(kept().reap("w1").register("w1"), "was kept, and not put back")
    refused(kept().register("w1", put_back="memory"), "were put back, and were not gone")
    unsure = Story().lives("w1").say("keeps", "w1", key="memory").dies("w1").wait(2).beat().reap("w1").register("w1")
    assert check(unsure.history()) == []


# --- deadlines ------------------------------------------------------------------------------------------------------


def test_what_lies_around_for_too_long_is_overdue() -> None:
    """More than TTL + grace + 5 s after the process was killed, when all has been well for as long."""
    story = dead().wait(TOLD.bound_s).beat()
    refused(story.reap("w1"), "lay around for")
    refused(dead().wait(TOLD.bound_s), "lay around for")
    early = dead().wait(4).beat().reap("w1").history()
    assert check(early) == []
    [one] = collected(early)
    assert 9 < one.took_s < TOLD.bound_s


def test_what_collectors_are_not_told_of_may_lie_around_until_they_list_everything() -> None:
    """State that somebody put for an agent that does not live: no lease ends, so no watch tells."""
    story = Story().beat().do((KEYS.state("s1", "task"), b'{"by": "stranger"}')).wait(TOLD.bound_s + 4)
    assert check(story.history()) == []
    refused(story.wait(2), "lay around for")


@pytest.mark.parametrize(
    "fault",
    ["quorum", "standstill", "member", "probe", "collector", "paused collector", "leave", "takeover", "breaker"],
)
def test_the_bound_begins_anew_when_all_is_well_again(fault: str) -> None:
    """Twice as long as the bound is not too long when something was wrong in the middle, and no more than that."""
    story = dead().wait(TOLD.bound_s - 7)
    match fault:
        case "quorum":
            story.fact(Done.DISTURBED, unwell=True).wait(20).fact(Done.DISTURBED, unwell=False)
        case "member":
            story.fact(Done.DISTURBED, unwell=False)
        case "standstill":
            story.now_s += 20
        case "probe":
            story.probe(ok=False)
        case "collector":
            story.fact(Done.KILLED, "c1").wait(20).collector("c2")
        case "paused collector":
            story.fact(Done.PAUSED, "c1").wait(20).fact(Done.RESUMED, "c1")
        case "leave":
            story.fact(Done.LEAVES, "c1").wait(20).collector("c2")
        case "takeover":
            story.collector("c2")
        case "breaker":
            story.breaker(open=True).wait(20).breaker(open=False)
    story.wait(TOLD.bound_s - 1)
    assert check(story.history()) == []
    refused(story.wait(2), "lay around for")


def test_a_collector_that_is_gone_is_not_well_and_others_do_not_count() -> None:
    """A fault of one that only waits changes nothing."""
    story = dead()
    before = well(story.history())
    assert len(before) == 1
    story.fact(Done.KILLED, "c7").wait(1)
    assert len(well(story.history())) == 1
    story.fact(Done.KILLED, "c1").wait(5)
    story.fact(Done.RESUMED, "c1").wait(5)
    [only] = well(story.history())
    assert story.now_s - only.ended_at_s > 9.9


def test_a_collector_that_stands_behind_its_own_old_key_does_not_lead() -> None:
    """It lost its term while etcd was away, and the key that it could not delete is still the oldest."""
    story = dead().do((KEYS.candidate("_collector", 7), b'{"v": 1, "id": "c1"}')).wait(TOLD.bound_s)
    assert check(story.history()) == []


def test_how_each_time_without_a_living_agent_ended_is_told() -> None:
    """Reaped, back in time, and still open."""
    story = dead().reap("w1").lives("w2", "w3").vanish("w2").register("w2").vanish("w3")
    assert [(each.agent, each.end) for each in stale_times(story.history())] == [
        ("w1", "reaped"),
        ("w2", "back"),
        ("w3", "open"),
    ]


# --- the history itself, and what is left at the end ------------------------------------------------------------------


def test_a_history_with_holes_is_refused() -> None:
    """A revision is missing, or a value is not the one that was written."""
    history = Story().lives("w1").write("w1").history()
    without = tuple(each for each in history.revisions if each.number != history.revisions[-2].number)
    assert {each.rule for each in check(replace(history, revisions=without))} >= {"history"}
    last = history.revisions[-1]
    [change] = last.changes
    assert change.before is not None
    assert change.after is not None

    def rules(changed_to: Change) -> list[str]:
        changed = Revision(last.number, last.seen_at_s, (changed_to,))
        return [each.rule for each in check(replace(history, revisions=(*history.revisions[:-1], changed)))]

    assert rules(replace(change, before=None)) == []  # etcd does not always tell it
    assert rules(replace(change, before=replace(change.before, value=b"other"))) == ["history"]
    assert rules(replace(change, after=replace(change.after, created=last.number))) == ["history"]
    assert rules(Change(KEYS.highest("never"), None, None))[:1] == ["history"]


def test_at_the_end_only_tombstones_are_left() -> None:
    """Keys of agents, candidates and requests, leases without keys and leases of anything else."""

    def over() -> Story:
        story = dead().reap("w1").leaves_without_state("beat")
        return story.do(*[(key, None) for key in story.stored if key.startswith(KEYS.campaigns)])

    tombstone = f"/election/drill/agents/reaped/w1/{over().incarnations['w1']}"
    assert check(over().breaker(open=False).ends(a1=[tombstone]).history()) == []
    refused(over().ends(a1=[]), "lease a1 is left")
    assert check(over().fact(Done.KILLED, "c1").ends(a1=[]).history()) == []
    refused(over().fact(Done.KILLED, "c1").ends(a1=[], a2=[]), "lease a1 is left", "lease a2 is left")
    refused(over().ends(a1=[tombstone, "/election/drill/agents/alive/w1"]), "lease a1 is left")
    refused(over().do((KEYS.reap_request("w1"), b"{}")).ends(), "collector/reap/w1' is left")
    refused(over().do((KEYS.draining("w1"), b"{}")).ends(), "agents/draining/w1' is left")
    refused(over().lives("w2").ends(), "agents/alive/w2' is left", "agents/state/w2/")
    refused(dead().reap("w1").leaves_without_state("beat").ends(), "campaigns/_collector/")
