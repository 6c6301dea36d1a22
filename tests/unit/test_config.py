"""Settings: the relations between them are checked where they are built, with errors that name both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from election.config import (
    AgentConfig,
    CandidateConfig,
    CollectorConfig,
    EtcdConfig,
    TlsConfig,
    check_labels,
    check_lease_relations,
)
from election.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:2379", ("127.0.0.1:2379",)),
        ("a:1, b:2,c:3", ("a:1", "b:2", "c:3")),
        ("http://a:1,http://b:2/", ("a:1", "b:2")),
        ("[::1]:2379", ("[::1]:2379",)),
    ],
)
def test_endpoints_are_read_as_people_write_them(text: str, expected: tuple[str, ...]) -> None:
    """With or without scheme and spaces."""
    assert EtcdConfig.parse(text).endpoints == expected


def test_https_asks_for_tls() -> None:
    """With the system's roots where no files are given."""
    assert EtcdConfig.parse("https://a:1").tls == TlsConfig()
    assert EtcdConfig.parse("http://a:1").tls is None


@pytest.mark.parametrize(
    ("endpoints", "tls", "message"),
    [
        ("", None, "'' is not HOST:PORT"),
        ("localhost", None, "'localhost' is not HOST:PORT"),
        ("a b:1", None, "'a b:1' is not HOST:PORT"),
        ("::1:2379", None, "'::1:2379' is not HOST:PORT"),
        ("a:0", None, "is not HOST:PORT"),
        ("a:99999", None, "is not HOST:PORT"),
        ("a:b", None, "is not HOST:PORT"),
        ("ftp://a:1", None, "scheme 'ftp' is not known: use http or https"),
        ("https://a:1,b:2", None, "some endpoints are https and some are not"),
        ("http://a:1", TlsConfig(cacert=Path("ca")), "the endpoints say http://"),
        ([], None, "no etcd endpoint"),
    ],
)
def test_bad_endpoints_are_one_clear_error(endpoints: str, tls: TlsConfig | None, message: str) -> None:
    """That says which one and what is expected."""
    with pytest.raises(ConfigError, match=message):
        EtcdConfig.parse(endpoints, tls=tls)


def test_a_user_needs_a_password_and_it_is_never_shown() -> None:
    """Not even in a repr."""
    assert "secret" not in repr(EtcdConfig.parse("a:1", user="root:secret"))
    with pytest.raises(ConfigError, match="NAME:PASSWORD"):
        EtcdConfig.parse("a:1", user="root")


def test_a_certificate_needs_its_key() -> None:
    """And the other way round."""
    with pytest.raises(ConfigError, match="give both or none"):
        TlsConfig(cert=Path("c"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ttl_s": 2}, r"margin \(1 s\) is not smaller than half of the TTL \(2 s\)"),
        ({"ttl_s": 9, "renew_s": 3.1}, r"renew interval \(3.1 s\) x 3 is longer than the TTL \(9 s\)"),
        ({"margin_s": 0.5}, r"margin \(0.5 s\) is smaller than one etcd election timeout \(1 s\)"),
        ({"retry_s": 4.0}, r"retry_s \(4\) is longer than the renew interval"),
        ({"retry_max_s": 0.1}, r"retry_max_s \(0.1\) is smaller than retry_s"),
        ({"ttl_s": 0}, "ttl_s must be more than 0"),
        ({"ttl_s": float("nan")}, "ttl_s must be more than 0"),
    ],
)
def test_settings_of_a_candidate_that_do_not_go_together(settings: dict[str, float], message: str) -> None:
    """Both sides of the relation are named."""
    with pytest.raises(ConfigError, match=message):
        CandidateConfig(**settings)  # type: ignore[arg-type]


def test_the_defaults_go_together() -> None:
    """A third of the TTL, exactly, is often enough; a fifth is the default."""
    assert CandidateConfig().renew_interval_s * 5 == pytest.approx(10)
    AgentConfig()
    CollectorConfig()
    for ttl_s in range(3, 200):
        check_lease_relations(ttl_s, 1.0, ttl_s / 3)


def test_an_attempt_is_a_part_of_a_call() -> None:
    """It cannot be longer."""
    with pytest.raises(ConfigError, match="an attempt is a part of a call"):
        EtcdConfig(attempt_timeout_s=6.0)


@pytest.mark.parametrize("settings", [{"grace_s": -1.0}, {"reconcile_s": 0.0}, {"retention_s": -5}])
def test_settings_of_a_collector(settings: dict[str, float]) -> None:
    """A grace of 0 is allowed; less is not."""
    with pytest.raises(ConfigError):
        CollectorConfig(**settings)  # type: ignore[arg-type]


def test_labels_have_valid_names() -> None:
    """Their values are free."""
    assert check_labels({"zone": "a b/c"}) == {"zone": "a b/c"}
    with pytest.raises(ConfigError, match="label 'a/b'"):
        check_labels({"a/b": "x"})
