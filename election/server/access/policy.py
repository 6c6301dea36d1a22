"""Who may do what: the rules of a policy file, and what they give to the identities of one caller."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from election.errors import ElectionError, NotYourAgent, PermissionDenied, Unauthenticated
from election.keys import is_name
from election.server.access.caller import ANONYMOUS
from election.server.access.pattern import Pattern
from election.server.access.roles import Role

ALL = (Pattern("*"),)


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[allow]]`: a role for identities, in namespaces and elections; and which agent they are.

    `agent` is the name with a `*` for what the identity's `*` stands for; None: they are no agent.
    """

    role: Role
    identities: tuple[Pattern, ...]
    agent: str | None = None
    elections: tuple[Pattern, ...] = ALL
    namespaces: tuple[Pattern, ...] = ALL

    def grants(self, identities: Iterable[str]) -> Iterable[Grant]:
        """What the rule gives to each of the identities that it is for."""
        for identity in identities:
            for pattern in self.identities:
                if identity == ANONYMOUS and pattern.text != ANONYMOUS:
                    continue  # who has shown nothing is not meant by `*`
                part = pattern.stands_for(identity)
                if part is not None:
                    agent = self.agent.replace("*", part) if self.agent is not None else None
                    yield Grant(self.role, self.elections, agent if agent and is_name(agent.encode()) else None)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one rule gives to one caller: a role for elections, and the only agent that it may be."""

    role: Role
    elections: tuple[Pattern, ...] = ALL
    agent: str | None = None

    def is_for(self, election: str) -> bool:
        """Whether it counts for this election."""
        return self.elections == ALL or any(pattern.fits(election) for pattern in self.elections)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules; what none of them allows is not allowed."""

    rules: tuple[Rule, ...]

    @property
    def tells_apart(self) -> bool:
        """Whether it says anything of callers who have shown who they are."""
        return any(pattern.text != ANONYMOUS for rule in self.rules for pattern in rule.identities)

    def granted(self, identities: tuple[str, ...], namespace: str) -> Granted:
        """What a caller with all of these identities may do in a namespace."""
        rules = (rule for rule in self.rules if any(pattern.fits(namespace) for pattern in rule.namespaces))
        grants = tuple(dict.fromkeys(grant for rule in rules for grant in rule.grants(identities)))
        return Granted(identities, namespace, grants)


@dataclass(frozen=True, slots=True)
class Granted:
    """What the policy gives to one caller in one namespace. Any one of the grants is enough."""

    identities: tuple[str, ...]
    namespace: str
    grants: tuple[Grant, ...]

    def why_not(self, role: Role, *, election: str | None = None, agent: str | None = None) -> ElectionError | None:
        """The error that says what is missing for a role; None where nothing is.

        A grant for some elections alone is one for reading all agents of the namespace, and for being one of them; but
        an admin of some elections is not one of the agents.
        """
        for grant in self.grants:
            if (
                grant.role >= role
                and (agent is None or grant.agent == agent)
                and (grant.is_for(election) if election is not None else role < Role.ADMIN or grant.elections == ALL)
            ):
                return None
        return self._error(role, election, agent)

    def _error(self, role: Role, election: str | None, agent: str | None) -> ElectionError:
        if self.identities == (ANONYMOUS,):
            return Unauthenticated(
                f"this needs the role {role}, and the caller has shown no identity: "
                "use a client certificate or a bearer token that the server takes"
            )
        who = ", ".join(self.identities)
        enough = [grant for grant in self.grants if grant.role >= role]
        where = f"in the namespace {self.namespace!r}"
        if not enough:
            has = f"no more than {max(grant.role for grant in self.grants)}" if self.grants else "none"
            text = f"this needs the role {role}, and the policy gives {who} {has} {where}"
            return PermissionDenied(text)
        if agent is not None and all(grant.agent != agent for grant in enough):
            own = sorted({grant.agent for grant in enough if grant.agent})
            text = (
                f"{who} may not be the agent {agent!r}, but {' or '.join(map(repr, own)) or 'no agent at all'} {where}"
            )
            return NotYourAgent(text)
        what = f"the election {election!r}" if election is not None else "what belongs to no election"
        text = f"the policy gives {who} the role {role} {where}, but not for {what}"
        return PermissionDenied(text)


READ_ONLY = Policy((Rule(Role.READER, ALL),))
"""Without a policy file, where callers show who they are: each of them may read, and no more."""

PUBLIC = Policy((Rule(Role.READER, (Pattern(ANONYMOUS),)),))
"""Without a policy file and without a way to show who one is, over TLS: everybody may read, and no more."""
