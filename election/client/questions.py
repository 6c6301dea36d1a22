"""Questions to the servers, and their answers: errors as this library knows them, and lists that come in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import grpc.aio

from election.api.elections import VIEW_METADATA, source_from
from election.api.statuses import error_of
from election.client.servers import Req, Resp, Servers, Unary
from election.errors import ConfigError
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


def request_of(kind: Callable[..., Req], **fields: Any) -> Req:
    """The message that asks; raises ConfigError for what a message cannot hold."""
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:  # text that is not Unicode, a number of more than 64 bits
        raise ConfigError(f"this cannot be asked: {error}") from None


async def ask(servers: Servers, method: Unary[Req, Resp], request: Req, *, takes_s: float = 0.0) -> Resp:
    """One question and its answer, as `Servers.ask`; raises the ElectionError that a refusal stands for."""
    try:
        return await servers.ask(method, request, takes_s=takes_s)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None


async def ask_pages(servers: Servers, method: Unary[Asked, Told], request: Asked) -> list[Told]:
    """All pages of a list, each from whoever answers; the request is changed for each."""
    pages = [await ask(servers, method, request)]
    while token := pages[-1].next_page_token:
        request.page_token = token
        pages.append(await ask(servers, method, request))
    return pages


def source_of(pages: Sequence[Page]) -> Source:
    """That of all of them together: what they hold is complete up to the oldest of their revisions."""
    sources = [source_from(page.view) for page in pages]
    oldest = min(sources, key=lambda source: source.revision)
    return replace(oldest, age_s=max(source.age_s for source in sources))


def source_in(error: grpc.aio.AioRpcError) -> Source:
    """The source of the answer that there is nothing; a server that does not tell gives an unknown one."""
    for key, value in error.trailing_metadata() or ():
        if key == VIEW_METADATA and isinstance(value, bytes):
            return source_from(pb.View.FromString(value))
    return Source(0, 0, 0.0)
