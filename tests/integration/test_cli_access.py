"""`election serve` that lets in who may, and commands that show who they are: real processes against a real etcd."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from election.dev.etcd import EtcdCluster
from tests.integration.served_access import need_openssl
from tests.integration.test_cli import Cli
from tests.integration.test_etcd_client import Authority

pytestmark = pytest.mark.etcd

POLICY = """
[[allow]]
role = "reader"
identities = ["token:dashboard"]
"""


@pytest.fixture
def cli(tmp_path: Path, single_etcd: EtcdCluster, namespace: str) -> Cli:
    """The command line, in a namespace of its own."""
    return Cli(tmp_path, ELECTION_ENDPOINTS=single_etcd.endpoints[0], ELECTION_NAMESPACE=namespace)


async def test_a_token_is_made_once_and_its_hash_kept(cli: Cli, tmp_path: Path) -> None:
    """To stdout and to stderr, so that each goes to a file of its own; or both as one document."""
    with cli:
        made = await cli.run("token", "dashboard", "--expires", "90d")
        assert made.code == 0
        assert made.out.count("\n") == made.err.count("\n") == 1
        name, sha256, expires = made.err.split()
        assert (name, len(sha256)) == ("dashboard", 64)
        assert datetime.fromisoformat(expires).tzinfo is not None
        assert made.out.strip() not in made.err
        document = (await cli.run("token", "dashboard", "-o", "json")).document
        assert document.keys() == {"token", "line"}
        assert document["line"].startswith("dashboard ")
        (await cli.run("token", "a/b")).assert_fails("token 'a/b' is not a valid name")


async def test_serve_lets_in_who_has_the_token(cli: Cli, tmp_path: Path) -> None:
    """Over TLS, with a policy; a client certificate besides, where an authority for them is named."""
    need_openssl()
    authority = Authority.make(tmp_path, "authority")
    server, client = authority.sign("server"), authority.sign("client")
    policy, tokens, held = tmp_path / "policy.toml", tmp_path / "tokens", tmp_path / "token"
    policy.write_text(POLICY)
    with cli:
        made = await cli.run("token", "dashboard")
        tokens.write_text(made.err)
        held.write_text(made.out)
        serve = cli.start(
            *("serve", "--grpc-port", "0", "--no-collect", "-o", "json", "--server-cert", str(server.cert)),
            *("--server-key", str(server.key), "--client-ca", str(authority.certificate)),
            *("--policy", str(policy), "--tokens", str(tokens), "--max-requests-per-second", "0"),
        )
        address = (await serve.until("serving"))["grpc"]
        asked = ("list", "-o", "json", "--server", address, "--cacert", str(authority.certificate))
        certificate = ("--cert", str(client.cert), "--key", str(client.key))
        answered = await cli.run(*asked, *certificate, "--token-file", str(held))
        assert (answered.code, answered.err, answered.document) == (0, "", []), answered
        (await cli.run(*asked, *certificate)).assert_fails(
            "this needs the role reader, and the policy gives cert:client"
        )
        (await cli.run(*asked, "--token-file", str(held))).assert_fails("it wants a client certificate")
        (await cli.run(*asked[:5])).assert_fails("only one side speaks TLS")
        strange = Authority.make(tmp_path, "stranger").certificate
        mistaken = await cli.run(*asked[:5], "--cacert", str(strange), *certificate)
        mistaken.assert_fails("its certificate is not from our CA, or is for another name: check --cacert")
        held.write_text("election_wrong")
        wrong = await cli.run(*asked, *certificate, "--token-file", str(held))
        wrong.assert_fails("the bearer token is not, or not any more, among those")
        ended = await serve.stop()
        assert (ended.code, ended.err) == (0, "")


async def test_what_cannot_be_used_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """Before anything listens, or is sent."""
    policy, token = tmp_path / "policy.toml", tmp_path / "token"
    token.write_text("secret")
    serve = ("serve", "--grpc-port", "0", "--no-collect")
    with cli:
        (await cli.run(*serve, "--jwks", str(token))).assert_fails("JWTs need all three")
        policy.write_text(POLICY)
        (await cli.run(*serve, "--policy", str(policy))).assert_fails("tells callers apart")
        policy.write_text(POLICY.replace("reader", "root"))
        (await cli.run(*serve, "--policy", str(policy))).assert_fails("role has to be one of")
        (await cli.run(*serve, "--client-ca", str(token))).assert_fails("needs TLS")
        (await cli.run(*serve, "--tokens", str(token))).assert_fails(f"{token} line 1: ")
        plain = ("list", "--server", "192.0.2.1:1", "--token-file", str(token))
        (await cli.run(*plain)).assert_fails("the bearer token would go to 192.0.2.1:1 in plain text")
