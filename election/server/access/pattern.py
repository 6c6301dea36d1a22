"""Text with `*`, as the policy writes identities and names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pattern:
    """Matches a whole text; each `*` stands for any part of it, also an empty one."""

    text: str
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = map(re.escape, self.text.split("*"))
        object.__setattr__(self, "_compiled", re.compile("(.*)".join(parts), re.DOTALL))

    def fits(self, text: str) -> bool:
        """Whether the text is one of those meant."""
        return self._compiled.fullmatch(text) is not None

    def stands_for(self, text: str) -> str | None:
        """What the first `*` stands for in a text that fits: "" where there is no `*`; None for one that does not."""
        found = self._compiled.fullmatch(text)
        return None if found is None else found[1] if self._compiled.groups else ""
