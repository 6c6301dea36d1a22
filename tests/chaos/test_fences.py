"""What registers take, refuse and hold: what breaks a fence or loses a write, and what only looks like it."""

from __future__ import annotations

import pytest

from election.drill.checker.fences import FENCE, NO_WRITE_LOST
from election.drill.vocabulary import Told
from election.drill.workload.registers import ETCD
from tests.chaos.saga import Saga
from tests.chaos.verdicts import held, unknown, violated


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
