"""How long to leave a server alone that had nothing for us."""

from __future__ import annotations

import random
from datetime import timedelta

from worker.retry import Policy

IDLE = Policy(first=timedelta(seconds=1), most=timedelta(seconds=30))
LONGEST_S = 300.0
"""No server sends us away for longer."""

_HELD = 0.9
"""Of the time that we offered to wait: a server that took so long does hold its answers back."""


class Rest:
    """When to ask again, in loop time. A server that holds empty answers back is asked again at once."""

    def __init__(self, rng: random.Random, policy: Policy = IDLE) -> None:
        self._rng = rng
        self._policy = policy
        self._empty = 0
        self.until = 0.0

    def worked(self) -> None:
        """There was a job: the next may be there already."""
        self._empty, self.until = 0, 0.0

    def asked(self, now: float, seconds: float) -> None:
        """The server said when to come again; a little later, so that not all nodes come at once."""
        self._empty = 0
        self.until = now + min(seconds, LONGEST_S) * (1 + self._rng.random() / 10)

    def nothing(self, *, sent: float, now: float, offered_s: float, retry_after_s: float | None) -> None:
        """No job came."""
        if retry_after_s is not None:
            self.asked(now, retry_after_s)
        elif now - sent >= offered_s * _HELD:
            self.worked()
        else:
            self._empty += 1
            self.until = sent + self._policy.wait(self._empty, self._rng).total_seconds()
