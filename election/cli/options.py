"""The options that all commands share, and what they are built into."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from election.client.care import Care, EtcdCare
from election.client.client import Client, dial
from election.config import DEFAULT_ENDPOINT, DEFAULT_NAMESPACE, LONGEST_TTL_S, TlsConfig
from election.errors import ConfigError
from election.keys import Keyspace, check_name
from election.reader import Reader
from election.store import Store, connect

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""An option that names a file to read."""


@dataclass(frozen=True, slots=True)
class Api:
    """The servers of the gRPC API to ask, and with which bearer token; `insecure` lets that go over plain text."""

    addresses: str
    token_file: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect to, and how to print."""

    endpoints: str
    asked_namespace: str | None
    tls: TlsConfig | None
    user: str | None
    output: str

    @property
    def namespace(self) -> str:
        """What belongs together."""
        return DEFAULT_NAMESPACE if self.asked_namespace is None else self.asked_namespace

    @property
    def json(self) -> bool:
        """Whether to print JSON rather than tables."""
        return self.output == "json"

    def store(self, state_dir: Path | None = None) -> Store:
        """A store on the configured etcd."""
        return connect(self.endpoints, namespace=self.namespace, tls=self.tls, user=self.user, state_dir=state_dir)

    @asynccontextmanager
    async def client(self, server: Api) -> AsyncGenerator[Client]:
        """A client of the gRPC API; raises ConfigError for servers of another namespace than the one asked for."""
        async with dial(server.addresses, tls=self.tls, token=server.token_file, insecure=server.insecure) as client:
            if self.asked_namespace is not None and (served := await client.namespace()) != self.asked_namespace:
                raise ConfigError(
                    f"the server at {client.address} serves the namespace {served!r}, not {self.asked_namespace!r}: "
                    "ask one that does, or leave --namespace out"
                )
            yield client

    @asynccontextmanager
    async def reader(self, server: Api | None, scope: Callable[[Keyspace], bytes]) -> AsyncGenerator[Reader]:
        """What answers questions: the gRPC API when a server is named, else etcd, read no wider than `scope`."""
        if server is not None:
            async with self.client(server) as client:
                yield client
        else:
            async with self.store() as store, store.view(scope(store.keyspace)) as view:
                yield view

    @asynccontextmanager
    async def care(self, server: Api | None) -> AsyncGenerator[Care]:
        """What does something about agents: the gRPC API when a server is named, else etcd, in the operator's name."""
        if server is not None:
            async with self.client(server) as client:
                yield client.care
        else:
            async with self.store() as store:
                yield EtcdCare(store.client, store.keyspace, by=operator())


def setting(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that can also be given as ELECTION_<OPTION>."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    attributes.setdefault("envvar", "ELECTION_" + long[2:].upper().replace("-", "_"))
    return click.option(*names, **attributes)


state_dir_option = setting(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="keeps the highest token seen, to notice an etcd that was set back",
)
"""For those who stand."""

_API_OPTIONS = (
    setting("--server", metavar="HOST:PORT,...", help="ask `election serve`, with the TLS files for it"),
    setting("--token-file", type=FILE, help="holds the bearer token for it"),
    setting("--insecure", is_flag=True, help="send that token in plain text, also to other machines"),
)


def server_option(function: F) -> F:
    """For those who ask; the command gets what was given as `server`, an Api or None."""

    def run(*arguments: Any, server: str | None, token_file: Path | None, insecure: bool, **options: Any) -> Any:
        return function(*arguments, server=Api(server, token_file, insecure) if server else None, **options)

    run.__doc__ = function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_API_OPTIONS):
        run = option(run)
    return run  # type: ignore[return-value]


labels_option = setting(
    "--label",
    "labels",
    multiple=True,
    callback=lambda *given: parse_labels(*given),
    metavar="NAME=VALUE",
    help="shown to readers; repeatable",
)
"""For those whom others see."""

ttl_seconds = click.IntRange(1, LONGEST_TTL_S)
"""The TTL of a lease."""


_SHARED: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    # name: (declarations, attributes, variables)
    "endpoints": (
        ("--endpoints",),
        {"metavar": "HOST:PORT,...", "help": f"etcd's members [{DEFAULT_ENDPOINT}]"},
        ("ELECTION_ENDPOINTS", "ETCDCTL_ENDPOINTS"),
    ),
    "namespace": (
        ("--namespace",),
        {"metavar": "NAME", "help": f"what belongs together [{DEFAULT_NAMESPACE}]"},
        ("ELECTION_NAMESPACE",),
    ),
    "cacert": (("--cacert",), {"type": FILE, "help": "CA of the server"}, ("ELECTION_CACERT", "ETCDCTL_CACERT")),
    "cert": (("--cert",), {"type": FILE, "help": "client certificate"}, ("ELECTION_CERT", "ETCDCTL_CERT")),
    "key": (("--key",), {"type": FILE, "help": "its private key"}, ("ELECTION_KEY", "ETCDCTL_KEY")),
    "user": (("--user",), {"metavar": "NAME:PASSWORD", "help": "etcd user"}, ("ELECTION_USER", "ETCDCTL_USER")),
    "output": (
        ("-o", "--output"),
        {"type": click.Choice(["table", "json"]), "help": "[table]"},
        ("ELECTION_OUTPUT",),
    ),
}
"""The options that all commands share. The variables count only where no option is given, before or after."""


def group_options(*, env: bool = False) -> Callable[[F], F]:
    """Adds the shared options to a group, for those who write them before the command's name."""
    return _shared_options(_SHARED, env=env)


def _shared_options(names: Iterable[str], *, env: bool = False) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for name in reversed(tuple(names)):
            declarations, attributes, variables = _SHARED[name]
            function = click.option(*declarations, envvar=variables if env else None, **attributes)(function)
        return function

    return decorate


def remember_group_options(context: click.Context, options: dict[str, Any]) -> None:
    """Keeps what was given before the command's name, or in the environment; the nearest to the command wins."""
    outer: dict[str, Any] = context.obj or {}
    context.obj = {**outer, **{name: value for name, value in options.items() if value is not None}}


def settings_of(context: click.Context, options: dict[str, Any]) -> Settings:
    """Builds the settings from the options after the command's name and those before it.

    Raises:
        ConfigError: for options that do not go together.
    """
    remember_group_options(context, options)
    given: dict[str, Any] = context.obj
    files = {name: given.get(name) for name in ("cacert", "cert", "key")}
    return Settings(
        endpoints=given.get("endpoints", DEFAULT_ENDPOINT),
        asked_namespace=given.get("namespace"),
        tls=TlsConfig(**files) if any(files.values()) else None,
        user=given.get("user"),
        output=given.get("output", "table"),
    )


def command(
    name: str, *, shared: Iterable[str] = tuple(_SHARED)
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command that takes shared options, all where none are named, and gets them as `settings` first."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @click.command(name, help=function.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
        @_shared_options(shared)
        @click.pass_context
        def run(context: click.Context, /, **options: Any) -> int | None:
            settings = settings_of(context, {name: options.pop(name) for name in shared})
            return function(settings, **options)

        # click keeps the options of a decorated function in this list, the last one first.
        run.params += list(reversed(getattr(function, "__click_params__", [])))
        return run

    return decorate


def operator() -> str:
    """Who runs a command, for those who look later at what was done: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def more_than_zero(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Checks a number, mostly of seconds: `nan` is none, and what is too large cannot be added to a time."""
    if value is not None and not 0 < value <= _LARGEST:
        raise click.BadParameter(f"{value:g} is not more than 0 and at most {_LARGEST:g}.")
    return value


_LARGEST = 1e9


def parse_labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--label k=v`, any number of times."""
    labels = {}
    for text in values:
        name, separator, label = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        labels[name] = label
    return labels


def parse_label_filter(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--label k` and `--label k=v`, any number of times; an empty value stands for any."""
    labels = {}
    for text in values:
        name, _separator, value = text.partition("=")
        labels[check_name("label", name)] = value
    return labels
