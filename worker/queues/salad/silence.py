"""How long a stream may say nothing before it is taken for dead. Pure; seconds throughout."""

from __future__ import annotations

FIRST_S = 60.0
"""While nobody knows how often the service says a word."""

LEAST_S, MOST_S = 30.0, 300.0
_MISSED = 3


class Silence:
    """``limit_s`` follows the longest pause between two words that was seen: three of them may be missed.

    A service that never says a word within the limit is given longer each time.
    """

    def __init__(self, first_s: float = FIRST_S, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._longest_s: float | None = None
        self.limit_s = first_s

    def heard(self, after_s: float) -> None:
        """There was a word, so long after the one before it."""
        self._longest_s = max(self._longest_s or 0.0, after_s)
        self.limit_s = min(max(_MISSED * self._longest_s, self._least_s), MOST_S)

    def mute(self) -> None:
        """A stream was opened and said nothing at all until the limit."""
        self.limit_s = min(self.limit_s * 2, MOST_S)
