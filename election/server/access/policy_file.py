"""The policy as a TOML file, checked when it is read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from election.errors import ConfigError
from election.reloaded import read_text
from election.server.access.caller import ANONYMOUS
from election.server.access.identity import KINDS
from election.server.access.pattern import Pattern
from election.server.access.policy import ALL, Policy, Rule
from election.server.access.roles import Role

T = TypeVar("T")

_NAMES = re.compile(r"[A-Za-z0-9._*-]+")
_ROLES = {str(role): role for role in Role}
_FIELDS = ("role", "identities", "agent", "elections", "namespaces")


def read_policy(file: Path) -> Policy:
    """Reads a file of `[[allow]]` entries; the README says what they mean.

    Raises:
        ConfigError: with the file, the entry and the field, for what cannot be used, unknown names included; and for a
            file that allows nothing, since it may be half written.
    """
    try:
        document = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    if unknown := set(document) - {"allow"}:
        raise ConfigError(f"{file}: {min(unknown)!r} is not known: all that a policy has is [[allow]] entries")
    entries = document.get("allow", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file}: `allow` is not a list of tables: write [[allow]] before each entry")
    if not entries:
        raise ConfigError(f"{file} allows nothing to anybody: write an [[allow]] entry")
    rules = []
    for number, entry in enumerate(entries, start=1):
        try:
            rules.append(_rule(entry))
        except ConfigError as error:
            raise ConfigError(f"{file} [[allow]] {number}: {error}") from None
    return Policy(tuple(rules))


def _rule(entry: Mapping[str, Any]) -> Rule:
    if unknown := set(entry) - set(_FIELDS):
        raise ConfigError(f"{min(unknown)} is not known: use {', '.join(_FIELDS)}")
    role = _ROLES.get(entry["role"]) if isinstance(entry.get("role"), str) else None
    if role is None:
        raise ConfigError(f"role has to be one of {', '.join(_ROLES)}")
    if "identities" not in entry:
        raise ConfigError("identities are missing: say who has the role")
    identities = _patterns(entry, "identities", _check_identity)
    return Rule(
        role,
        identities,
        _agent(entry, role, identities),
        _patterns(entry, "elections", _check_name),
        _patterns(entry, "namespaces", _check_name),
    )


def _patterns(entry: Mapping[str, Any], field: str, check: Callable[[str, str], None]) -> tuple[Pattern, ...]:
    if field not in entry:
        return ALL
    texts = entry[field]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f'{field} has to be a list of texts with one or more in it, as in ["a", "b-*"]')
    for text in texts:
        check(field, text)
    return ALL if texts == ["*"] else tuple(map(Pattern, texts))


def _check_identity(field: str, text: str) -> None:
    if text not in (ANONYMOUS, "*") and not (text.startswith(KINDS) and text not in KINDS):
        raise ConfigError(
            f"{field}: {text!r} is none: write {', '.join(f'{kind}...' for kind in KINDS)}, or {ANONYMOUS}"
        )


def _check_name(field: str, text: str) -> None:
    if not _NAMES.fullmatch(text):
        raise ConfigError(f"{field}: {text!r} has more in it than letters, digits, '.', '_', '-' and '*'")


def _agent(entry: Mapping[str, Any], role: Role, identities: tuple[Pattern, ...]) -> str | None:
    """Which agent each identity is. An agent is one in any case; others are where the entry says so."""
    agent = entry.get("agent", "*" if role is Role.AGENT else None)
    if agent is None:
        return None
    if not isinstance(agent, str):
        raise ConfigError('agent has to be a text, as in "agent-*"')
    if role < Role.AGENT:
        raise ConfigError(f"agent goes with the role agent or a higher one, not with {role}")
    _check_name("agent", agent)
    if agent.count("*") > 1:
        raise ConfigError(f"agent: {agent!r} has more than one '*'")
    for pattern in identities:
        if "*" in agent and pattern.text.count("*") != 1:
            raise ConfigError(
                f"agent: {agent!r} takes the place of the '*' in an identity, and {pattern.text!r} has "
                f"{pattern.text.count('*') or 'none'}: name the agent, or write one '*' there"
            )
        if "*" not in agent and "*" in pattern.text:
            raise ConfigError(
                f"agent: all that fit {pattern.text!r} would be the one agent {agent!r}: write a '*' in both"
            )
    return agent
