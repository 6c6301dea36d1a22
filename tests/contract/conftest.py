"""Every contract test runs twice: on the fake etcd, in virtual time, and on real processes."""

from __future__ import annotations

import pytest

from tests.contract.subject import Backend, FakeBackend, RealBackend


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.etcd)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """What a contract test runs on."""
    if request.param == "fake":
        return FakeBackend()
    return RealBackend(request.getfixturevalue("etcd_cluster").endpoints)
