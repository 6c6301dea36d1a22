"""Lists that come in pages: how all of them are read, and where what they hold together comes from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from election.messages import source_from
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Source


class PageRequest(Protocol):
    """A request for one page of a list."""

    page_token: str


class Page(Protocol):
    """An answer that is one page of a list."""

    @property
    def view(self) -> pb.View:
        """Where the page comes from."""
        ...

    @property
    def next_page_token(self) -> str:
        """Where the next page begins; empty after the last one."""
        ...


Asked = TypeVar("Asked", bound=PageRequest)
Told = TypeVar("Told", bound=Page)


async def all_pages(ask: Callable[[Asked], Awaitable[Told]], request: Asked) -> list[Told]:
    """All pages of a list, each from whoever answers; the request is changed for each."""
    pages = [await ask(request)]
    while token := pages[-1].next_page_token:
        request.page_token = token
        pages.append(await ask(request))
    return pages


def source_of(pages: Sequence[Page]) -> Source:
    """That of all of them together: what they hold is complete up to the oldest of their revisions."""
    sources = [source_from(page.view) for page in pages]
    oldest = min(sources, key=lambda source: source.revision)
    return replace(oldest, age_s=max(source.age_s for source in sources))
