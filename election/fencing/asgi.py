"""Makes an HTTP service refuse a leader that has been deposed: a middleware for any ASGI application.

The middleware remembers the highest token of each election, and refuses requests that carry a smaller one.

    app = FencingMiddleware(app, ["scheduler"], store=FileHighWater("marks"))    # the service
    client.post(url, headers=fencing_headers(term), ...)                         # the leader, with any HTTP client

| answer | when |
|---|---|
| 412 | the token is smaller than the highest seen; the body names both |
| 428 | there is no token, and one is required |
| 400 | a header is malformed, repeated, or there without the other; or the election is not one of this service |
| 503 | the store has failed or takes too long: nothing is let through unchecked |

A WebSocket is refused the same way when it connects. Then each message that it receives is checked again, and the
socket is closed with 4412 or 4503 instead of being served; what the service sends on its own is not checked.

The check and what the application does then are two steps: a request that was admitted can still be at work when the
first one of a newer leader comes. Where that matters, the application hands the claim on to what it writes to, as in
`sql.fenced(connection, request.scope["election.claim"])`. The tokens come from the requests: who can send one can
raise the mark, so authenticate callers before this middleware.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from functools import partial
from http import HTTPStatus
from typing import Any

from election.errors import ConfigError
from election.fencing.claim import ELECTION_KEY, TOKEN_KEY, Claim, PassedOn
from election.highwater import AsyncHighWater, HighWater, asynchronous
from election.token import Token

logger = logging.getLogger("election")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLAIM = "election.claim"
"""The key in the ASGI scope under which the application finds the claim that was admitted, a `PassedOn`."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The methods that change nothing (RFC 9110, section 9.2.1)."""
_PRIVATE_CODES = 4000
"""Where the close codes of WebSockets begin that are free for applications (RFC 6455, section 7.4.2)."""


def fencing_headers(claim: Claim) -> dict[str, str]:
    """The headers that show a resource for whom a request is made.

    Raises:
        NotLeader: the term is over, by the local clock.
    """
    claim.check()
    return {ELECTION_KEY: claim.election, TOKEN_KEY: str(claim.token)}


class FencingMiddleware:
    """Lets through what carries the highest token seen of one of the elections, or a larger one.

    `store` keeps the marks. One that a restart empties, or that other workers of the service do not share, admits a
    deposed leader where the newer one has not been yet. A synchronous store is asked in a thread, so that the event
    loop goes on. Without `required`, requests with neither header pass; those with a header are checked all the same.
    Requests to the `exempt` paths (whole paths, compared as they are) and with an `unfenced` method are not looked
    at, and lifespan events pass.

    Raises:
        ConfigError: no election is named.
    """

    def __init__(
        self,
        app: App,
        elections: Iterable[str],
        *,
        store: HighWater | AsyncHighWater,
        required: bool = True,
        exempt: Collection[str] = (),
        unfenced: Collection[str] = SAFE_METHODS,
        store_timeout_s: float = 5.0,
    ) -> None:
        self._app = app
        self._elections = frozenset(elections)
        if isinstance(elections, str) or not self._elections:
            raise ConfigError("name the elections whose leaders this service obeys, as a list")
        self._advance = asynchronous(store).advance
        self._required = required
        self._exempt = frozenset(exempt)
        self._unfenced = frozenset(unfenced)
        self._store_timeout_s = store_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks a request or a socket, and serves or refuses it."""
        if not self._is_fenced(scope):
            return await self._app(scope, receive, send)
        try:
            claim = self._claim_of(scope)
            if claim is not None:
                await self._admit(claim)
        except _Refused as refused:
            return await _refuse(scope, receive, send, refused)
        if claim is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            socket = _Socket(partial(self._admit, claim), receive, send)
            receive, send = socket.receive, socket.send
        return await self._app({**scope, CLAIM: claim}, receive, send)

    def _is_fenced(self, scope: Scope) -> bool:
        if scope["type"] not in ("http", "websocket") or scope["path"] in self._exempt:
            return False
        return scope["type"] == "websocket" or scope["method"] not in self._unfenced

    def _claim_of(self, scope: Scope) -> PassedOn | None:
        """What the headers say; None when they say nothing and need not."""
        tokens, elections = _values(scope, TOKEN_KEY), _values(scope, ELECTION_KEY)
        if not tokens and not elections:
            if self._required:
                raise _Refused(428, f"send the fencing token: the headers {TOKEN_KEY} and {ELECTION_KEY}")
            return None
        if len(tokens) != 1 or len(elections) != 1:
            raise _Refused(400, f"send {TOKEN_KEY} and {ELECTION_KEY} once each")
        if elections[0] not in self._elections:
            raise _Refused(400, f"this service does not obey the leader of election {elections[0][:128]!r}")
        try:
            return PassedOn(elections[0], Token.parse(tokens[0]))
        except ConfigError as error:
            raise _Refused(400, str(error)) from None

    async def _admit(self, claim: PassedOn) -> None:
        """A mark that is not the token afterwards is larger, or the store is broken."""
        try:
            async with asyncio.timeout(self._store_timeout_s):
                mark = await self._advance(claim.election, claim.token)
            deposed = claim.token < mark
            if not deposed and mark != claim.token:
                raise ValueError(f"{mark} is the mark after {claim.token}")
        except Exception as error:
            logger.exception("the store of fencing tokens failed: requests are refused")
            raise _Refused(503, "the fencing token cannot be checked now: nothing was done") from error
        if deposed:
            tokens = {"election": claim.election, "token": str(claim.token), "highest": str(mark)}
            raise _Refused(412, f"token {claim.token} is not the leader's any more: {mark} has been seen", **tokens)


class _Refused(Exception):
    def __init__(self, status: int, detail: str, **more: str) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}

    @property
    def closing(self) -> Message:
        """The end of a WebSocket. A reason is at most 123 bytes long."""
        return {"type": "websocket.close", "code": _PRIVATE_CODES + self.status, "reason": str(self)[:120]}


class _Socket:
    """A WebSocket that is closed, and seen to be closed by the application, at the first message that is refused."""

    def __init__(self, admit: Callable[[], Awaitable[None]], receive: Receive, send: Send) -> None:
        self._admit = admit
        self._receive = receive
        self._send = send
        self._closed: Message | None = None

    async def receive(self) -> Message:
        if self._closed is None:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return message
            try:
                await self._admit()
            except _Refused as refused:
                self._closed = refused.closing
                await self._send(self._closed)
            else:
                return message
        return {**self._closed, "type": "websocket.disconnect"}

    async def send(self, message: Message) -> None:
        if self._closed is not None:
            raise ConnectionAbortedError(self._closed["reason"])  # as servers do after a disconnect: an OSError
        await self._send(message)


async def _refuse(scope: Scope, receive: Receive, send: Send, refused: _Refused) -> None:
    """Answers with the refusal (RFC 9457). A server that cannot answer a WebSocket so is told to close it: a 403."""
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        await receive()  # its connect
        if kind not in scope.get("extensions", {}):
            return await send(refused.closing)
    body = json.dumps(refused.body).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": refused.status, "headers": headers})
    return await send({"type": f"{kind}.body", "body": body})


def _values(scope: Scope, header: str) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header.encode()]
