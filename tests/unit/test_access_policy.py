"""The policy: what its file may say, and what it gives to whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from election.errors import ConfigError, ElectionError, NotYourAgent, PermissionDenied, Unauthenticated
from election.server.access.caller import ANONYMOUS, Caller
from election.server.access.pattern import Pattern
from election.server.access.policy import PUBLIC, READ_ONLY, Policy
from election.server.access.policy_file import read_policy
from election.server.access.roles import Role

EXAMPLE = """
[[allow]]
role = "reader"
identities = ["cert:*", "token:dashboard"]

[[allow]]
role = "agent"
identities = ["spiffe://example.org/ns/fleet/sa/agent-*"]
agent = "agent-*"
namespaces = ["fleet"]

[[allow]]
role = "candidate"
identities = ["jwt:system:serviceaccount:fleet:orchestrator"]
elections = ["scheduler", "batch-*"]

[[allow]]
role = "admin"
identities = ["cert:operator"]
"""
AGENT_7 = "spiffe://example.org/ns/fleet/sa/agent-7"
ORCHESTRATOR = "jwt:system:serviceaccount:fleet:orchestrator"


def policy(tmp_path: Path, text: str) -> Policy:
    """What a file says."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    return read_policy(file)


@pytest.fixture
def example(tmp_path: Path) -> Policy:
    """That of the design."""
    return policy(tmp_path, EXAMPLE)


def may(given: Policy, identity: str | tuple[str, ...], role: Role, namespace: str = "fleet", **named: str) -> bool:
    """Whether the policy lets an identity do it."""
    identities = (identity,) if isinstance(identity, str) else identity
    return Caller(identities, "", given.granted(identities, namespace)).may(role, **named)


def refusal(given: Policy, identity: str, role: Role, namespace: str = "fleet", **named: str) -> ElectionError:
    """The error for who may not."""
    error = given.granted((identity,), namespace).why_not(role, **named)
    assert error is not None
    return error


# --- what it gives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "role"),
    [
        ("token:dashboard", Role.READER),
        ("cert:anybody", Role.READER),
        (AGENT_7, Role.AGENT),
        (ORCHESTRATOR, Role.CANDIDATE),
        ("cert:operator", Role.ADMIN),
    ],
)
def test_a_role_has_those_below_it(example: Policy, identity: str, role: Role) -> None:
    """And none above it."""
    assert [each for each in Role if may(example, identity, each, election="scheduler")] == list(range(1, role + 1))


@pytest.mark.parametrize("identity", ["token:dashboards", "token:dash", "dns:dashboard", "jwt:x", "cert", "x:cert:a"])
def test_who_fits_no_pattern_may_nothing(example: Policy, identity: str) -> None:
    """A pattern stands for the whole identity, its kind included."""
    assert not any(may(example, identity, role) for role in Role)


def test_any_of_several_identities_is_enough(example: Policy) -> None:
    """A certificate and a token besides."""
    assert may(example, ("token:dashboard", "cert:operator"), Role.ADMIN)
    assert may(example, ("cert:operator", "token:dashboard"), Role.ADMIN)
    assert not may(example, ("cert:x", "token:dashboard"), Role.AGENT)


def test_an_agent_is_itself_alone(example: Policy) -> None:
    """Its name is what its identity says, in its namespaces only."""
    assert may(example, AGENT_7, Role.AGENT, agent="agent-7")
    assert not may(example, AGENT_7, Role.AGENT, agent="agent-8")
    assert not may(example, AGENT_7, Role.AGENT, agent="agent-77")
    assert not may(example, AGENT_7, Role.AGENT, "other", agent="agent-7")
    assert not may(example, AGENT_7, Role.READER, "other")


@pytest.mark.parametrize("identity", [ORCHESTRATOR, "cert:operator"])
def test_a_higher_role_makes_nobody_an_agent(example: Policy, identity: str) -> None:
    """A candidate or an admin without a name of its own holds no session."""
    assert not may(example, identity, Role.AGENT, agent="agent-7")
    assert not may(example, identity, Role.AGENT, agent="operator")
    assert isinstance(refusal(example, identity, Role.AGENT, agent="agent-7"), NotYourAgent)


def test_an_identity_that_makes_no_name_is_no_agent(tmp_path: Path) -> None:
    """What its `*` stands for has to be one; nothing in it can reach out of the agent's keys."""
    given = policy(tmp_path, '[[allow]]\nrole = "agent"\nidentities = ["cert:*"]\n')
    assert may(given, "cert:w7", Role.AGENT, agent="w7")
    for name in ("", "a/b", "../x", ".", "a b", "x" * 129):
        assert not may(given, f"cert:{name}", Role.AGENT, agent=name)


def test_the_name_of_an_agent_can_be_another_than_its_identity(tmp_path: Path) -> None:
    """`*` takes along what stands there; without one, an identity has the one name."""
    given = policy(
        tmp_path,
        '[[allow]]\nrole = "candidate"\nidentities = ["dns:*.fleet.example.org"]\nagent = "w-*"\n'
        '[[allow]]\nrole = "agent"\nidentities = ["token:gateway"]\nagent = "edge"\n',
    )
    assert may(given, "dns:7.fleet.example.org", Role.AGENT, agent="w-7")
    assert not may(given, "dns:7.fleet.example.org", Role.AGENT, agent="7")
    assert not may(given, "dns:7.fleetxexample.org", Role.READER)
    assert may(given, "token:gateway", Role.AGENT, agent="edge")


def test_elections_bound_what_a_rule_gives(example: Policy) -> None:
    """Also reading; agents are read by namespace alone."""
    for election in ("scheduler", "batch-", "batch-7"):
        assert may(example, ORCHESTRATOR, Role.CANDIDATE, election=election)
        assert may(example, ORCHESTRATOR, Role.READER, election=election)
    for election in ("scheduler2", "batch", "other"):
        assert not may(example, ORCHESTRATOR, Role.READER, election=election)
    assert may(example, ORCHESTRATOR, Role.READER)
    assert may(example, ORCHESTRATOR, Role.CANDIDATE)


def test_an_admin_of_some_elections_does_not_reap(tmp_path: Path) -> None:
    """Agents belong to no election."""
    given = policy(tmp_path, '[[allow]]\nrole = "admin"\nidentities = ["cert:*"]\nelections = ["a"]\n')
    assert may(given, "cert:x", Role.ADMIN, election="a")
    assert not may(given, "cert:x", Role.ADMIN, election="b")
    assert not may(given, "cert:x", Role.ADMIN)


def test_who_is_anonymous_is_not_meant_by_a_star(tmp_path: Path) -> None:
    """Only by its name."""
    given = policy(tmp_path, '[[allow]]\nrole = "admin"\nidentities = ["*"]\n')
    assert may(given, "dns:x", Role.ADMIN)
    assert not may(given, ANONYMOUS, Role.READER)
    named = policy(tmp_path, '[[allow]]\nrole = "reader"\nidentities = ["anonymous"]\n')
    assert may(named, ANONYMOUS, Role.READER)
    assert not may(named, ANONYMOUS, Role.AGENT)


def test_what_counts_without_a_file() -> None:
    """Reading at most: for those who show who they are, or for everybody where nobody can."""
    assert may(READ_ONLY, "cert:x", Role.READER, election="a")
    assert not may(READ_ONLY, "cert:x", Role.AGENT)
    assert not may(READ_ONLY, ANONYMOUS, Role.READER)
    assert may(PUBLIC, ANONYMOUS, Role.READER, election="a")
    assert not may(PUBLIC, ANONYMOUS, Role.AGENT)


def test_an_error_says_what_is_missing(example: Policy) -> None:
    """For who has to change the policy, or to call as somebody else."""
    assert str(refusal(example, "cert:x", Role.CANDIDATE)) == (
        "this needs the role candidate, and the policy gives cert:x no more than reader in the namespace 'fleet'"
    )
    assert "gives token:x none in the namespace 'fleet'" in str(refusal(example, "token:x", Role.READER))
    assert str(refusal(example, ORCHESTRATOR, Role.CANDIDATE, election="other")) == (
        f"the policy gives {ORCHESTRATOR} the role candidate in the namespace 'fleet', but not for the election 'other'"
    )
    assert str(refusal(example, AGENT_7, Role.AGENT, agent="agent-8")) == (
        f"{AGENT_7} may not be the agent 'agent-8', but 'agent-7' in the namespace 'fleet'"
    )
    assert type(refusal(example, "cert:x", Role.ADMIN)) is PermissionDenied
    assert type(refusal(example, ANONYMOUS, Role.READER)) is Unauthenticated


# --- what its file may say -----------------------------------------------------------------------------------------

ALLOW = '[[allow]]\nrole = "reader"\nidentities = ["cert:*"]\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ": allows nothing"),
        ("allow = []", ": allows nothing"),
        ("[allow]\nrole = 'reader'", ": `allow` is not a list of tables"),
        ("[[allow", ": "),
        ("[[deny]]\n", ": 'deny' is not known"),
        (ALLOW + "roles = 1", " [[allow]] 1: roles is not known: use role, identities"),
        (ALLOW + '[[allow]]\nidentities = ["cert:*"]', " [[allow]] 2: role has to be one of reader, agent, candidate"),
        ('[[allow]]\nrole = "root"\nidentities = ["cert:*"]', " [[allow]] 1: role has to be one of"),
        ("[[allow]]\nrole = 3\nidentities = ['cert:*']", " [[allow]] 1: role has to be one of"),
        ("[[allow]]\nrole = ['reader']\nidentities = ['cert:*']", " [[allow]] 1: role has to be one of"),
        ('[[allow]]\nrole = "reader"', " [[allow]] 1: identities are missing"),
        ('[[allow]]\nrole = "reader"\nidentities = []', " [[allow]] 1: identities has to be a list"),
        ('[[allow]]\nrole = "reader"\nidentities = "cert:a"', " [[allow]] 1: identities has to be a list"),
        ('[[allow]]\nrole = "reader"\nidentities = [1]', " [[allow]] 1: identities has to be a list"),
        ('[[allow]]\nrole = "reader"\nidentities = ["certs:a"]', " [[allow]] 1: identities: 'certs:a' is none"),
        ('[[allow]]\nrole = "reader"\nidentities = ["c*"]', " [[allow]] 1: identities: 'c*' is none"),
        ('[[allow]]\nrole = "reader"\nidentities = ["cert:"]', " [[allow]] 1: identities: 'cert:' is none"),
        (ALLOW + "elections = []", " [[allow]] 1: elections has to be a list"),
        (ALLOW + 'elections = ["elections/a"]', " [[allow]] 1: elections: 'elections/a' has more in it"),
        (ALLOW + 'namespaces = ["a b"]', " [[allow]] 1: namespaces: 'a b' has more in it"),
        (ALLOW + 'agent = "a"', " [[allow]] 1: agent goes with the role agent or a higher one"),
        ('[[allow]]\nrole = "agent"\nidentities = ["token:w7"]', " [[allow]] 1: agent: '*' takes the place of"),
        ('[[allow]]\nrole = "agent"\nidentities = ["cert:a-*-*"]', " [[allow]] 1: agent: '*' takes the place of"),
        ('[[allow]]\nrole = "agent"\nidentities = ["cert:*"]\nagent = "x"', "would be the one agent 'x'"),
        ('[[allow]]\nrole = "agent"\nidentities = ["cert:*"]\nagent = "*-*"', "has more than one '*'"),
        ('[[allow]]\nrole = "agent"\nidentities = ["cert:*"]\nagent = 7', "agent has to be a text"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, why: str) -> None:
    """The file, the entry and the field."""
    with pytest.raises(ConfigError) as raised:
        policy(tmp_path, text)
    assert str(raised.value).startswith(str(tmp_path / "policy.toml"))
    assert why.removeprefix(":").strip() in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pattern_is_nothing_but_stars_and_text() -> None:
    """No other letter has a meaning of its own."""
    assert Pattern("a.b").fits("a.b")
    assert not Pattern("a.b").fits("axb")
    assert Pattern("[a]|*").fits("[a]|x\ny")
    assert not Pattern("a").fits("a\n")
    assert Pattern("a*c").stands_for("abbc") == "bb"
    assert Pattern("abc").stands_for("abc") == ""
    assert Pattern("a*c").stands_for("ab") is None
