"""SD.Next's rate limiter: so many points a minute for each client and path, asked only after the work is done."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

COSTLY = {"/sdapi/v1/txt2img": 5, "/sdapi/v1/img2img": 5, "/sdapi/v1/control": 5}
_WINDOW_SECONDS = 60.0


class RateLimiter:
    """Counts in a window of a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def exceeded(self, client: str, path: str, limit: int) -> bool:
        """Whether this call is one too many; a limit of 0 turns it off."""
        if limit <= 0:
            return False
        now, cost = self._clock(), COSTLY.get(path, 1)
        spent = self._spent[f"{client}:{path}"]
        while spent and spent[0][0] < now - _WINDOW_SECONDS:
            spent.popleft()
        if sum(c for _, c in spent) + cost > limit:
            return True
        spent.append((now, cost))
        return False
