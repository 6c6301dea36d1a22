"""Lists in pages: each item once, whatever is asked for, and nothing that a caller could make up."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election.errors import BadField
from election.pb.election.v1 import election_pb2 as pb
from election.server.pages import DEFAULT_ITEMS, MOST_BYTES, MOST_ITEMS, Page


def listed(names: list[str], size: int, token: str = "", address: str = "") -> tuple[list[str], str]:
    """One page of agents that have these names."""
    request = pb.ListAgentsRequest(page_size=size, page_token=token)
    page = Page[pb.Agent](request, "agents", str)
    page.fill(names, lambda name: (name,), lambda name: pb.Agent(id=name, address=address))
    return [agent.id for agent in page.items], page.next_token


@given(names=st.sets(st.text(max_size=3), max_size=40), size=st.integers(1, 12), gone=st.sets(st.text(max_size=3)))
def test_every_item_is_on_one_page(names: set[str], size: int, gone: set[str]) -> None:
    """Also when others come and go between two pages."""
    found, token = list[str](), ""
    for number in range(len(names | gone) + 1):
        page, token = listed(sorted(names - gone if number % 2 else names | gone), size, token)
        assert len(page) <= size
        found += page
        if not token:
            break
    assert not token
    assert found == sorted(set(found))
    assert names - gone <= set(found)


def test_a_page_has_a_size_of_its_own_and_a_largest_one() -> None:
    """Whatever is asked for."""
    names = [f"{number:05}" for number in range(MOST_ITEMS + 1)]
    for asked, answered in ((0, DEFAULT_ITEMS), (MOST_ITEMS + 1, MOST_ITEMS), (7, 7), (MOST_ITEMS, MOST_ITEMS)):
        page, token = listed(names, asked)
        assert page == names[:answered]
        assert token
    assert listed(names[:7], 7) == (names[:7], "")


def test_a_page_fits_into_a_message() -> None:
    """As many as do, and one alone however large it is."""
    names = [f"{number}" for number in range(10)]
    page, token = listed(names, 0, address="x" * (MOST_BYTES // 4))
    assert (page, bool(token)) == (names[:3], True)
    assert listed(names, 0, token, address="x" * (2 * MOST_BYTES))[0] == ["3"]


@pytest.mark.parametrize(
    "content",
    [
        '["agents"]',
        '["elections", "a"]',
        '["agents", 7]',
        '["agents", "a", "b"]',
        '["agents", true]',
        '{"agents": "a"}',
        "agents",
        "",
        "[" * 400,
    ],
)
def test_a_token_that_no_page_has_ended_with_is_refused(content: str) -> None:
    """With the field that is wrong; it is never shown again."""
    token = base64.urlsafe_b64encode(content.encode()).decode()
    for bad in (token or "!", token[:-1] + "!", "\N{SNOWMAN}", "x" * 5000):
        with pytest.raises(BadField, match="none that a page of this list has ended with") as raised:
            listed(["a"], 1, bad)
        assert raised.value.field == "page_token"


def test_a_size_below_nothing_is_refused() -> None:
    """0 asks for what the server thinks right."""
    with pytest.raises(BadField, match="a page of -1 items") as raised:
        listed(["a"], -1)
    assert raised.value.field == "page_size"


def test_a_number_in_a_token_is_a_number() -> None:
    """JSON's true and 1.0 are others."""
    for place in ([True], [1.0], ["1"]):
        token = base64.urlsafe_b64encode(json.dumps(["candidates", *place]).encode()).decode()
        with pytest.raises(BadField):
            Page[pb.Candidate](pb.ListCandidatesRequest(page_token=token), "candidates", int)
