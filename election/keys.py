"""Builds and parses every key in etcd. No other module knows what a key looks like.

Names have no slash, so that no name is a prefix folder of another: etcd's election `a` also counts the keys of
`a/b` (etcd: client/v3/concurrency/election.go, `NewElection` appends one slash to the name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from election.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY_NAME = re.compile(_NAME.pattern.encode())
COLLECTOR_ELECTION = "_collector"
"""The election of the collectors; users cannot take the name, since theirs start with a letter or digit."""

REGISTRATION = "registration"
"""The state key that an agent writes when it registers; the agent's user cannot write it."""


def check_name(kind: str, name: str) -> str:
    """Returns `name` if it can be the name of a `kind`.

    Raises:
        ConfigError: with the kind, the name and the rule.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else name[:37] + "..."
        raise ConfigError(
            f"{kind} {shown!r} is not a valid name: use 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


def is_name(name: bytes) -> bool:
    """Whether the last part of a key is a name of ours."""
    return _KEY_NAME.fullmatch(name) is not None


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix (etcd's `clientv3.GetPrefixRangeEnd`).

    Every prefix here ends with a slash, so the last byte can always be raised by one.
    """
    return prefix[:-1] + bytes([prefix[-1] + 1])


def ended_value(candidate: bytes) -> bytes:
    """What `Keyspace.ended` holds for the term of a candidate with this key: its lease in hex."""
    return candidate.rpartition(b"/")[2]


def namespace_root(key: bytes) -> bytes | None:
    """The prefix of the namespace that a key is in; None for a key that is in none."""
    parts = key.split(b"/", 3)
    return b"/election/" + parts[2] + b"/" if len(parts) == 4 and parts[:2] == [b"", b"election"] else None


@dataclass(frozen=True, slots=True)
class CandidateKey:
    """The key of a candidate. `lease` is None when a stranger's key does not end in a lease."""

    election: str
    lease: int | None


@dataclass(frozen=True, slots=True)
class AliveKey:
    """An agent's liveness key."""

    agent: str


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What an agent's secret is compared with, where it registered through the API."""

    agent: str


@dataclass(frozen=True, slots=True)
class StateKey:
    """One of the keys that an agent stores."""

    agent: str
    key: str


@dataclass(frozen=True, slots=True)
class DrainingKey:
    """The mark of an agent that is to take nothing new."""

    agent: str


@dataclass(frozen=True, slots=True, order=True)
class TombstoneKey:
    """What is left of one incarnation of a reaped agent; `part` counts from 0 where it took several transactions."""

    agent: str
    incarnation: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class BreakerKey:
    """The state of the collectors' breaker."""


@dataclass(frozen=True, slots=True)
class ReapRequestKey:
    """An operator's request to reap an agent now."""

    agent: str


Parsed = CandidateKey | AliveKey | SessionKey | StateKey | DrainingKey | TombstoneKey | BreakerKey | ReapRequestKey


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The keys of one namespace.

    Raises:
        ConfigError: when the namespace is not a valid name; and so does every method for the names given to it.
    """

    namespace: str
    root: bytes = field(init=False, repr=False, compare=False)
    """The prefix of everything in this namespace."""

    def __post_init__(self) -> None:
        check_name("namespace", self.namespace)
        object.__setattr__(self, "root", f"/election/{self.namespace}/".encode())

    @property
    def campaigns(self) -> bytes:
        """The prefix of all candidates of all elections."""
        return self.root + b"campaigns/"

    def campaign_name(self, election: str) -> bytes:
        """The name to give to etcd's Election API; it appends a slash and the lease in hex."""
        if election != COLLECTOR_ELECTION:
            check_name("election", election)
        return self.campaigns + election.encode()

    def campaign(self, election: str) -> bytes:
        """The prefix of all candidates of one election."""
        return self.campaign_name(election) + b"/"

    def candidate(self, election: str, lease: int) -> bytes:
        """The key that etcd's Election API makes for a candidate with this lease."""
        return self.campaign(election) + f"{lease:x}".encode()

    @property
    def epoch(self) -> bytes:
        """The key of the namespace's epoch; absent until somebody raises it, or reports a history set back."""
        return self.root + b"epoch"

    def highest(self, election: str) -> bytes:
        """The key of the election's last token, which stays when nobody stands."""
        return self._of_election(b"highest/", election)

    def ended(self, election: str) -> bytes:
        """The key that says of which term the work is known to be over, as `ended_value` has it; it stays as well."""
        return self._of_election(b"ended/", election)

    def _of_election(self, folder: bytes, election: str) -> bytes:
        return self.root + folder + self.campaign_name(election)[len(self.campaigns) :]

    @property
    def agents(self) -> bytes:
        """The prefix of all that there is of agents."""
        return self.root + b"agents/"

    @property
    def alive_prefix(self) -> bytes:
        """The prefix of all liveness keys."""
        return self.agents + b"alive/"

    @property
    def state_prefix(self) -> bytes:
        """The prefix of the state of all agents."""
        return self.agents + b"state/"

    @property
    def draining_prefix(self) -> bytes:
        """The prefix of the marks of all agents that drain."""
        return self.agents + b"draining/"

    @property
    def reaped_prefix(self) -> bytes:
        """The prefix of all tombstones."""
        return self.agents + b"reaped/"

    def alive(self, agent: str) -> bytes:
        """An agent's liveness key."""
        return self.alive_prefix + check_name("agent", agent).encode()

    def session(self, agent: str) -> bytes:
        """The hash of the secret with which an agent registered through the API, on the lease of its liveness key."""
        return self.agents + b"session/" + check_name("agent", agent).encode()

    def states(self, agent: str) -> bytes:
        """The prefix of everything that one agent stores."""
        return self.state_prefix + check_name("agent", agent).encode() + b"/"

    def state(self, agent: str, key: str) -> bytes:
        """One of the keys that an agent stores."""
        return self.states(agent) + check_name("state key", key).encode()

    def draining(self, agent: str) -> bytes:
        """The mark that an agent drains; it outlives the agent's lease, and goes when the agent is reaped."""
        return self.draining_prefix + check_name("agent", agent).encode()

    def tombstone(self, agent: str, incarnation: int, part: int = 0) -> bytes:
        """The tombstone of one incarnation, or of a later part of it."""
        return self.tombstones(agent) + (f"{incarnation}.{part}" if part else f"{incarnation}").encode()

    def tombstones(self, agent: str) -> bytes:
        """The prefix of all tombstones of one agent."""
        return self.reaped_prefix + check_name("agent", agent).encode() + b"/"

    @property
    def collector(self) -> bytes:
        """The prefix of what operators and collectors tell each other."""
        return self.root + b"collector/"

    @property
    def breaker(self) -> bytes:
        """The state of the collectors' breaker."""
        return self.collector + b"breaker"

    def reap_request(self, agent: str) -> bytes:
        """An operator's request to reap an agent now."""
        return self.collector + b"reap/" + check_name("agent", agent).encode()

    def parse(self, key: bytes) -> Parsed | None:
        """What a key is, or None when it is not one that this project makes.

        Anyone can write under an etcd prefix, so nothing here raises for what it finds.
        """
        if not key.startswith(self.root):
            return None
        try:
            parts = key[len(self.root) :].decode("ascii").split("/")
        except UnicodeDecodeError:
            return None
        match parts:
            case ["campaigns", election, lease] if election == COLLECTOR_ELECTION or _NAME.fullmatch(election):
                return CandidateKey(election, _number(lease, 16))
            case ["agents", "alive", agent] if _NAME.fullmatch(agent):
                return AliveKey(agent)
            case ["agents", "session", agent] if _NAME.fullmatch(agent):
                return SessionKey(agent)
            case ["agents", "state", agent, name] if _NAME.fullmatch(agent) and _NAME.fullmatch(name):
                return StateKey(agent, name)
            case ["agents", "draining", agent] if _NAME.fullmatch(agent):
                return DrainingKey(agent)
            case ["agents", "reaped", agent, name] if _NAME.fullmatch(agent):
                return _tombstone(agent, name)
            case ["collector", "breaker"]:
                return BreakerKey()
            case ["collector", "reap", agent] if _NAME.fullmatch(agent):
                return ReapRequestKey(agent)
        return None


def _tombstone(agent: str, name: str) -> TombstoneKey | None:
    number, dot, rest = name.partition(".")
    incarnation, part = _number(number, 10), _number(rest, 10) if dot else 0
    return None if incarnation is None or part is None or (dot and not part) else TombstoneKey(agent, incarnation, part)


def _number(text: str, base: int) -> int | None:
    """`text` as a number, but only in the one spelling that this project writes."""
    try:
        number = int(text, base)
    except ValueError:
        return None
    return number if text == (f"{number:x}" if base == 16 else f"{number}") else None
