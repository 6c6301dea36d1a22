"""Seeds that once broke a promise, each with what was wrong: they are run with all other tests."""

from __future__ import annotations

KEPT: dict[str, int] = {}
"""The name of what was wrong, and the seed that has found it."""
