"""What readers are told of who leads: what is wrong, and what only looks like it."""

from __future__ import annotations

from election.drill.checker.readings import READERS
from election.drill.vocabulary import Done
from election.token import Token
from tests.chaos.saga import Saga
from tests.chaos.story import KEYS
from tests.chaos.verdicts import held, unknown, violated, whole


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
    """What was over for longer was not to be told, whatever is wrong meanwhile."""
    old = changed().revision - 3

    def late(wait_s: float, age_s: float, fault: str = "") -> Saga:
        story = changed()
        if fault:
            story.fault(fault)
        return story.goes_on("o2", wait_s).sees("o1", revision=old, age_s=age_s)

    held(late(3, 4.5), READERS)
    violated(late(3, 0.5), READERS, "told o1 with 0-4 as of 0.500 s ago, which was over for")
    violated(late(3, 3.5, "member cut off"), READERS, "which was over for")


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


def test_what_was_told_of_a_revision_that_nobody_has_seen_is_not_held_against_who_has_its_number_now() -> None:
    """Etcd has counted on from what it was set back to, and come to the same number with nobody who leads."""

    def told_unseen(before: bool) -> Saga:
        story = changed()
        unseen = story.revision + 1
        if before:
            story.sees("o2", revision=unseen)
        story.set_back(story.revision - 3)
        story.goes("o1")
        while story.revision <= unseen:
            story.do((KEYS.root + b"other", b"value"))
        return story if before else story.wait(3).sees("o2", revision=unseen)

    held(told_unseen(before=True), READERS)
    violated(told_unseen(before=False), READERS, "which had nobody")


def test_a_reader_that_says_nothing_is_a_hole() -> None:
    """And without readers nothing is known."""
    story = whole()
    story.fact(Done.STARTED, "r2", role="reader").wait(20)
    unknown(story, READERS, "r2 has said nothing")
    unknown(Saga().leads("o1"), READERS, "nothing to examine")
