"""What `import election` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import election


@pytest.mark.parametrize("name", election.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """And comes from one module, where it is defined."""
    assert getattr(election, name).__name__ == name


def test_other_names_are_not_there() -> None:
    """With the usual error."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        election.nonsense  # noqa: B018


def test_importing_the_package_imports_no_grpc() -> None:
    """So that the command line can say how much gRPC logs."""
    program = "import sys, election; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
