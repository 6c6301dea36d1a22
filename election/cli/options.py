"""The options that all commands share, and what they are built into."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from election.client import dial
from election.config import DEFAULT_ENDPOINT, DEFAULT_NAMESPACE, TlsConfig
from election.keys import Keyspace
from election.reader import Reader
from election.store import Store, connect

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""An option that names a file to read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect to, and how to print."""

    endpoints: str
    namespace: str
    tls: TlsConfig | None
    user: str | None
    output: str

    @property
    def json(self) -> bool:
        """Whether to print JSON rather than tables."""
        return self.output == "json"

    def store(self) -> Store:
        """A store on the configured etcd."""
        return connect(self.endpoints, namespace=self.namespace, tls=self.tls, user=self.user)

    @asynccontextmanager
    async def reader(self, server: str | None, scope: Callable[[Keyspace], bytes]) -> AsyncGenerator[Reader]:
        """What answers questions: the gRPC API when a server is named, else etcd, read no wider than `scope`."""
        if server is not None:
            async with dial(server, tls=self.tls) as client:
                yield client
        else:
            async with self.store() as store, store.view(scope(store.keyspace)) as view:
                yield view


def setting(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that can also be given as ELECTION_<OPTION>."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    attributes.setdefault("envvar", "ELECTION_" + long[2:].upper().replace("-", "_"))
    return click.option(*names, **attributes)


def shared_options(*, env: bool = False) -> Callable[[F], F]:
    """Adds the options that stand before or after the command's name; after it they win, and only then the env."""

    def variables(*names: str) -> dict[str, Any]:
        return {"envvar": list(names)} if env else {}

    options = (
        click.option(
            "--endpoints",
            metavar="HOST:PORT,...",
            help=f"etcd's members [{DEFAULT_ENDPOINT}]",
            **variables("ELECTION_ENDPOINTS", "ETCDCTL_ENDPOINTS"),
        ),
        click.option(
            "--namespace",
            metavar="NAME",
            help=f"what belongs together [{DEFAULT_NAMESPACE}]",
            **variables("ELECTION_NAMESPACE"),
        ),
        click.option("--cacert", type=FILE, help="CA of the server", **variables("ELECTION_CACERT", "ETCDCTL_CACERT")),
        click.option("--cert", type=FILE, help="client certificate", **variables("ELECTION_CERT", "ETCDCTL_CERT")),
        click.option("--key", type=FILE, help="its private key", **variables("ELECTION_KEY", "ETCDCTL_KEY")),
        click.option("--user", metavar="NAME:PASSWORD", help="etcd user", **variables("ELECTION_USER", "ETCDCTL_USER")),
        click.option(
            "-o", "--output", type=click.Choice(["table", "json"]), help="[table]", **variables("ELECTION_OUTPUT")
        ),
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def remember_group_options(context: click.Context, options: dict[str, Any]) -> None:
    """Keeps what was given before the command's name, or in the environment."""
    context.obj = options


def settings_of(context: click.Context, options: dict[str, Any]) -> Settings:
    """Builds the settings from the options after the command's name and those before it.

    Raises:
        ConfigError: for options that do not go together.
    """
    before: dict[str, Any] = context.obj or {}

    def value(name: str, default: Any = None) -> Any:
        given = options.get(name)
        if given is None:
            given = before.get(name)
        return default if given is None else given

    files = {name: value(name) for name in ("cacert", "cert", "key")}
    return Settings(
        endpoints=value("endpoints", DEFAULT_ENDPOINT),
        namespace=value("namespace", DEFAULT_NAMESPACE),
        tls=TlsConfig(**files) if any(files.values()) else None,
        user=value("user"),
        output=value("output", "table"),
    )


def command(name: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command that takes the shared options and gets them as `settings`, its first argument."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @click.command(name, help=function.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
        @shared_options()
        @click.pass_context
        def run(context: click.Context, /, **options: Any) -> int | None:
            shared = {name: options.pop(name) for name in _SHARED}
            return function(settings_of(context, shared), **options)

        # click keeps the options of a decorated function in this list, the last one first.
        run.params += list(reversed(getattr(function, "__click_params__", [])))
        return run

    return decorate


_SHARED = ("endpoints", "namespace", "cacert", "cert", "key", "user", "output")


def parse_labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--label k=v`, any number of times."""
    labels = {}
    for text in values:
        name, separator, label = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        labels[name] = label
    return labels
