"""Lists in pages: as many items as a caller asks for, and as fit into a message that every client takes."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, Self, TypeVar

from google.protobuf.message import Message

from election.errors import BadField

DEFAULT_ITEMS = 1_000
MOST_ITEMS = 5_000
MOST_BYTES = 2 * 1024 * 1024
"""Of a whole answer. Clients take 4 MiB, where nobody has told them otherwise. One item alone may have more."""

_AROUND_ALL, _AROUND_EACH = 4096, 8
"""What else there is in an answer: the view and the token, and the tag and length of each item."""

_LONGEST_TOKEN = 1024

Item = TypeVar("Item", bound=Message)
Row = TypeVar("Row")
Place = tuple[str | int, ...]
"""What a list is ordered by: that of an item is larger than those of all before it."""


class PagedRequest(Protocol):
    """A request for one page of a list."""

    page_size: int
    page_token: str


class Page(Generic[Item]):
    """The page that a request asks for, while it is filled.

    Its token names the last item, and the server remembers nothing: the next page can be asked for at another server,
    and at any time. What is there throughout is on one page exactly; what comes or goes meanwhile may be on one.

    Raises:
        BadField: for a size below 0, and for a token that no page of this list has ended with.
    """

    def __init__(self, request: PagedRequest, of: str, *shape: type[str | int]) -> None:
        if request.page_size < 0:
            raise BadField(f"a page of {request.page_size} items cannot be", field="page_size")
        self.after = _place(request.page_token, of, shape) if request.page_token else None
        self.items: list[Item] = []
        self.next_token = ""
        self._of = of
        self._most = min(request.page_size or DEFAULT_ITEMS, MOST_ITEMS)
        self._bytes = _AROUND_ALL
        self._last: Place = ()

    def fill(self, rows: Iterable[Row], place_of: Callable[[Row], Place], message: Callable[[Row], Item]) -> Self:
        """Takes the rows that belong on it; they are in order."""
        for row in rows:
            place = place_of(row)
            if (self.after is None or place > self.after) and not self.add(message(row), place):
                break
        return self

    def add(self, item: Item, place: Place) -> bool:
        """Takes the next item; returns False when that belongs on the next page."""
        size = item.ByteSize() + _AROUND_EACH
        if len(self.items) == self._most or (self.items and self._bytes + size > MOST_BYTES):
            self.next_token = _token(self._of, self._last)
            return False
        self.items.append(item)
        self._bytes += size
        self._last = place
        return True


def _token(of: str, place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps([of, *place]).encode()).decode()


def _place(token: str, of: str, shape: tuple[type[str | int], ...]) -> Place:
    refused = BadField("the page token is none that a page of this list has ended with", field="page_token")
    if len(token) > _LONGEST_TOKEN:
        raise refused
    try:
        found = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise refused from None
    if not isinstance(found, list) or [type(each) for each in found] != [str, *shape] or found[0] != of:
        raise refused
    return tuple(found[1:])
