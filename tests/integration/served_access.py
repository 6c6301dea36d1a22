"""A server with certificates, a policy and tokens on a real socket, and callers of every kind.

Its servicers do nothing but note that they were reached: what is tested is who gets that far.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from election.api.statuses import reason_in
from election.bidi import TrueStatus
from election.config import TlsConfig
from election.errors import ViewStale
from election.pb.election.v1 import election_pb2 as pb
from election.reader import Source
from election.server import serving
from election.server.access.caller import current_caller
from election.server.access.gate import AccessConfig
from election.server.access.roles import Role
from election.server.serving import GrpcServer

METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC of ours, as it is described."""

WAIT_S = 10.0


@dataclass
class Silent:
    """A reader that is asked nothing but how fresh it is."""

    namespace: str = "fleet"
    is_stale: bool = False

    def source(self) -> Source:
        if self.is_stale:
            raise ViewStale("etcd has not been heard")
        return Source(1, 2, 0.0)


@dataclass
class Handlers:
    """Handlers for all methods of both services: they note that they were reached, and what they were asked."""

    begun: list[str] = field(default_factory=list)
    """Those that were called, also where the caller's first message was then refused."""
    reached: list[str] = field(default_factory=list)
    hang: bool = False
    """Whether calls never end."""
    reader: Silent = field(default_factory=Silent)

    def __getattr__(self, name: str) -> Any:
        path, method = next((path, each) for path, each in METHODS.items() if each.name == name)
        return partial(self._many if method.server_streaming else self._one, path, method)

    async def _one(self, path: str, method: MethodDescriptor, request: Message, context: Any) -> Message:
        self.begun.append(path)
        self.reached.append(path)
        if self.hang:
            await asyncio.Event().wait()
        answer: Message = GetMessageClass(method.output_type)()
        return answer

    async def _many(self, path: str, method: MethodDescriptor, request: Any, context: Any) -> AsyncIterator[Message]:
        self.begun.append(path)
        if method.client_streaming:  # the first message says what it is about
            first = await anext(request)
            if method.name == "Session":
                current_caller.get().require(Role.AGENT, agent=first.open.agent)
            else:
                current_caller.get().require(Role.CANDIDATE, election=first.stand.election)
        self.reached.append(path)
        hangs = self.hang
        yield GetMessageClass(method.output_type)()
        if hangs:
            await asyncio.Event().wait()


def request_for(method: MethodDescriptor, *, election: str = "scheduler", agent: str = "agent-7") -> Any:
    """A request that names an election or an agent where it can."""
    if method.name == "Session":
        return pb.SessionRequest(open=pb.SessionRequest.Open(agent=agent))
    if method.name == "Campaign":
        return pb.CampaignRequest(stand=pb.CampaignRequest.Stand(election=election, id="x"))
    fields = method.input_type.fields_by_name
    named = {name: value for name, value in (("election", election), ("id", agent)) if name in fields}
    return GetMessageClass(method.input_type)(**named)


@dataclass(frozen=True)
class Outcome:
    """How a call ended, and why as a program is told; `text` is for people."""

    code: StatusCode
    reason: str = ""
    text: str = ""


@dataclass
class Caller:
    """A channel, and what goes along with each call on it."""

    channel: grpc.aio.Channel
    token: str | None = None

    async def call(self, path: str, request: Any = None, *, timeout_s: float | None = WAIT_S) -> Outcome:
        """Calls a method of ours and reads one message; OK when there is one."""
        return await first_of(self.start(path, request, timeout_s=timeout_s), streams=METHODS[path].server_streaming)

    def start(self, path: str, request: Any = None, *, timeout_s: float | None = WAIT_S) -> Any:
        """The call itself."""
        method = METHODS[path]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        made = getattr(self.channel, kind)(
            path,
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        message = request_for(method) if request is None else request
        return made(iter([message]) if method.client_streaming else message, timeout=timeout_s, metadata=self.metadata)

    @property
    def metadata(self) -> Any:
        return None if self.token is None else (("authorization", f"Bearer {self.token}"),)


def outcome(error: grpc.aio.AioRpcError) -> Outcome:
    """What a status says."""
    return Outcome(error.code(), reason_in(error.trailing_metadata()), error.details() or "")


async def first_of(call: Any, *, streams: bool = True) -> Outcome:
    """How a call begins: OK when there is a message."""
    status = TrueStatus(call)
    try:
        async with asyncio.timeout(WAIT_S):
            message = await (call.read() if streams else call)
            return Outcome(await call.code() if message is grpc.aio.EOF else StatusCode.OK)
    except grpc.aio.AioRpcError as error:
        return outcome(await status.error() or error)
    finally:
        call.cancel()


@asynccontextmanager
async def calling(port: int, tls: TlsConfig | None, token: str | None = None) -> AsyncIterator[Caller]:
    """A caller with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    if tls is None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    else:
        cacert, cert, key = (file.read_bytes() if file else None for file in (tls.cacert, tls.cert, tls.key))
        credentials = grpc.ssl_channel_credentials(cacert, key, cert)
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
    async with channel:
        yield Caller(channel, token)


@asynccontextmanager
async def serving_access(
    monkeypatch: pytest.MonkeyPatch,
    tls: TlsConfig | None,
    access: AccessConfig | None = None,
    *,
    client_ca: Path | None = None,
) -> AsyncIterator[tuple[int, Handlers]]:
    """A server on 127.0.0.1: its port, and its handlers."""
    handlers = Handlers()
    for name in ("ElectionsServicer", "AgentsServicer"):
        monkeypatch.setattr(serving, name, lambda *_, **__: handlers)
    reader: Any = handlers.reader
    cert, key = (tls.cert, tls.key) if tls else (None, None)
    async with GrpcServer(reader, port=0, cert=cert, key=key, client_ca=client_ca, access=access) as server:
        yield server.port, handlers


def without_certificate(tls: TlsConfig) -> TlsConfig:
    """One who trusts the server, and shows nothing."""
    return TlsConfig(tls.cacert)


def need_openssl() -> None:
    """Skips a test where nothing can make certificates."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates of this test")


def sign(folder: Path, authority: str, name: str, *, names: str = "IP:127.0.0.1", days: int = 2) -> TlsConfig:
    """A certificate with other names than Authority.sign gives it, by an authority that Authority.make has made."""
    (folder / f"{name}.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
    request = f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr"
    signed = f"x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days {days}"
    for command in (
        [*request.split(), "-subj", f"/CN={name}"],
        f"{signed} -extfile {name}.ext -out {name}.pem".split(),
    ):
        subprocess.run(["openssl", *command], cwd=folder, capture_output=True, check=True)
    return TlsConfig(folder / f"{authority}.pem", folder / f"{name}.pem", folder / f"{name}.key")
