"""The guard for the `etcd3` package: its transactions are refused by etcd once their leader was deposed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from election.dev.etcd import EtcdCluster
from election.dev.parent import bound_to_this_process

pytestmark = pytest.mark.etcd

PROGRAM = """
import asyncio, json, sys

import etcd3 as package

from election import CandidateConfig, NotLeader, connect
from election.fencing import etcd3

endpoint, namespace = sys.argv[1:]
host, port = endpoint.split(":")
client = package.client(host=host, port=int(port), timeout=10)
resource = f"/{namespace}/resource"
answers = {}


def write(compare, value):
    succeeded, _ = client.transaction(compare=[compare], success=[client.transactions.put(resource, value)], failure=[])
    return succeeded


async def led(candidate):
    terms = asyncio.Queue()

    async def work(term):
        await terms.put(term)
        await asyncio.Event().wait()

    standing = asyncio.create_task(candidate.lead(work, once=True))
    return standing, await asyncio.wait_for(terms.get(), 20)


async def main():
    async with connect(endpoint, namespace=namespace) as store:
        config = CandidateConfig(ttl_s=5)
        old_standing, old = await led(store.candidate("demo", id="old", config=config))
        late = etcd3.guard(client, old)  # made while it leads, and sent by a thread that was slow
        answers["while it leads"] = await asyncio.to_thread(write, etcd3.guard(client, old), "old")
        await asyncio.to_thread(client.delete, old.key)
        await old_standing
        try:
            etcd3.guard(client, old)
        except NotLeader as error:
            answers["once it knows"] = error.reason
        answers["before anybody else leads"] = await asyncio.to_thread(write, late, "late")

        successor = store.candidate("demo", id="new", config=config)
        new_standing, new = await led(successor)
        answers["its successor"] = await asyncio.to_thread(write, etcd3.guard(client, new), "new")
        answers["after its successor"] = await asyncio.to_thread(write, late, "late")
        answers["value"] = client.get(resource)[0].decode()
        successor.leave()
        await new_standing
    print(json.dumps(answers))


asyncio.run(main())
"""


def test_a_transaction_of_the_etcd3_package_is_refused_once_its_leader_was_deposed(
    single_etcd: EtcdCluster, namespace: str
) -> None:
    """In one process with `election`, and with protobuf in pure Python, which is the only one that package can use."""
    command = bound_to_this_process([sys.executable, "-c", PROGRAM, *single_etcd.endpoints, namespace])
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "while it leads": True,
        "once it knows": "key_deleted",
        "before anybody else leads": False,
        "its successor": True,
        "after its successor": False,
        "value": "new",
    }
