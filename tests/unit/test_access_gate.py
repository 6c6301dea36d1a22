"""Who calls, by what a connection and its metadata say: certificates, tokens, and files that change meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from election.errors import BadToken, ConfigError, PermissionDenied, TokenExpired, TooManyRequests, Unauthenticated
from election.server.access.bearer import JwtConfig
from election.server.access.caller import Caller, current_caller
from election.server.access.gate import AccessConfig, Context, Gate
from election.server.access.limits import LimitsConfig
from election.server.access.roles import Role
from election.server.access.tokens import new_token
from tests.unit.handclock import HandClock
from tests.unit.signer import AUDIENCE, ISSUER, Signer, write_jwks

READER = '[[allow]]\nrole = "reader"\nidentities = ["{}"]\n'


@dataclass
class Call:
    """What gRPC tells of a call."""

    auth: Mapping[str, Iterable[bytes]] = field(default_factory=dict)
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    address: str = "ipv4:10.0.0.1:1000"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Of the connection."""
        return self.auth

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Of the call."""
        return self.metadata

    def peer(self) -> str:
        """Where from."""
        return self.address


def with_certificate(name: str, **more: list[bytes]) -> Call:
    """A call over mutual TLS."""
    return Call({"x509_common_name": [name.encode()], "x509_pem_cert": [f"PEM of {name}".encode()], **more})


def with_token(token: str, scheme: str = "Bearer") -> Call:
    """A call with a bearer token."""
    return Call(metadata=(("user-agent", "x"), ("authorization", f"{scheme} {token}")))


class Site:
    """The files of a server, its clock, and its gate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = HandClock()
        self.signer = Signer("one")
        self.alice, self.line = new_token("alice")
        self.tokens.write_text(str(self.line))
        self.policy.write_text(READER.format("*"))
        write_jwks(self.jwks, self.signer.jwk)
        self.gate = self.opened()

    @property
    def tokens(self) -> Path:
        """The hashes."""
        return self.folder / "tokens"

    @property
    def policy(self) -> Path:
        """The rules."""
        return self.folder / "policy.toml"

    @property
    def jwks(self) -> Path:
        """The keys."""
        return self.folder / "jwks.json"

    def opened(self, **limits: Any) -> Gate:
        """A gate that has read the files as they are."""
        jwt = JwtConfig(self.jwks, ISSUER, AUDIENCE)
        config = AccessConfig(self.policy, self.tokens, jwt, LimitsConfig(**limits))
        return Gate(config, "fleet", tls=True, client_certificates=True, clock=self.clock)

    def caller(self, call: Call) -> Caller:
        """Who calls, a while later."""
        self.clock.at_s += 1
        return self.gate.caller(cast("Context", call))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where certificates, tokens and JWTs are taken."""
    return Site(tmp_path)


# --- who ------------------------------------------------------------------------------------------------------------


def test_a_certificate_has_several_identities(site: Site) -> None:
    """Its name, its DNS names, and its SPIFFE ID; its addresses and other URIs are none."""
    call = with_certificate(
        "web",
        peer_dns=[b"a.example.org", b"b.example.org"],
        peer_uri=[b"https://example.org/"],
        peer_ip=[b"10.0.0.1"],
        peer_email=[b"a@example.org"],
        peer_spiffe_id=[b"spiffe://example.org/web"],
    )
    expected = ("cert:web", "dns:a.example.org", "dns:b.example.org", "spiffe://example.org/web")
    assert site.caller(call).identities == expected


def test_no_kind_of_identity_passes_for_another(site: Site) -> None:
    """What a certificate says is what its authority has signed, and no more than a name."""
    call = with_certificate("token:root", peer_dns=[b"spiffe://x"], peer_spiffe_id=[b"token:root"])
    assert site.caller(call).identities == ("cert:token:root", "dns:spiffe://x")


def test_what_is_no_text_is_no_identity(site: Site) -> None:
    """A certificate without a name that can be read is that of nobody."""
    assert site.caller(Call({"x509_common_name": [b"\xff"], "x509_pem_cert": [b"p"]})).identities == ("anonymous",)
    assert site.caller(Call()).identities == ("anonymous",)


def test_a_name_without_its_certificate_is_none(site: Site) -> None:
    """It is the certificate that callers are told apart by."""
    assert site.caller(Call({"x509_common_name": [b"root"]})).identities == ("anonymous",)


def test_tokens_of_both_kinds_are_identities(site: Site) -> None:
    """They come on top of what the certificate says."""
    assert site.caller(with_token(site.alice)).identities == ("token:alice",)
    assert site.caller(with_token(site.alice, "bearer")).identities == ("token:alice",)
    assert site.caller(with_token(site.signer.sign("system:x"))).identities == ("jwt:system:x",)
    call = with_certificate("web")
    call.metadata = with_token(site.alice).metadata
    assert site.caller(call).identities == ("cert:web", "token:alice")


@pytest.mark.parametrize("certificate", [{}, {"x509_common_name": [b"web"]}])
@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer a.b.c")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", "Basic YWxpY2U6")],
        [("authorization", "")],
        [("authorization", "Bearer x"), ("authorization", "Bearer y")],
    ],
)
def test_a_wrong_token_is_refused_whatever_else_is_shown(
    site: Site, certificate: Mapping[str, Iterable[bytes]], metadata: list[tuple[str, str]]
) -> None:
    """Rather than passed over: the caller means to be somebody whom it does not become."""
    with pytest.raises(BadToken):
        site.caller(Call(certificate, tuple(metadata)))


def test_the_identities_of_one_caller_are_never_those_of_another(site: Site) -> None:
    """What is remembered is remembered by the certificate and the token, not by the address."""
    calls = [with_certificate("a"), with_certificate("b"), with_token(site.alice), Call()]
    for _ in range(2):
        assert [site.caller(call).identities[0] for call in calls] == ["cert:a", "cert:b", "token:alice", "anonymous"]


def test_a_token_that_expires_is_not_taken_from_memory(site: Site) -> None:
    """Neither one of the file nor a JWT."""
    now = site.clock.wall()
    bob, line = new_token("bob", now + timedelta(seconds=30))
    site.tokens.write_text(str(line))
    site.clock.at_s += 1
    signed = site.signer.sign("bob", exp=int(now.timestamp()) + 30)
    assert site.caller(with_token(bob)).identities == ("token:bob",)
    assert site.caller(with_token(signed)).identities == ("jwt:bob",)
    site.clock.at_s += 60
    with pytest.raises(TokenExpired):
        site.caller(with_token(bob))
    with pytest.raises(TokenExpired):
        site.caller(with_token(signed))


def test_a_server_that_takes_no_tokens_says_so(tmp_path: Path) -> None:
    """And takes no JWTs where it has no keys for them."""
    certificates = Gate(AccessConfig(), "fleet", tls=True, client_certificates=True, clock=HandClock())
    with pytest.raises(BadToken, match="takes no bearer tokens"):
        certificates.caller(cast("Context", with_token("x")))
    (tmp_path / "tokens").write_text(str(new_token("a")[1]))
    tokens = AccessConfig(token_file=tmp_path / "tokens")
    with pytest.raises(BadToken, match="takes no JWTs"):
        Gate(tokens, "fleet", tls=True, client_certificates=False, clock=HandClock()).caller(
            cast("Context", with_token("a.b.c"))
        )


# --- files that change ----------------------------------------------------------------------------------------------


def test_a_new_policy_counts_from_the_next_call(site: Site) -> None:
    """Also for callers who are remembered."""
    web = with_certificate("web")
    assert site.caller(web).may(Role.READER)
    site.policy.write_text(READER.format("token:*"))
    assert not site.caller(web).may(Role.READER)
    assert site.caller(with_token(site.alice)).may(Role.READER)


def test_a_bad_policy_is_reported_once_and_changes_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """What was there before stays in use until the file is good again."""
    web = with_certificate("web")
    site.policy.write_text('[[allow]]\nrole = "root"\n')
    for _ in range(3):
        assert site.caller(web).may(Role.READER)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("the policy files have changed, and those before stay in use: ")
    assert "[[allow]] 1: role has to be one of" in said
    site.policy.write_text(READER.format("dns:*"))
    assert not site.caller(web).may(Role.READER)


def test_a_token_that_is_taken_out_is_refused_at_the_next_call(site: Site) -> None:
    """And one that is put in is taken."""
    bob, line = new_token("bob")
    assert site.caller(with_token(site.alice)).identities == ("token:alice",)
    site.tokens.write_text(f"{line}\n")
    with pytest.raises(BadToken):
        site.caller(with_token(site.alice))
    assert site.caller(with_token(bob)).identities == ("token:bob",)


def test_a_key_that_is_taken_out_signs_no_more(site: Site) -> None:
    """What it has signed is refused at the next call."""
    two = Signer("two")
    old, new = site.signer.sign("x"), two.sign("x")
    assert site.caller(with_token(old)).identities == ("jwt:x",)
    write_jwks(site.jwks, site.signer.jwk, two.jwk)
    assert [site.caller(with_token(each)).identities for each in (old, new)] == [("jwt:x",)] * 2
    write_jwks(site.jwks, two.jwk)
    with pytest.raises(BadToken, match="'one', which the server does not know"):
        site.caller(with_token(old))
    assert site.caller(with_token(new)).identities == ("jwt:x",)


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_lasts_as_long_as_what_it_needed_is_allowed(site: Site) -> None:
    """What it never asked for is not looked at."""
    lasting = site.gate.lasting(site.caller(with_certificate("web")))
    lasting.caller.require(Role.READER, election="a")
    with pytest.raises(PermissionDenied):
        lasting.caller.require(Role.ADMIN)
    assert lasting.lost() is None
    site.policy.write_text(READER.format("cert:web") + 'elections = ["a"]\n')
    site.clock.at_s += 1
    assert lasting.lost() is None
    site.policy.write_text(READER.format("cert:web") + 'elections = ["b"]\n')
    site.clock.at_s += 1
    assert isinstance(lasting.lost(), PermissionDenied)


def test_a_stream_ends_with_the_line_of_its_token_and_not_with_its_name(site: Site) -> None:
    """One that has leaked and was replaced is of no use any more; the others of the same name go on."""
    other, other_line = new_token("alice")
    site.tokens.write_text(f"{site.line}\n{other_line}\n")
    leaked, kept = (site.gate.lasting(site.caller(with_token(token))) for token in (site.alice, other))
    for lasting in (leaked, kept):
        lasting.caller.require(Role.READER)
        assert lasting.lost() is None
    site.tokens.write_text(f"{other_line}\n")
    site.clock.at_s += 1
    assert isinstance(leaked.lost(), BadToken)
    assert kept.lost() is None
    site.tokens.write_text(str(replace(other_line, name="bob")))
    site.clock.at_s += 1
    assert isinstance(kept.lost(), BadToken)


def test_a_token_that_expires_ends_no_stream(site: Site) -> None:
    """As an expired certificate does not, also when the file says only later that it expires."""
    lasting = site.gate.lasting(site.caller(with_token(site.alice)))
    lasting.caller.require(Role.READER)
    site.tokens.write_text(str(replace(site.line, expires=site.clock.wall() + timedelta(seconds=10))))
    site.clock.at_s += 60
    assert lasting.lost() is None


def test_the_version_changes_with_each_file(site: Site) -> None:
    """And with nothing else, so that streams need not be looked at."""
    versions = [site.gate.version()]
    for file, text in [
        (site.policy, READER.format("cert:new")),
        (site.tokens, str(new_token("bob")[1])),
        (site.jwks, site.jwks.read_text() + "\n"),
    ]:
        site.clock.at_s += 1
        assert site.gate.version() == versions[-1]
        file.write_text(text)
        site.clock.at_s += 1
        versions.append(site.gate.version())
    assert all(one != other for one, other in pairwise(versions))


# --- without a policy, and limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "certificates", "highest", "said"),
    [
        (False, False, Role.ADMIN, "everybody who can connect may do everything"),
        (True, False, Role.READER, "everybody who can connect may read, and nobody may do more"),
        (True, True, None, "who shows an identity may read, and nobody may do more"),
    ],
)
def test_what_an_anonymous_caller_may_without_a_policy(
    tls: bool, certificates: bool, highest: Role | None, said: str
) -> None:
    """Over plain text everything; over TLS no more than read; where it could have shown who it is, nothing."""
    gate = Gate(AccessConfig(), "fleet", tls=tls, client_certificates=certificates, clock=HandClock())
    caller = gate.caller(cast("Context", Call()))
    assert max((role for role in Role if caller.may(role)), default=None) == highest
    assert gate.without_policy == said


def test_tokens_on_a_loopback_address_are_not_for_nothing(tmp_path: Path) -> None:
    """Where they are taken, an anonymous caller may nothing, also over plain text."""
    alice, line = new_token("alice")
    (tmp_path / "tokens").write_text(str(line))
    gate = Gate(
        AccessConfig(token_file=tmp_path / "tokens"), "fleet", tls=False, client_certificates=False, clock=HandClock()
    )
    with pytest.raises(Unauthenticated):
        gate.caller(cast("Context", Call())).require(Role.READER)
    caller = gate.caller(cast("Context", with_token(alice)))
    caller.require(Role.READER)
    with pytest.raises(PermissionDenied):
        caller.require(Role.AGENT, agent="alice")


def test_a_policy_needs_a_way_to_tell_callers_apart(site: Site) -> None:
    """Else nobody could have any role."""
    with pytest.raises(ConfigError, match="tells callers apart"):
        Gate(AccessConfig(site.policy), "fleet", tls=True, client_certificates=False)


def test_a_policy_can_say_what_everybody_may_where_nobody_can_be_told_apart(tmp_path: Path) -> None:
    """Over plain text, for example, nobody may do more than read then."""
    (tmp_path / "policy").write_text('[[allow]]\nrole = "reader"\nidentities = ["anonymous"]\n')
    gate = Gate(AccessConfig(tmp_path / "policy"), "fleet", tls=False, client_certificates=False, clock=HandClock())
    assert not gate.is_open
    caller = gate.caller(cast("Context", Call()))
    caller.require(Role.READER)
    with pytest.raises(Unauthenticated):
        caller.require(Role.ADMIN)


@pytest.mark.parametrize(
    "given", [(None, "a", "b"), (Path("f"), None, "b"), (Path("f"), "a", None), (Path("f"), "", "b")]
)
def test_jwts_need_their_issuer_and_audience(given: tuple[Path | None, str | None, str | None]) -> None:
    """A token that was issued for somebody else is no identity here."""
    with pytest.raises(ConfigError, match="need all three"):
        JwtConfig.of(*given)
    assert JwtConfig.of(None, None, None) is None


def test_who_asks_too_often_is_refused(site: Site) -> None:
    """By identity, whatever the connection."""
    site.gate = site.opened(requests_per_s=2)
    calls = [with_certificate("web") for _ in range(3)]
    calls[1].address = "ipv4:10.0.0.2:1000"
    for call in calls[:2]:
        site.gate.caller(cast("Context", call))
    with pytest.raises(TooManyRequests):
        site.gate.caller(cast("Context", calls[2]))
    site.gate.caller(cast("Context", with_certificate("other")))


def test_who_shows_what_cannot_be_taken_is_counted_by_address(site: Site) -> None:
    """Tokens can only be tried so often, and whoever has one calls on from the same address."""
    site.gate = site.opened(requests_per_s=2)

    def try_again(call: Call) -> None:
        with pytest.raises(BadToken):
            site.gate.caller(cast("Context", call))

    try_again(with_token("wrong"))
    try_again(Call(metadata=(("authorization", "Basic YWxpY2U6"),)))
    with pytest.raises(TooManyRequests, match=r"^anonymous at ipv4:10\.0\.0\.1 has made more than 2"):
        site.gate.caller(cast("Context", with_token("other")))
    with pytest.raises(TooManyRequests):
        site.gate.caller(cast("Context", Call(address="ipv4:10.0.0.1:2000")))
    site.gate.caller(cast("Context", with_token(site.alice)))
    try_again(Call(metadata=with_token("wrong").metadata, address="ipv4:10.0.0.2:1000"))


def test_what_is_remembered_is_bounded(site: Site) -> None:
    """And who was forgotten is known again at the next call."""
    site.gate._known.update({(b"x", str(number)): cast("Any", None) for number in range(10_000)})
    site.gate._version = site.gate.version()
    for number in range(20):
        assert site.caller(with_certificate(f"c{number}")).identities == (f"cert:c{number}",)
        assert len(site.gate._known) == 10_000


def test_a_token_is_remembered_once_however_it_is_written(site: Site) -> None:
    """Else one caller could have all others forgotten by writing its own in many ways."""
    for number in range(20):
        assert site.caller(with_token(" " * number + site.alice, "Bearer")).identities == ("token:alice",)
        assert site.caller(with_token(site.alice, "bEaReR" if number % 2 else "BEARER")).identities == ("token:alice",)
    assert list(site.gate._known) == [(b"", site.alice)]


def test_outside_of_a_call_everything_is_allowed() -> None:
    """Servicers can be tested without a server around them."""
    current_caller.get().require(Role.ADMIN, election="x", agent="y")
