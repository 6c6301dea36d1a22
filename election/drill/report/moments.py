"""Times as people read them."""

from __future__ import annotations


def seconds(duration_s: float) -> str:
    """A duration for people."""
    return f"{duration_s * 1000:.0f} ms" if duration_s < 0.995 else f"{duration_s:.2f} s"


def moment(at_s: float) -> str:
    """A time since the drill began, as minutes and seconds."""
    return f"{int(at_s // 60)}:{at_s % 60:06.3f}"
