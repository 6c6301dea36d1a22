"""Fencing tokens: one order, one text form, one integer form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election import ConfigError, Token
from election.token import LARGEST_EPOCH, LARGEST_REVISION

TOKENS = st.builds(Token, st.integers(0, LARGEST_EPOCH), st.integers(0, LARGEST_REVISION))


@given(TOKENS)
def test_both_forms_bring_the_token_back(token: Token) -> None:
    """What is written can be read, as text and as a number that fits a signed 64-bit integer."""
    assert Token.parse(str(token)) == token
    assert Token.of_int(int(token)) == token
    assert int(token) < 2**63


@given(TOKENS, TOKENS)
def test_the_integer_form_has_the_order_of_the_tokens(one: Token, other: Token) -> None:
    """Epoch first, then revision."""
    assert (one < other) == (int(one) < int(other)) == ((one.epoch, one.revision) < (other.epoch, other.revision))


def test_the_forms_are_these() -> None:
    """Others write them too, in other languages."""
    assert str(Token(7, 1234)) == "7-1234"
    assert int(Token(0, 1234)) == 1234
    assert int(Token(7, 1234)) == 7 * 2**48 + 1234


@pytest.mark.parametrize(
    "text",
    ["", "7", "-7", "7-", "-", "7-1234 ", " 7-1234", "07-1", "7-01", "+7-1", "7-1-1", "\u0667-1", "7_0-1", "7\n-1"],
)
def test_another_text_is_no_token(text: str) -> None:
    """One spelling for each token, and an error that shows what one looks like."""
    with pytest.raises(ConfigError, match="looks like 7-1234"):
        Token.parse(text)


@pytest.mark.parametrize(("epoch", "revision"), [(-1, 1), (1, -1), (LARGEST_EPOCH + 1, 1), (1, LARGEST_REVISION + 1)])
def test_numbers_out_of_range_are_no_token(epoch: int, revision: int) -> None:
    """However they come."""
    with pytest.raises(ConfigError, match="not a fencing token"):
        Token(epoch, revision)


@pytest.mark.parametrize("number", [-1, 2**63])
def test_integers_out_of_range_are_no_token(number: int) -> None:
    """Nor do they wrap."""
    with pytest.raises(ConfigError, match="not a fencing token"):
        Token.of_int(number)
