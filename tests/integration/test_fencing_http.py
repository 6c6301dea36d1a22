"""The HTTP guard in front of an application of Starlette, on real sockets."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from election.errors import ConfigError, LossReason, NotLeader
from election.fencing.asgi import CLAIM, App, FencingMiddleware, Receive, Scope, Send, fencing_headers
from election.fencing.claim import PassedOn
from election.highwater import MemoryHighWater
from election.token import Token

WAIT_S = 10.0
OLD, NEW = PassedOn("demo", Token(3, 900)), PassedOn("demo", Token(4, 7))
"""In the order of tokens, though not of revisions: an operator has raised the epoch between them."""


@dataclass
class Service:
    """An application that notes what reaches it, and the way to it."""

    port: int = 0
    reached: list[str] = field(default_factory=list)
    send: Send | None = None

    def asgi(self) -> App:
        routes = [
            Route("/write", self._write, methods=["POST", "GET"]),
            Route("/health", self._write, methods=["POST"]),
            Route("/health/write", self._write, methods=["POST"]),
            WebSocketRoute("/feed", self._feed),
        ]
        starlette = Starlette(routes=routes, lifespan=self._lifespan)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                self.send = send
            await starlette(scope, receive, send)

        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.reached.append("started")
        yield

    async def _write(self, request: Request) -> PlainTextResponse:
        self.reached.append(f"{request.method} {request.url.path} {(await request.body()).decode()}".strip())
        return PlainTextResponse(str(request.scope.get(CLAIM)))

    async def _feed(self, feed: WebSocket) -> None:
        await feed.accept()
        try:
            while True:
                self.reached.append(await feed.receive_text())
                await feed.send_text("done")
        except WebSocketDisconnect as disconnect:
            self.reached.append(f"disconnected {disconnect.code}")
        try:
            assert self.send is not None
            await self.send({"type": "websocket.send", "text": "by a task that has not heard yet"})
        except OSError:
            self.reached.append("cannot send")

    def ask(
        self, method: str, path: str, headers: dict[str, str] | list[tuple[str, str]] | None = None, body: str = ""
    ) -> tuple[int, str]:
        """The status and the body of an answer."""
        pairs = headers if isinstance(headers, list) else list((headers or {}).items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.putrequest(method, path)
            for name, value in [*pairs, ("content-length", str(len(body)))]:
                connection.putheader(name, value)
            connection.endheaders(body.encode())
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def write(self, claim: PassedOn, body: str = "") -> int:
        """The status of a write that carries a token."""
        return self.ask("POST", "/write", fencing_headers(claim), body)[0]

    def feed(self, claim: PassedOn | None) -> ClientConnection:
        """A WebSocket, open."""
        headers = fencing_headers(claim) if claim else {}
        url = f"ws://127.0.0.1:{self.port}/feed"
        return connect(url, additional_headers=headers, open_timeout=WAIT_S, close_timeout=WAIT_S, proxy=None)

    def until_reached(self, what: str) -> None:
        give_up_at_s = time.monotonic() + WAIT_S
        while what not in self.reached:
            assert time.monotonic() < give_up_at_s, self.reached
            time.sleep(0.005)


Serve = Callable[..., AbstractContextManager[Service]]


@pytest.fixture
def served() -> Serve:
    """Serves the application behind the middleware with these settings, until the block ends."""

    @contextmanager
    def run(store: Any = None, extensions: bool = True, **settings: Any) -> Iterator[Service]:
        service = Service()
        app = FencingMiddleware(service.asgi(), ["demo", "other"], store=store or MemoryHighWater(), **settings)

        async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope if extensions else {**scope, "extensions": {}}, receive, send)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            service.port = listener.getsockname()[1]
            config = uvicorn.Config(outermost, lifespan="on", log_config=None, ws="websockets-sansio")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                service.until_reached("started")
                service.reached.clear()
                yield service
            finally:
                server.should_exit = True
                thread.join()

    return run


# --- requests ---------------------------------------------------------------------------------------------------


def test_a_smaller_token_is_refused_and_the_answer_names_both(served: Serve) -> None:
    """The old leader writes until the new one has been there; then it is told why it is refused."""
    with served() as service:
        assert service.write(OLD, "a") == 200
        assert service.write(OLD, "b") == 200
        assert service.write(NEW, "c") == 200
        status, body = service.ask("POST", "/write", fencing_headers(OLD), "d")
        assert status == 412
        assert json.loads(body) == {
            "title": "Precondition Failed",
            "status": 412,
            "detail": "token 3-900 is not the leader's any more: 4-7 has been seen",
            "election": "demo",
            "token": "3-900",
            "highest": "4-7",
        }
        assert service.write(NEW, "e") == 200
        assert service.reached == [f"POST /write {body}" for body in "abce"]


def test_each_election_has_a_mark_of_its_own(served: Serve) -> None:
    """Tokens of different elections are not compared."""
    with served() as service:
        assert service.write(NEW) == 200
        assert service.write(PassedOn("other", OLD.token)) == 200
        assert service.write(OLD) == 412


def test_a_missing_token_is_refused_where_one_is_required(served: Serve) -> None:
    """And let through where it is not; one that is sent is checked all the same."""
    with served() as service:
        status, body = service.ask("POST", "/write")
        assert (status, json.loads(body)["title"]) == (428, "Precondition Required")
        assert service.reached == []
    with served(required=False) as service:
        assert service.ask("POST", "/write") == (200, "None")
        assert [service.write(NEW), service.write(OLD)] == [200, 412]
        assert service.ask("POST", "/write", {"x-fencing-token": "4-7"})[0] == 400


ELECTION = ("x-fencing-election", "demo")
TOKEN = ("x-fencing-token", "4-7")


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([ELECTION, ("x-fencing-token", "1234")], "is not a fencing token"),
        ([ELECTION, ("x-fencing-token", "")], "is not a fencing token"),
        ([ELECTION, ("x-fencing-token", "4-7, 4-8")], "is not a fencing token"),
        ([ELECTION, ("x-fencing-token", "-4-7")], "is not a fencing token"),
        ([ELECTION, ("x-fencing-token", "40000-7")], "are not a fencing token"),
        ([ELECTION, TOKEN, TOKEN], "once each"),
        ([ELECTION, ELECTION, TOKEN], "once each"),
        ([ELECTION, TOKEN, ("X-Fencing-Token", "9-9")], "once each"),
        ([ELECTION], "once each"),
        ([TOKEN], "once each"),
        ([("x-fencing-election", "foreign"), TOKEN], "does not obey the leader of election 'foreign'"),
        ([("x-fencing-election", "Demo"), TOKEN], "does not obey the leader of election 'Demo'"),
    ],
)
def test_headers_that_cannot_be_understood_are_refused(
    served: Serve, headers: list[tuple[str, str]], says: str, required: bool
) -> None:
    """Guessing what was meant could let a deposed leader through."""
    with served(required=required) as service:
        status, body = service.ask("POST", "/write", headers)
        assert status == 400
        assert says in json.loads(body)["detail"]
        assert service.reached == []


def test_requests_that_change_nothing_are_not_fenced_unless_asked_for(served: Serve) -> None:
    """A GET passes without a token, and with an old one; the methods are the user's choice."""
    with served() as service:
        assert service.write(NEW) == 200
        assert service.ask("GET", "/write") == (200, "None")
        assert service.ask("GET", "/write", fencing_headers(OLD)) == (200, "None")
        assert service.ask("DELETE", "/write")[0] == 428
    with served(unfenced=()) as service:
        assert service.ask("GET", "/write")[0] == 428


def test_exempt_paths_are_whole_paths(served: Serve) -> None:
    """What is below one, or only looks like it, is fenced."""
    with served(exempt=["/health", "/feed"]) as service:
        assert service.ask("POST", "/health")[0] == 200
        for path in ("/health/", "/health/write", "/healthz", "//health", "/write"):
            assert service.ask("POST", path)[0] == 428, path
        with service.feed(None) as feed:
            feed.send("a")
            assert feed.recv(WAIT_S) == "done"


def test_the_application_finds_the_claim_that_was_admitted(served: Serve) -> None:
    """To hand it on to what it writes to."""
    with served() as service:
        assert service.ask("POST", "/write", fencing_headers(NEW)) == (200, str(NEW))


# --- stores -----------------------------------------------------------------------------------------------------


class Slow:
    """A synchronous store whose disk can be stopped."""

    def __init__(self) -> None:
        self.runs = threading.Event()
        self.asked = threading.Event()
        self._marks = MemoryHighWater()

    def advance(self, name: str, token: Token) -> Token:
        self.asked.set()
        assert self.runs.wait(WAIT_S)
        return self._marks.advance(name, token)


class Awaited:
    """An asynchronous store."""

    def __init__(self) -> None:
        self._marks = MemoryHighWater()

    async def advance(self, name: str, token: Token) -> Token:
        return self._marks.advance(name, token)


@dataclass
class Answering:
    """A store that answers every question the same, or raises it."""

    answer: Any

    def advance(self, name: str, token: Token) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_store_that_waits_for_its_disk_does_not_stop_the_service(served: Serve) -> None:
    """It is asked in a thread: other requests are served meanwhile, and this one when the answer is there."""
    store, statuses = Slow(), []
    with served(store) as service:
        writing = threading.Thread(target=lambda: statuses.append(service.write(NEW)))
        writing.start()
        assert store.asked.wait(WAIT_S)
        assert service.ask("GET", "/write")[0] == 200
        assert statuses == []
        store.runs.set()
        writing.join(WAIT_S)
        assert statuses == [200]
        assert service.write(OLD) == 412


def test_an_asynchronous_store_is_awaited(served: Serve) -> None:
    """The same answers."""
    with served(Awaited()) as service:
        assert [service.write(OLD), service.write(NEW), service.write(OLD)] == [200, 200, 412]


@pytest.mark.parametrize("answer", [OSError("no space left"), OLD.token, None, "4-7"], ids=str)
def test_nothing_is_let_through_when_the_store_fails(
    served: Serve, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it raises, or answers what cannot be: a mark below the token that it was given, or no token."""
    with served(Answering(answer)) as service, caplog.at_level(logging.ERROR, "election"):
        assert service.write(NEW) == 503
        assert service.reached == []
    assert "the store of fencing tokens failed" in caplog.text


def test_nothing_is_let_through_when_the_store_does_not_answer_in_time(served: Serve) -> None:
    """The wait is bounded."""
    store = Slow()
    with served(store, store_timeout_s=0.05) as service:
        assert service.write(NEW) == 503
        assert service.reached == []
        store.runs.set()


# --- WebSockets -------------------------------------------------------------------------------------------------


def refusal(service: Service, claim: PassedOn | None) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        service.feed(claim)
    response = caught.value.response
    return response.status_code, (response.body or b"").decode()


def test_a_socket_of_a_deposed_leader_is_refused_when_it_connects(served: Serve) -> None:
    """With the same answers as a request."""
    with served() as service:
        assert service.write(NEW) == 200
        status, body = refusal(service, OLD)
        assert (status, json.loads(body)["highest"]) == (412, "4-7")
        assert refusal(service, None)[0] == 428
        assert refusal(service, PassedOn("foreign", NEW.token))[0] == 400
    with served(Answering(OSError())) as service:
        assert refusal(service, NEW)[0] == 503
        assert service.reached == []


def test_a_server_that_cannot_answer_a_socket_refuses_it_with_403(served: Serve) -> None:
    """Without ASGI's extension `websocket.http.response`, closing before accepting is all there is."""
    with served(extensions=False) as service:
        assert refusal(service, None) == (403, "")


def test_an_open_socket_is_closed_at_the_first_message_after_a_newer_leader_was_there(served: Serve) -> None:
    """The message does not reach the application, which sees the socket closed and cannot send any more."""
    with served() as service, service.feed(OLD) as feed:
        feed.send("a")
        assert feed.recv(WAIT_S) == "done"
        assert service.write(NEW) == 200
        service.reached.clear()
        feed.send("b")
        with pytest.raises(ConnectionClosed) as caught:
            feed.recv(WAIT_S)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4412
        assert caught.value.rcvd.reason == "token 3-900 is not the leader's any more: 4-7 has been seen"
        service.until_reached("cannot send")
        assert service.reached == ["disconnected 4412", "cannot send"]


def test_an_open_socket_is_closed_when_its_message_cannot_be_checked(served: Serve) -> None:
    """The store failed after the socket was opened."""
    store = Answering(NEW.token)
    with served(store) as service, service.feed(NEW) as feed:
        feed.send("a")
        assert feed.recv(WAIT_S) == "done"
        store.answer = OSError("gone")
        feed.send("b")
        with pytest.raises(ConnectionClosed) as caught:
            feed.recv(WAIT_S)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4503
        service.until_reached("disconnected 4503")
        assert "b" not in service.reached


# --- the leader's side, and settings -----------------------------------------------------------------------------


def test_the_headers_of_a_term_that_is_over_are_not_made() -> None:
    """The local deadline is compared before anything is sent."""

    class Over:
        election, token = "demo", NEW.token

        def check(self) -> None:
            raise NotLeader("over", reason=LossReason.EXPIRED)

    with pytest.raises(NotLeader):
        fencing_headers(Over())
    assert fencing_headers(NEW) == {"x-fencing-election": "demo", "x-fencing-token": "4-7"}


@pytest.mark.parametrize("elections", ["demo", [], ()])
def test_a_service_has_to_name_its_elections(elections: Any) -> None:
    """A single string would be taken for the elections of its letters."""
    with pytest.raises(ConfigError, match="as a list"):
        FencingMiddleware(Service().asgi(), elections, store=MemoryHighWater())
